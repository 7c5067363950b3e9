"""The benchmarks run: they measure, say so in a table, and write it down; what they measure is no test."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
CASE = "1 token per write"
CLIENT = "ollama-adapter, no frames"


def bench(out: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    argv = [
        sys.executable,
        "-m",
        "benchmarks",
        "--out",
        str(out),
        "--case",
        CASE,
        "--client",
        CLIENT,
    ]
    return subprocess.run(
        [*argv, "--rounds", "1", "--tokens", "500"],
        cwd=ROOT,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
    )


def test_one_command_measures_and_writes_it_down(tmp_path: Path) -> None:
    if sys.platform != "linux" or not any(map(shutil.which, ("cc", "gcc", "clang"))):
        assert bench(tmp_path).returncode == 1
        return
    out = tmp_path / "not/there/yet"
    done = bench(out)
    assert done.returncode == 0, done.stderr
    assert CLIENT in done.stdout
    (results,) = out.glob("*.json")
    document = json.loads(results.read_text("utf-8"))
    assert document["machine"]["cores"] >= 1
    rounds = [case[CLIENT]["rounds"] for case in document["cases"].values()]
    assert [len(each) for each in rounds] == [1]
    assert all(number > 0 for case in rounds for each in case for number in each.values())
    (drawn,) = out.glob("*.svg")
    bars = ElementTree.fromstring(drawn.read_text("utf-8")).iter("{http://www.w3.org/2000/svg}rect")
    assert len(list(bars)) == 1


def test_without_a_compiler_it_says_what_is_needed(tmp_path: Path) -> None:
    done = bench(tmp_path, PATH=str(tmp_path), CC="")
    assert done.returncode == 1
    assert not list(tmp_path.iterdir())
    if sys.platform == "linux":
        assert "a C compiler is needed" in done.stderr
        assert "apt install gcc" in done.stderr
