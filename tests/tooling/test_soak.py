"""The page that `make soak` writes: what was measured, what failed, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.soak import Number, Report

ROOT = Path(__file__).parents[2]
TESTS = """
import pytest

def test_good(measured, scaled):
    measured("kill to gone", [0.25, 0.5], "≤ 0.5", "s", scaled(100))
    measured("a packet", 3, "= 0", "packets")

def test_bad():
    assert False

@pytest.mark.skip(reason="it is said")
def test_left_out():
    pass
"""


@pytest.mark.parametrize(
    ("goal", "values", "reached"),
    [
        ("≤ 0.5", (0.1, 0.5), True),
        ("≤ 0.5", (0.1, 0.51), False),
        ("≥ 1,000", (1000,), True),
        ("≥ 1,000", (2000, 999), False),
        ("= 0", (0, 0), True),
        ("= 0", (0, 1), False),
        ("", (7,), True),
    ],
)
def test_the_worst_value_decides(goal: str, values: tuple[float, ...], reached: bool) -> None:
    assert Number("x", values, goal, "s", 1).reached is reached


@pytest.mark.parametrize(("goal", "values"), [("< 3", (1,)), ("≤ soon", (1,)), ("≤ 3", ())])
def test_a_number_without_a_goal_one_can_read_or_without_a_value_is_none(
    goal: str, values: tuple[float, ...]
) -> None:
    with pytest.raises((KeyError, ValueError)):
        Number("x", values, goal, "s", 1)


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ((0.01234,), "0.0123 s"),
        ((12345.6,), "12,346 s"),
        ((2, 1, 3), "1 to 3 s"),
        ((9,), "9 s (missed)"),
    ],
)
def test_a_row_is_for_people(values: tuple[float, ...], shown: str) -> None:
    goal = "≤ 3" if "missed" in shown else ""
    assert Number("x", values, goal, "s", 1000).row().endswith(f"| {shown} | 1,000 |")


def test_a_number_counts_what_it_was_given() -> None:
    report = Report(None)
    report.measured("x", [1, 2], "", "s")
    report.measured("y", 1, "", "s", 50)
    assert [each.times for each in report.numbers] == [2, 50]


def test_a_run_that_was_broken_off_says_so() -> None:
    report = Report(None)
    report.pytest_sessionfinish(pytest.ExitCode.OK)
    assert "broken off" not in report.render()
    report.pytest_sessionfinish(pytest.ExitCode.INTERRUPTED)
    assert "broken off" in report.render()


def test_the_page_of_a_run_has_its_numbers_and_its_failures(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TESTS, "utf-8")
    page = tmp_path / "page.md"
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider"]
    where = [f"--rootdir={tmp_path}", "-c", str(ROOT / "pyproject.toml"), str(tmp_path)]
    done = subprocess.run(
        [*command, "--soak", f"--soak-report={page}", *where],
        cwd=ROOT,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    text = page.read_text("utf-8")
    assert "1 tests passed, 1 failed, 1 skipped." in text
    assert "Failed:\n- `test_it.py::test_bad`\n" in text
    assert "Skipped:\n- `test_it.py::test_left_out`\n" in text
    assert "| kill to gone | ≤ 0.5 s | 0.25 to 0.5 s | 100 |" in text
    assert "| a packet | = 0 packets | 3 packets (missed) | 1 |" in text
    assert str(tmp_path) not in text
    assert os.uname().nodename not in text.split()
