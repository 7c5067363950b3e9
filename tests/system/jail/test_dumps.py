"""A crash is dumped where nobody forbids it, and not where we do."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import ollama_adapter
from tests.canary import PROMPT, search_files

SOURCE = str(Path(ollama_adapter.__file__).parents[1])

HOLDS_THE_CANARY = """
import os, resource, signal, sys
sys.path.insert(0, sys.argv[1])
_, hard = resource.getrlimit(resource.RLIMIT_CORE)
resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
from ollama_adapter.system.jail import dumps
if sys.argv[2] == "forbid for good":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
if sys.argv[2] != "allow":
    dumps.forbid()
secret = sys.stdin.read()
os.kill(os.getpid(), signal.SIGSEGV)
"""


def crash(where: Path, how: str) -> bool:
    """A process that holds the canary crashes there; whether the kernel says that it has dumped it."""
    command = [sys.executable, "-c", HOLDS_THE_CANARY, SOURCE, how]
    with subprocess.Popen(command, cwd=where, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(PROMPT.encode())
        process.stdin.close()
        told = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert told is not None
    assert told.si_status == signal.SIGSEGV
    return told.si_code == os.CLD_DUMPED


def test_a_crash_is_dumped_where_nobody_forbids_it_and_not_where_we_do(tmp_path: Path) -> None:
    for how in ("allow", "forbid", "forbid for good"):
        (tmp_path / how).mkdir()
    assert not crash(tmp_path / "forbid", "forbid")
    crash(tmp_path / "forbid for good", "forbid for good")  # which is no error
    assert search_files(tmp_path) == 0
    dumped = crash(tmp_path / "allow", "allow")
    # the control: there is none on a kernel without dumps, or where they are forbidden for good
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    assert dumped or hard == 0 or not Path("/proc/self/coredump_filter").exists()
    if dumped and Path("/proc/sys/kernel/core_pattern").read_text().strip() == "core":
        with pytest.raises(AssertionError, match="found in"):
            search_files(tmp_path / "allow")
