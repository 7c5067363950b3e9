"""Every example runs, by itself, as a new user would run it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
WATCHDOG_S = 60


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_prints(example: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(example)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=WATCHDOG_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert done.stderr == ""


def test_the_contract_needs_five_lines() -> None:
    (contract,) = [each for each in EXAMPLES if each.stem == "contract"]
    lines = contract.read_text("utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("async def"))
    assert len([line for line in lines[start:] if line.strip()]) <= 5
