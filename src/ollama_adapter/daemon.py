"""The daemon's keeper of state: always one that answers, or a reason why there is none.

The state is a table (core.lifecycle), and this is its one writer. A supervisor, one task, gets a daemon,
asks every few seconds whether it lives (tokens that flow are proof enough), and replaces the one that
ended or fell silent, with backoff. What was adopted is never stopped: when it dies, one of ours takes
its place on another port. What was spawned always is stopped, its whole process group. However many
callers wait, one attempt is made, and they see why it takes long.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Final

from ollama_adapter.config import LOOPBACK, DaemonConfig
from ollama_adapter.core.backoff import Backoff, BackoffPolicy
from ollama_adapter.core.lifecycle import DaemonState, Signal, advance
from ollama_adapter.core.versions import ADVISED, EMBEDDED_SUFFIX, missing_features, outdated
from ollama_adapter.errors import (
    AdapterError,
    ConnectFailed,
    DaemonError,
    DaemonExited,
    DaemonNotFound,
)
from ollama_adapter.events import DaemonChange, Health
from ollama_adapter.system.bulletin import Bulletin
from ollama_adapter.system.clock import Clock
from ollama_adapter.system.launch import Launcher, is_transient
from ollama_adapter.system.probe import probe
from ollama_adapter.system.running import Running
from ollama_adapter.system.scope import TaskScope, is_orphan

SILENCES: Final = 3  # probes in a row without an answer, and it counts as dead
SUSPICION_NS: Final = 1_000_000_000  # between probes, once one has failed

log = logging.getLogger("ollama_adapter")


class OllamaDaemon:
    """One daemon for one application. `keep_alive` and `defaults` are what a spawned one goes by.

    `last_token_ns` tells when the latest token of any session arrived: then the daemon lives.
    """

    def __init__(
        self,
        config: DaemonConfig,
        scope: TaskScope,
        clock: Clock,
        keep_alive: str = "5m",
        defaults: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self._config = config
        self._scope = scope
        self._clock = clock
        self._launcher = Launcher(config, scope, clock, keep_alive, defaults)
        policy = config.restart_base_s, config.restart_cap_s, config.restart_tries, config.stable_s
        self._backoff = Backoff(BackoffPolicy(*policy))
        self._state = DaemonState.STOPPED
        self._reason = ""
        self._running: Running | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._wake: asyncio.Future[None] | None = None  # what the supervisor waits for
        self._refuses = False  # nobody listened at the last probe
        self._bulletin: Bulletin[DaemonChange] = Bulletin("the daemon's state")
        self.last_token_ns: Callable[[], int] = lambda: 0
        self.starts = 0  # how many daemons it has been: what was in memory is gone with each
        self.on_start: Callable[[], None] = lambda: None  # before anybody can reach the new one

    def __repr__(self) -> str:
        origin = self._running.origin if self._running else "none"
        return f"<OllamaDaemon {self._state}, {origin} on {LOOPBACK}:{self.port}>"

    @property
    def state(self) -> DaemonState:
        return self._state

    @property
    def port(self) -> int:
        return self._running.port if self._running else self._config.port

    @property
    def origin(self) -> str:
        """adopted, spawned or embedded; "" when there is none."""
        return self._running.origin if self._running else ""

    @property
    def pid(self) -> int | None:
        """Of the daemon that we spawned; None for one that was adopted, or none."""
        return self._running.child.pid if self._running and self._running.child else None

    @property
    def missing(self) -> tuple[str, ...]:
        """The request fields that this daemon is too old to know."""
        return missing_features(self._running.version) if self._running else ()

    @property
    def embedded(self) -> bool:
        """It is the one of this package, whoever started it."""
        return self._running is not None and self._running.version.endswith(EMBEDDED_SUFFIX)

    async def dial(self) -> socket.socket:
        """A socket connected to the daemon of this moment. Raises ConnectFailed."""
        running = self._running
        if running is None:
            raise ConnectFailed(f"there is no daemon: it is {self._state}")
        return await running.dial()

    async def ensure_running(self) -> None:
        """Until a daemon is ready. Raises DaemonError. Cancelling leaves the attempt to the others."""
        supervised = self._supervisor is not None and not self._supervisor.done()
        if self._state is DaemonState.READY and supervised:
            return
        if not supervised:
            self._supervisor = self._scope.spawn(self._supervise(), name="daemon supervisor")
        elif self._state is DaemonState.FAILED:
            self._alarm()
        error = await self._bulletin.until_settled()
        if error is not None:
            raise error

    async def check(self) -> None:
        """A connection failed: ask the daemon whether it lives. Never raises for one that does not."""
        running = self._running
        if running is not None and not await self._answers(running):
            self._alarm()

    async def health(self) -> Health:
        """Ask the daemon, and say what is known of it. Never raises for a daemon that is not well."""
        await self.check()
        running = self._running
        found = "" if running else await self._launcher.adoptable()
        return Health(
            ready=self._state is DaemonState.READY or bool(found),
            state=self._state.value,
            origin=running.origin if running else "",
            address=f"{LOOPBACK}:{self.port}",
            version=running.version if running else found,
            pid=self.pid,
            sandbox=running.sandbox if running else "",
            missing=self.missing,
            reason=self._reason,
        )

    def on_change(self, callback: Callable[[DaemonChange], None]) -> None:
        """Call `callback` at every change of state. What it raises is logged."""
        self._bulletin.on_change(callback)

    def changes(self) -> AsyncIterator[DaemonChange]:
        """Every change of state from this call on; it ends when the daemon is stopped."""
        return self._bulletin.changes()

    async def stop(self) -> None:
        """Stop what we spawned and forget what we adopted. Idempotent. Cancelling kills it at once."""
        self._signal(Signal.STOP)
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None and not is_orphan(supervisor):
            supervisor.cancel()
            await asyncio.wait([supervisor])
        running, self._running = self._running, None
        if running is not None and running.child is not None:
            await running.child.stop(self._config.stop_grace_s)
        if self._state is DaemonState.STOPPING:
            self._signal(Signal.ENDED)
        self._bulletin.settle(
            DaemonNotFound("the adapter was closed while its daemon was starting")
        )
        self._bulletin.end()

    # The supervisor

    async def _supervise(self) -> None:
        try:
            await self._live()
        except BaseException as crash:
            # A fault of ours, or the end of the loop: nobody waits for ever.
            if self._state is not DaemonState.STOPPING:
                self._running, self._state = None, DaemonState.STOPPED
                self._bulletin.settle(
                    DaemonError(f"the supervisor ended by {type(crash).__name__}")
                )
            raise

    async def _live(self) -> None:
        while True:
            self._signal(Signal.WANTED)
            error, ran_s = await self._one_life()
            self._backoff.failed(ran_s)
            self._signal(Signal.ENDED, str(error))
            if self._backoff.exhausted or not is_transient(error):
                await self._give_up(error)
            else:
                delay_s = self._backoff.delay_s(random.random())
                await self._clock.sleep_until_ns(self._clock.now_ns() + int(delay_s * 1e9))

    async def _one_life(self) -> tuple[AdapterError, float]:
        """Get a daemon and keep it until it is gone: why it is, and for how long it ran, in seconds."""
        try:
            running = await self._launcher.find()
        except AdapterError as refusal:
            return refusal, 0.0
        began_ns = self._clock.now_ns()
        self._running = running
        try:
            self._ready(running)
            error = await self._watch(running)
        finally:
            if self._state is not DaemonState.STOPPING:  # else `stop` ends it, with grace
                self._running = None
                if running.child is not None:
                    running.child.kill()
        return error, (self._clock.now_ns() - began_ns) / 1e9

    async def _watch(self, running: Running) -> AdapterError:
        silences, every_ns = 0, int(self._config.probe_every_s * 1e9)
        while True:
            await self._pause(running, SUSPICION_NS if silences else every_ns)
            if running.child is not None and running.child.exited.done():
                code = running.child.exited.result().returncode
                return DaemonExited(f"the daemon ended by itself (code {code})", returncode=code)
            if self._is_proven(every_ns):
                continue
            if await self._answers(running):
                silences = 0
                continue
            silences += 1
            if silences >= SILENCES or (running.child is None and self._refuses):
                return DaemonExited(f"the {running.origin} daemon does not answer any more")

    def _is_proven(self, every_ns: int) -> bool:
        """Tokens flow; but where callers wait for a verdict, it is asked for."""
        well = self._state is DaemonState.READY
        return well and self._clock.now_ns() - self.last_token_ns() < every_ns

    async def _pause(self, running: Running, for_ns: int) -> None:
        """Until it is time to look again: the daemon has ended, somebody is alarmed, or time is up."""
        self._wake = asyncio.get_running_loop().create_future()
        if running.child is not None:
            running.child.exited.add_done_callback(self._alarm)
        await self._clock.sleep_until_ns(self._clock.now_ns() + for_ns, unless=self._wake)
        if running.child is not None:
            running.child.exited.remove_done_callback(self._alarm)

    def _alarm(self, _: object = None) -> None:
        """The supervisor looks at once."""
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def _answers(self, running: Running) -> bool:
        try:
            await probe(running.dial, running.port, self._config.probe_timeout_s)
        except AdapterError as error:
            self._refuses = isinstance(error, ConnectFailed)
            self._verdict(running, Signal.PROBE_FAILED, str(error))
            return False
        self._refuses = False
        self._verdict(running, Signal.PROBE_OK)
        return True

    def _verdict(self, running: Running, signal: Signal, reason: str = "") -> None:
        """It may have ended, or be ending, while it was asked."""
        if running is self._running and self._state in (DaemonState.READY, DaemonState.UNHEALTHY):
            self._signal(signal, reason)

    async def _give_up(self, error: AdapterError) -> None:
        """Nothing more is tried until somebody asks again."""
        self._signal(Signal.GAVE_UP, str(error))
        self._bulletin.settle(error)
        self._wake = asyncio.get_running_loop().create_future()
        await self._wake
        self._backoff.reset()

    # The state

    def _ready(self, running: Running) -> None:
        self.starts += 1
        self.on_start()
        self._signal(Signal.PROBE_OK)
        if missing := missing_features(running.version):
            log.warning("Ollama %s is too old for: %s", running.version, ", ".join(missing))
        if outdated(running.version):
            advised = ".".join(map(str, ADVISED))
            log.warning(
                "security advisories concern Ollama before %s: %s", advised, running.version
            )

    def _signal(self, signal: Signal, reason: str = "") -> None:
        before, self._state = self._state, advance(self._state, signal)
        if self._state is before:
            return
        self._reason = reason
        log.info("the daemon is %s", self._state)
        self._bulletin.publish(DaemonChange(self._state.value, reason, self._clock.now_ns()))
        if self._state is DaemonState.READY:
            self._bulletin.settle(None)
