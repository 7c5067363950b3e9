"""Numbers as tables for people and as JSON, with the machine that gave them."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Mapping
from statistics import median
from typing import Any, Final

from benchmarks.cases import Case, Numbers, Samples
from benchmarks.clients import OFFICIAL, C

PACKAGES: Final = ("ollama", "httpx", "orjson", "aiohttp", "msgspec", "httptools")
UNITS: Final = {"us": "µs", "ms": "ms", "kb": "KB", "mb": "MB", "percent": "%", "s": "/s", "n": ""}


def medians(rounds: list[Numbers]) -> Numbers:
    return {name: median(each[name] for each in rounds) for name in (rounds[0] if rounds else ())}


def ratio(samples: Samples, name: str, number: str, to: str = OFFICIAL) -> float | None:
    """How many times less than another client: the median over rounds."""
    pairs = zip(samples.get(to, ()), samples[name], strict=False)
    ratios = [theirs[number] / ours[number] for theirs, ours in pairs if ours[number]]
    return median(ratios) if ratios else None


def table(case: Case, samples: Samples) -> str:
    """A client per line; the last columns compare the number that the case is about."""
    found = {name: medians(rounds) for name, rounds in samples.items() if rounds}
    columns = list(next(iter(found.values()), {}))
    head = [*map(_title, columns), "spread", "official ÷", "÷ C"]
    lines = [f"\n{case.name}", "  " + " " * 26 + "".join(f"{each:>15}" for each in head)]
    for name, numbers in found.items():
        cells = [f"{numbers[each]:,.2f}" for each in columns]
        values = [each[case.ratio] for each in samples[name]]
        cells.append(f"{min(values):,.4g}–{max(values):,.4g}")
        over_c = ratio(samples, name, case.ratio, C)
        for times in (ratio(samples, name, case.ratio), 1 / over_c if over_c else None):
            cells.append(f"{times:.2f}×" if times else "")
        lines.append(f"  {name:26}" + "".join(f"{each:>15}" for each in cells))
    return "\n".join(lines)


def plain_table(title: str, rows: Mapping[str, Numbers]) -> str:
    """Numbers that are compared with nobody's."""
    columns = list(dict.fromkeys(column for numbers in rows.values() for column in numbers))
    lines = [f"\n{title}", "  " + " " * 64 + "".join(f"{_title(each):>14}" for each in columns)]
    for name, numbers in rows.items():
        cells = [f"{numbers[each]:,.2f}" if each in numbers else "" for each in columns]
        lines.append(f"  {name:64}" + "".join(f"{each:>14}" for each in cells))
    return "\n".join(lines)


def _title(number: str) -> str:
    """`p50_us` as people write it."""
    name, _, unit = number.rpartition("_")
    return f"{name.replace('_', ' ')} {UNITS[unit]}".strip()


def case_json(case: Case, samples: Samples) -> dict[str, Any]:
    return {
        name: {
            "median": _rounded(medians(rounds)),
            f"official_over_this_{case.ratio}": _round(ratio(samples, name, case.ratio)),
            "rounds": [_rounded(each) for each in rounds],
        }
        for name, rounds in samples.items()
    }


def as_json(document: Mapping[str, Any]) -> str:
    return json.dumps({"machine": machine(), **document}, indent=1, ensure_ascii=False) + "\n"


def _rounded(numbers: Numbers) -> Numbers:
    return {name: round(value, 3) for name, value in numbers.items()}


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def machine() -> dict[str, Any]:
    """What may have decided the figures; no names, no paths."""
    return {
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "load_average": [round(each, 2) for each in os.getloadavg()],
        "packages": {each: version for each in PACKAGES if (version := _version(each))},
    }


def slug() -> str:
    """A short name for machine and Python."""
    text = f"{_processor()} {len(os.sched_getaffinity(0))} cores py{platform.python_version()}"
    return re.sub(r"[^a-z0-9.]+", "-", re.sub(r"\(\w+\)", "", text.lower())).strip("-")


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
