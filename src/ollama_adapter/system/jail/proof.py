"""The proof that a level holds here: harmless attacks from inside it, and how each was refused."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import tempfile
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ollama_adapter.errors import NotSandboxed
from ollama_adapter.system.jail.paths import daemon_policy
from ollama_adapter.system.jail.policy import Level
from ollama_adapter.system.process import Child, spawn
from ollama_adapter.system.scope import TaskScope

SCRIPT: Final = Path(__file__).with_name("harmless.py")
OUTSIDE: Final = "203.0.113.1"  # an address of documentation: nobody has it
LIMIT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Proof:
    """One attempt from inside: what it was, and why it failed ("" where it did not)."""

    attempt: str
    reason: str

    @property
    def refused(self) -> bool:
        return bool(self.reason)


async def prove(level: Level) -> list[Proof]:
    """Try them all at this level. Raises NotSandboxed where the level cannot be had. Cancelling is safe.

    At level `none` they run without a jail: the control, in which they succeed.
    """
    with ExitStack() as stack:
        base = stack.enter_context(tempfile.TemporaryDirectory(prefix="proof-"))
        os.chmod(base, 0o755)  # the daemon of root is another user
        own = os.path.join(base, "own")
        os.mkdir(own, mode=0o700)
        neighbour = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        targets = {
            "outside": OUTSIDE,
            "neighbour": neighbour.getsockname()[1],
            "visited": _free_port(),
            "home": str(Path.home()),
            "elsewhere": os.path.join(base, "written"),
            "application": os.getpid(),
        }
        argv = [sys.executable, "-I", "-S", str(SCRIPT), json.dumps(targets)]
        policy = daemon_policy(level, argv, home=own, models=own, port=targets["visited"])
        scope = TaskScope()
        try:
            child = await spawn(argv, {}, "/", scope, policy)
            said = await _visit(child, targets["visited"])
        finally:
            await scope.aclose()
    return [Proof(name.replace("_", " "), reason) for name, reason in said.items()]


async def _visit(child: Child, port: int) -> dict[str, str]:
    """Keep knocking at the port it may have opened, until it has ended; what it then says."""
    async with asyncio.timeout(LIMIT_S):
        while not child.exited.done():
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
            await asyncio.wait([child.exited], timeout=0.02)
    ended = child.exited.result()
    if ended.returncode != 0:
        raise NotSandboxed(f"the proof ended with code {ended.returncode}: {ended.tail[-200:]}")
    said: Any = json.loads(ended.tail)
    return {str(name): str(reason) for name, reason in said.items()}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
