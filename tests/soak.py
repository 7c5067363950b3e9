"""Numbers: what the tests measure, and the page that says so.

A number is what was measured, its value, the goal, and how many times it was tried. A test asserts what
happened and in which order; how long it took depends on the machine, so it is reported here and never
asserted. `make soak` writes the page, with only what its own run has measured.
"""

from __future__ import annotations

import datetime
import operator
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil
import pytest

_COMPARED: Final[dict[str, Callable[[float, float], bool]]] = {
    "≤": operator.le,
    "≥": operator.ge,
    "=": operator.eq,
}
_HEAD: Final = """# Soak: what the long tests measured

`make soak` runs the tests with their full counts and writes this page: what that one run measured, and nothing
else. A missed time is a fact about a machine; a count that is not reached, or anything left behind, fails a test.
"""


@dataclass(frozen=True, slots=True)
class Number:
    """One measurement. The worst of several values is what the goal is about."""

    what: str
    values: tuple[float, ...]
    goal: str
    unit: str
    times: int

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError(f"{self.what}: nothing was measured")
        self._limit()

    @property
    def reached(self) -> bool:
        """Whether each value is within the goal; without a goal, yes."""
        if not self.goal:
            return True
        compare, limit = self._limit()
        return all(compare(each, limit) for each in self.values)

    def row(self) -> str:
        """Its line of the table."""
        low, *_, high = sorted(self.values * 2)
        shown = _shown(low) if low == high else f"{_shown(low)} to {_shown(high)}"
        goal = f"{self.goal} {self.unit}" if self.goal else ""
        verdict = "" if self.reached else " (missed)"
        return f"| {self.what} | {goal} | {shown} {self.unit}{verdict} | {self.times:,} |"

    def _limit(self) -> tuple[Callable[[float, float], bool], float]:
        sign, _, limit = (self.goal or "≥ -inf").partition(" ")
        return _COMPARED[sign], float(limit.replace(",", ""))


@dataclass(eq=False)
class Report:
    """A plugin of pytest that collects numbers and failures, and writes them when the run ends."""

    path: Path | None
    numbers: list[Number] = field(default_factory=list)
    passed: int = 0
    skipped: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    broken_off: bool = False

    def measured(
        self, what: str, value: float | Sequence[float], goal: str, unit: str, times: int = 0
    ) -> None:
        """Report a number. `goal` is a sign and a limit, such as "≤ 0.5"; several values show their range."""
        values = tuple(value) if isinstance(value, Sequence) else (value,)
        self.numbers.append(Number(what, values, goal, unit, times or len(values)))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed += [report.nodeid] * (report.nodeid not in self.failed)
        elif report.skipped:
            self.skipped.append(report.nodeid)
        elif report.when == "call":
            self.passed += 1

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        self.broken_off = exitstatus == pytest.ExitCode.INTERRUPTED
        if self.path is not None:
            self.path.write_text(self.render(), "utf-8")

    def render(self) -> str:
        """The page."""
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        yield _HEAD
        yield f"{datetime.datetime.now(datetime.UTC).date()}: {_machine()}."
        yield ""
        yield f"{self.passed:,} tests passed, {len(self.failed)} failed, {len(self.skipped)} skipped."
        if self.broken_off:
            yield "\nThe run was broken off: what is not here was not measured."
        for title, names in (("Failed", self.failed), ("Skipped", self.skipped)):
            yield from ["", f"{title}:", *(f"- `{each}`" for each in names)] if names else []
        yield "\n| what | goal | measured | times |\n|---|---|---|---|"
        yield from (each.row() for each in sorted(self.numbers, key=lambda each: each.what))


def _shown(value: float) -> str:
    """Three digits are more than a busy machine is good for."""
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 100 else f"{value:.3g}"


def _machine() -> str:
    """What the numbers depend on; nothing that names this machine or its user."""
    gigabytes = psutil.virtual_memory().total / (1 << 30)
    return (
        f"{platform.system()} {platform.release().split('-')[0]} on {platform.machine()}, "
        f"{psutil.cpu_count()} cores, {gigabytes:.0f} GiB; "
        f"{platform.python_implementation()} {platform.python_version()}"
    )
