"""No packet leaves during a whole session, seen by whoever would receive it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ollama_adapter

SOURCE = str(Path(ollama_adapter.__file__).parents[1])
SCRIPT = Path(__file__).with_name("session.py")
LEVELS = ("none", "partial", "guard", "namespaces")


def test_no_packet_leaves_during_a_session() -> None:
    pytest.importorskip("xllamacpp")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *LEVELS],
        env=os.environ | {"PYTHONPATH": SOURCE},
        capture_output=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    report = json.loads(done.stdout)
    if report["walls"]:
        pytest.skip(f"no network with a recorder can be made here: {report['walls']}")
    assert report["control"] >= 2, "the recorder is deaf"
    answered = [each for each in LEVELS if not report[each]["said"].startswith("refused")]
    assert "none" in answered
    for level in answered:
        assert report[level]["said"].startswith("200 "), report[level]
        assert report[level]["packets"] == 0, report[level]
