"""Samples as a table for people and as JSON, with the machine that gave them."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
from dataclasses import asdict
from statistics import median
from typing import Any, Final

from benchmarks.clients import OFFICIAL, Sample

Samples = dict[str, list[Sample]]
"""A client's rounds."""
PACKAGES: Final = ("ollama", "httpx", "orjson", "aiohttp", "msgspec", "httptools")


def cpu_us(sample: Sample) -> float:
    return sample.cpu_s / sample.tokens * 1e6


def wall_us(sample: Sample) -> float:
    return sample.wall_s / sample.tokens * 1e6


def ratio(samples: Samples, name: str) -> float | None:
    """How many times less CPU than the official client: the median over rounds."""
    pairs = zip(samples.get(OFFICIAL, ()), samples[name], strict=False)
    ratios = [cpu_us(theirs) / cpu_us(ours) for theirs, ours in pairs]
    return median(ratios) if ratios else None


def table(case: str, samples: Samples) -> str:
    lines = [
        f"\n{case}",
        f"  {'µs per token':26} {'CPU':>8} {'spread':>16} {'wall':>8} {'ratio':>7}",
    ]
    for name, rounds in samples.items():
        cpu = [cpu_us(each) for each in rounds]
        spread = f"{min(cpu):.2f} – {max(cpu):.2f}"
        times = ratio(samples, name)
        shown = f"{times:6.1f}×" if times else ""
        wall = median(map(wall_us, rounds))
        lines.append(f"  {name:26} {median(cpu):8.2f} {spread:>16} {wall:8.2f} {shown:>7}")
    return "\n".join(lines)


def as_json(results: dict[str, Samples], rounds: int) -> str:
    cases = {
        case: {
            name: {
                "cpu_us_per_token": round(median(map(cpu_us, each)), 3),
                "wall_us_per_token": round(median(map(wall_us, each)), 3),
                "times_less_cpu_than_official": _rounded(ratio(samples, name)),
                "rounds": [asdict(sample) for sample in each],
            }
            for name, each in samples.items()
        }
        for case, samples in results.items()
    }
    document = {"machine": machine(), "rounds": rounds, "cases": cases}
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _rounded(value: float | None) -> float | None:
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
