"""A daemon that has answered, whoever started it; and how one of ours ended.

Whoever talks to a daemon needs no more of it: the rest is in `process`, for those who spawn.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Protocol

import msgspec

from ollama_adapter.system.dialing import dial_port
from ollama_adapter.veiled import Veiled


class Exit(Veiled, msgspec.Struct, frozen=True):
    """How a daemon ended: its code (negative: by that signal; None: its keeper was killed)."""

    returncode: int | None
    tail: str = ""


class Spawned(Protocol):
    """A daemon of ours that runs (process.Child); `exited` completes when its whole group has gone."""

    pid: int
    exited: asyncio.Future[Exit]

    @property
    def jailed(self) -> bool: ...

    @property
    def sandbox(self) -> str: ...

    async def dial(self) -> socket.socket: ...

    async def stop(self, grace_s: float) -> Exit: ...

    def kill(self) -> None: ...


class Running(msgspec.Struct, frozen=True):
    """A daemon that has answered. `child` is None for one that was adopted: it is not ours to end."""

    origin: str
    port: int
    version: str
    child: Spawned | None = None

    async def dial(self) -> socket.socket:
        """A socket connected to it: over the loopback, or out of its jail. Raises ConnectFailed."""
        if self.child is not None and self.child.jailed:
            return await self.child.dial()
        return await dial_port(self.port)()

    @property
    def sandbox(self) -> str:
        """The level in force, in words."""
        return "adopted, not sandboxed" if self.child is None else self.child.sandbox
