"""How a command ends: a signal that comes too late is no fault."""

from __future__ import annotations

import subprocess
import sys

CLOSING = """
import os
import signal
from asyncio.selector_events import BaseSelectorEventLoop

from click.exceptions import Exit

from ollama_adapter.cli.ending import execute

close = BaseSelectorEventLoop._close_self_pipe


def interrupted(loop):
    close(loop)
    os.kill(os.getpid(), signal.SIGINT)  # between the end of the command and the end of its loop


BaseSelectorEventLoop._close_self_pipe = interrupted


async def work():
    print("done")


try:
    execute(work)
except Exit as ended:
    print(ended.exit_code)
"""


def test_a_signal_while_the_loop_closes_leaves_no_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CLOSING], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""
    assert done.stdout == "done\n0\n"
