"""The daemon: adopt the one that runs, else spawn the installed Ollama, else spawn our own.

Its state is a table (core.lifecycle), and this is the state's one writer. Ready means HTTP 200 on
/api/version, nothing less. What was adopted is never stopped; what was spawned always is, its whole
process group, on every way out. However many callers wait, one attempt is made.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from typing import Any, Final

from ollama_adapter.config import LOOPBACK, DaemonConfig, DaemonMode
from ollama_adapter.core.lifecycle import DaemonState, Signal, advance
from ollama_adapter.core.versions import ADVISED, missing_features, outdated
from ollama_adapter.errors import (
    AdapterError,
    ConnectFailed,
    DaemonError,
    DaemonExited,
    DaemonNotFound,
    DaemonStartTimeout,
    NotOllama,
    PortTaken,
    ReadTimeout,
    TransportError,
)
from ollama_adapter.events import Health
from ollama_adapter.system import settings
from ollama_adapter.system.clock import Clock
from ollama_adapter.system.http import dial_port, find_free_port
from ollama_adapter.system.probe import probe
from ollama_adapter.system.process import Child, spawn
from ollama_adapter.system.scope import TaskScope

PROBE_EVERY_NS: Final = 20_000_000  # while starting
PORT_TRIES: Final = 3
TAIL_LINES: Final = 5
INSTALL_HINT: Final = (
    "start Ollama, or install it, or install our own daemon: pip install 'ollama-adapter[embedded]'"
)

log = logging.getLogger("ollama_adapter")


class OllamaDaemon:
    """One daemon for one application. `keep_alive` is the default that a spawned one is given."""

    def __init__(
        self, config: DaemonConfig, scope: TaskScope, clock: Clock, keep_alive: str = "5m"
    ) -> None:
        self._config = config
        self._scope = scope
        self._clock = clock
        self._keep_alive = keep_alive
        self._state = DaemonState.STOPPED
        self._child: Child | None = None
        self._attempt: asyncio.Task[AdapterError | None] | None = None
        self._port = config.port
        self._origin = ""
        self._version = ""
        self.starts = 0  # how many daemons it has been: what was in memory is gone with each

    def __repr__(self) -> str:
        return f"<OllamaDaemon {self._state} {self._origin} {LOOPBACK}:{self._port}>"

    @property
    def state(self) -> DaemonState:
        return self._state

    @property
    def port(self) -> int:
        return self._port

    async def dial(self) -> socket.socket:
        """A socket connected to the daemon of this moment."""
        return await dial_port(self._port)()

    async def ensure_running(self) -> None:
        """Until a daemon is ready. Raises DaemonError. Cancelling leaves the attempt to the others."""
        if self._state is DaemonState.READY:
            return
        if self._attempt is None or self._attempt.done():
            self._attempt = self._scope.spawn(self._attempt_result(), name="daemon start")
        error = await self._result_of(self._attempt)
        if error is not None:
            raise error

    async def _result_of(self, attempt: asyncio.Task[AdapterError | None]) -> AdapterError | None:
        try:
            return await asyncio.shield(attempt)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return DaemonNotFound("the adapter was closed while its daemon was starting")

    async def check(self) -> None:
        """A connection failed: find out whether the daemon is well. Never raises for one that is not."""
        if self._state in (DaemonState.READY, DaemonState.UNHEALTHY):
            try:
                await self._probe(self._port)
                self._signal_if_alive(Signal.PROBE_OK)
            except AdapterError:
                self._signal_if_alive(Signal.PROBE_FAILED)

    async def health(self) -> Health:
        """Ask the daemon, and say what is known of it. Never raises for a daemon that is not well."""
        await self.check()
        return Health(
            ready=self._state is DaemonState.READY,
            state=self._state.value,
            origin=self._origin,
            address=f"{LOOPBACK}:{self._port}",
            version=self._version,
            pid=self._child.pid if self._child else None,
            sandbox="adopted, not sandboxed" if self._origin == "adopted" else "none",
            missing=missing_features(self._version),
        )

    async def stop(self) -> None:
        """Stop what we spawned and forget what we adopted. Idempotent. Cancelling kills it at once."""
        if self._attempt is not None and not self._attempt.done():
            self._attempt.cancel()
            await asyncio.wait([self._attempt])
        child, self._child = self._child, None
        self._signal(Signal.STOP)
        if child is not None:
            await child.stop(self._config.stop_grace_s)
        if self._state is DaemonState.STOPPING:
            self._signal(Signal.EXITED)
        else:
            self._state = DaemonState.STOPPED

    # One attempt

    async def _attempt_result(self) -> AdapterError | None:
        """Its error is for whoever waits, not for the scope."""
        try:
            await self._start()
        except AdapterError as error:
            self._signal(Signal.GAVE_UP)
            return error
        return None

    async def _start(self) -> None:
        if self._state is DaemonState.UNHEALTHY and not await self._recovers():
            self._bury()
        if self._state is not DaemonState.READY:
            await self._find()

    async def _recovers(self) -> bool:
        try:
            await self._probe(self._port)
        except AdapterError:
            return False
        self._signal(Signal.PROBE_OK)
        return True

    def _bury(self) -> None:
        """What we spawned and does not answer is ended; what we adopted is left alone."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
        self._signal(Signal.EXITED)

    async def _find(self) -> None:
        mode = self._config.mode
        refusals: list[str] = []
        if mode in (DaemonMode.AUTO, DaemonMode.ADOPT):
            try:
                return await self._adopt()
            except DaemonError as error:
                if mode is DaemonMode.ADOPT:
                    raise
                refusals.append(str(error))
        for origin, argv in self._candidates():
            try:
                return await self._spawn(origin, argv)
            except DaemonError as error:
                if mode is not DaemonMode.AUTO:
                    raise
                log.warning("the %s daemon did not start: %s", origin, type(error).__name__)
                refusals.append(str(error))
        raise DaemonNotFound(
            f"no daemon can be had: {'; '.join(refusals) or 'nothing to spawn is installed'}",
            hint=INSTALL_HINT,
        )

    def _candidates(self) -> list[tuple[str, list[str]]]:
        """What can be spawned here, best first."""
        found: list[tuple[str, list[str]]] = []
        ollama = settings.find_ollama(self._config)
        if self._config.mode is not DaemonMode.EMBEDDED and ollama:
            found.append(("spawned", [ollama, "serve"]))
        if self._config.mode is not DaemonMode.OLLAMA and settings.has_embedded_engine():
            found.append(("embedded", settings.embedded_command()))
        return found

    async def _adopt(self) -> None:
        try:
            version = await self._probe(self._config.port)
        except ConnectFailed as error:
            raise DaemonNotFound(
                f"nothing listens on {LOOPBACK}:{self._config.port}", hint=INSTALL_HINT
            ) from error
        except ReadTimeout as error:
            raise NotOllama(
                f"what listens on {LOOPBACK}:{self._config.port} does not answer",
                hint="if it is Ollama, it may be starting or stuck: try again, or restart it",
            ) from error
        self._ready("adopted", self._config.port, version)

    async def _spawn(self, origin: str, argv: list[str]) -> None:
        for last in (False,) * (PORT_TRIES - 1) + (True,):
            port = find_free_port()
            store = settings.models_dir(self._config)
            environment = settings.daemon_environment(port, store, self._keep_alive)
            self._child = await spawn(argv, environment, "/", self._scope)
            self._signal(Signal.SPAWNED)
            try:
                version = await self._until_ready(self._child, port)
                return self._ready(origin, port, version)
            except BaseException as error:
                child, self._child = self._child, None
                child.kill()
                self._signal(Signal.EXITED)
                if last or not isinstance(error, PortTaken):
                    raise

    async def _until_ready(self, child: Child, port: int) -> str:
        limit_s = self._config.start_timeout_s
        deadline = self._clock.now_ns() + int(limit_s * 1e9)
        while self._clock.now_ns() < deadline:
            if child.exited.done():
                exit_ = child.exited.result()
                raise _exit_error(exit_.returncode, exit_.tail, port)
            with contextlib.suppress(TransportError):
                return await self._probe(port)
            await self._clock.sleep_until_ns(self._clock.now_ns() + PROBE_EVERY_NS)
        raise DaemonStartTimeout(
            f"the daemon was not ready within {limit_s:g} s",
            hint="raise daemon.start_timeout_s, or look at the load of this machine",
        )

    async def _probe(self, port: int) -> str:
        return await probe(port, self._config.probe_timeout_s)

    def _ready(self, origin: str, port: int, version: str) -> None:
        self._origin, self._port, self._version = origin, port, version
        self.starts += 1
        self._signal(Signal.PROBE_OK)
        if self._child is not None:
            self._child.exited.add_done_callback(self._child_exited)
        if missing := missing_features(version):
            log.warning("Ollama %s is too old for: %s", version, ", ".join(missing))
        if outdated(version):
            log.warning(
                "Ollama %s is older than %s, and security advisories concern it",
                version,
                ".".join(map(str, ADVISED)),
            )

    def _child_exited(self, exited: asyncio.Future[Any]) -> None:
        if self._child is not None and self._child.exited is exited:
            log.warning("the daemon ended by itself (code %s)", exited.result().returncode)
            self._child = None
            self._signal(Signal.EXITED)

    def _signal(self, signal: Signal) -> None:
        self._state = advance(self._state, signal)

    def _signal_if_alive(self, signal: Signal) -> None:
        """The child may have ended while we asked it: then its end has been told already."""
        if self._state in (DaemonState.READY, DaemonState.UNHEALTHY):
            self._signal(signal)


def _exit_error(returncode: int | None, tail: str, port: int) -> DaemonError:
    """Why a daemon ended before it was ready; no prompt has been sent by then, so its words are shown."""
    words = "; ".join(tail.strip().splitlines()[-TAIL_LINES:])
    if "address already in use" in tail:
        return PortTaken(f"another program took the port {port}")
    return DaemonExited(
        f"the daemon ended before it was ready (code {returncode}): {words or 'it said nothing'}",
        returncode=returncode,
        tail=tail,
    )
