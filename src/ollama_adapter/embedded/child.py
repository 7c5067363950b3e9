"""A runner, seen from the daemon: started, talked to, killed.

Its output is always drained. Until it is ready the end of it is kept, to say why a load failed; after
that nothing of it is kept, for from then on it has seen prompts.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import signal
import socket
from pathlib import Path
from typing import Any, Final

import msgspec

from ollama_adapter.embedded import wire
from ollama_adapter.embedded.orders import Plain, Process, Start
from ollama_adapter.embedded.values import ApiError

_GRAMMAR_FAILED: Final = b"llg error"
_SMALL_BYTES: Final = 1 << 26
_LOG_BYTES: Final = 1 << 16
_REASON: Final = re.compile(rb"error loading model[^\n]*")
_REASON_LINE: Final = re.compile(_REASON.pattern + rb"(?=\n)")


class Spec(msgspec.Struct, frozen=True):
    """How a model is to be loaded: a difference in any field means another runner."""

    weights: Path
    n_ctx: int
    n_batch: int
    threads: int  # 0: as the machine allows
    gpu_layers: int
    shift: bool
    embedding: bool
    parallel: int


class Runner:
    """A child process with a loaded model."""

    def __init__(self, process: Process, group: asyncio.TaskGroup) -> None:
        self._process = process
        self._key = secrets.token_hex(16)
        self._port = 0
        self.grammar_failures = 0  # the engine goes on without the grammar then, and only logs it
        self._log: bytes | None = b""
        self._words: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        group.create_task(self._drain())
        self.ended = group.create_task(self._wait())

    def __repr__(self) -> str:
        return f"<Runner pid {self._process.pid}>"

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    @classmethod
    async def start(
        cls, spec: Spec, group: asyncio.TaskGroup, start: Start = Plain.start
    ) -> Runner:
        """A runner that is ready. Cancelling kills it; ApiError tells why it cannot be had."""
        try:
            process = await start(spec.weights.name)
        except OSError as error:
            raise ApiError(500, f"error starting the model runner: {error}") from None
        runner = cls(process, group)
        try:
            await runner._hand_over(spec)
        except BaseException:
            runner.kill()
            raise
        return runner

    async def _hand_over(self, spec: Spec) -> None:
        settings = {
            **{name: getattr(spec, name) for name in Spec.__struct_fields__},
            "model": str(spec.weights),
            "key": self._key,
        }
        del settings["weights"]
        settings["threads"] = choose_threads(spec.weights.stat().st_size, spec.threads)
        await self._process.tell(msgspec.json.encode(settings) + b"\n")
        line = await self._process.report()
        report: dict[str, Any] = msgspec.json.decode(line) if line else {}
        if "port" not in report:
            raise ApiError(500, await self._why(str(report.get("error", ""))))
        self._port = report["port"]
        self._log = None

    async def _why(self, reason: str) -> str:
        """The engine's own words, where its log has some until it ends; else what else is known."""
        if words := await self._words:
            return f"the model runner has terminated: {words}"
        code = await self._process.wait()
        if code in (-signal.SIGILL, -signal.SIGTRAP):
            return "error loading model: illegal instruction: there is no engine for this CPU"
        status = f"signal {-code}" if code < 0 else f"exit status {code}"
        return f"the model runner has terminated: {status}: {reason or 'unable to load model'}"

    async def _drain(self) -> None:
        with contextlib.suppress(ValueError):
            while chunk := await self._process.log.read(_LOG_BYTES):
                if _GRAMMAR_FAILED in chunk:
                    self.grammar_failures += 1
                if self._log is not None:
                    self._log = (self._log + chunk)[-_LOG_BYTES:]
                    if found := _REASON_LINE.search(self._log):
                        self._tell(found[0])
        found = _REASON.search(self._log or b"")
        self._tell(found[0] if found else b"")

    def _tell(self, words: bytes) -> None:
        if not self._words.done():
            self._words.set_result(words.decode("utf-8", "replace"))

    async def _wait(self) -> None:
        try:
            await self._process.wait()
        except asyncio.CancelledError:
            self.kill()
            await self._process.wait()
            raise

    def kill(self) -> None:
        """End it now; safe at any time."""
        self._process.kill()

    async def stop(self) -> None:
        """End it and wait until it is gone."""
        self.kill()
        await asyncio.shield(self.ended)

    async def call(self, path: str, body: Any) -> tuple[int, bytes]:
        """One exchange; raises wire.RunnerGone."""
        async with await self.open(path, msgspec.json.encode(body)) as reply:
            return reply.status, await reply.read()

    async def open(self, path: str, body: bytes) -> wire.Reply:
        """An exchange whose answer is read as it comes; raises wire.RunnerGone."""
        return await wire.open_reply(self._dial, self._key, path, body)

    async def _dial(self) -> socket.socket:
        return await self._process.dial(self._port)


def choose_threads(model_bytes: int, wanted: int = 0) -> int:
    """How many threads a model of this size gets: more than there are free cores ruins the speed."""
    if wanted <= 0 and model_bytes < _SMALL_BYTES:
        return 1
    cores = _cores()
    if wanted > 0:
        return min(wanted, cores)
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return max(1, min(cores, round(cores - busy)))


def _cores() -> int:
    """Physical cores that we may use."""
    import psutil  # here and not above: the daemon is to answer soon

    from ollama_adapter.system import hardware

    usable = hardware.cores()
    return min(usable, psutil.cpu_count(logical=False) or usable)
