"""Spawning a daemon: in the best jail that holds, on a free port, until it is ready.

Nobody who adopts one needs this, nor what it imports.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from ollama_adapter.config import LOOPBACK, DaemonConfig, Sandbox
from ollama_adapter.errors import (
    DaemonError,
    DaemonExited,
    DaemonStartTimeout,
    NotOllama,
    NotSandboxed,
    PortTaken,
    TransportError,
)
from ollama_adapter.system import settings
from ollama_adapter.system.clock import Clock
from ollama_adapter.system.dialing import find_free_port
from ollama_adapter.system.jail import levels
from ollama_adapter.system.jail.paths import daemon_policy, gpu_devices
from ollama_adapter.system.jail.policy import Level, Policy
from ollama_adapter.system.probe import probe
from ollama_adapter.system.process import Child, Keeper, spawn
from ollama_adapter.system.runfile import RunFiles
from ollama_adapter.system.running import Exit, Running
from ollama_adapter.system.scope import TaskScope
from ollama_adapter.system.trust import check_program, check_spawned, check_store

PROBE_EVERY_NS: Final = 20_000_000  # while starting
PORT_TRIES: Final = 3
TAIL_LINES: Final = 5

log = logging.getLogger("ollama_adapter")


class Spawner:
    """Of one application."""

    def __init__(
        self,
        config: DaemonConfig,
        scope: TaskScope,
        clock: Clock,
        keep_alive: str,
        defaults: Callable[[], Mapping[str, str]],
    ) -> None:
        self._config = config
        self._scope = scope
        self._clock = clock
        self._keep_alive = keep_alive
        self._defaults = defaults
        self._run_files = RunFiles.of_this_user()
        self._told = False

    async def spawn(self, origin: str, argv: list[str]) -> Running:
        """Until it is ready. Raises DaemonError; nothing is left of one that does not become so."""
        if origin == "spawned":  # our own runs in the Python that runs us
            check_program(argv[0])
        for last in (False,) * (PORT_TRIES - 1) + (True,):
            port = find_free_port()
            store = settings.models_dir(self._config)
            environment = settings.daemon_environment(
                port, store, self._keep_alive, self._defaults()
            )
            check_store(store)
            self._tell_of_others()
            child = await self._jailed(argv, environment, port)
            try:
                running = Running(origin, port, await self._until_ready(child, port), child)
                self._run_files.write(0 if child.level is Level.NAMESPACES else port)
                child.exited.add_done_callback(lambda _: self._run_files.remove())
                return running
            except BaseException as error:
                child.kill()
                # a stranger that took the port may also be who answers there
                if last or not isinstance(error, (PortTaken, NotOllama)):
                    if isinstance(error, NotOllama):
                        raise _not_ollama(argv[0]) from error
                    raise
        raise AssertionError("the last try returns or raises")

    async def _jailed(self, argv: list[str], environment: Mapping[str, str], port: int) -> Child:
        """Spawn it in the best jail that holds. Raises NotSandboxed where none does that must."""
        wish, store = self._config.sandbox, Path(environment["OLLAMA_MODELS"])
        if wish is Sandbox.NONE:
            settings.check_readable(store, jailed=False)
            return await spawn(argv, environment, "/", self._scope)
        failed: dict[Level, NotSandboxed] = {}
        while True:
            with Keeper() as keeper:  # it begins while the machine is asked
                facts = await asyncio.get_running_loop().run_in_executor(None, levels.probe)
                try:
                    level = levels.decide(facts, wish.value, without=tuple(failed)).level
                except NotSandboxed as error:
                    raise next(iter(failed.values()), error) from None
                settings.check_readable(store, jailed=level is not Level.NONE)
                try:
                    policy = self._policy(level, argv, environment, port)
                    child = await spawn(argv, environment, "/", self._scope, policy, keeper=keeper)
                except NotSandboxed as error:
                    failed[level] = error
                    continue
                for other, reason in failed.items():  # where none holds, the error says why
                    log.warning("the daemon cannot be started at level %s: %s", other, reason)
                return child

    @staticmethod
    def _policy(level: Level, argv: list[str], environment: Mapping[str, str], port: int) -> Policy:
        return daemon_policy(
            level,
            argv,
            home=environment["HOME"],
            models=environment["OLLAMA_MODELS"],
            port=port,
            gpu=bool(gpu_devices()),
            models_writable=settings.may_be_written(Path(environment["OLLAMA_MODELS"])),
            also_read=settings.directories_in(environment),
        )

    def _tell_of_others(self) -> None:
        """One daemon per application; two of them hold every model twice."""
        others = self._run_files.others()
        if others and not self._told:
            self._told = True
            port = others[0].port
            log.warning(
                "another application (process %s) keeps a daemon, too, and each holds its own models; %s",
                others[0].pid,
                f"to share that one, set OLLAMA_HOST={LOOPBACK}:{port}"
                if port
                else "to share one, run it yourself: both then adopt it",
            )

    async def _until_ready(self, child: Child, port: int) -> str:
        limit_s = self._config.start_timeout_s
        deadline = self._clock.now_ns() + int(limit_s * 1e9)
        while self._clock.now_ns() < deadline:
            if child.exited.done():
                raise exit_error(child.exited.result(), port)
            with contextlib.suppress(TransportError):
                dial = Running("", port, "", child).dial
                version = await probe(dial, port, self._config.probe_timeout_s)
                if child.level is not Level.NAMESPACES:
                    check_spawned(port)  # somebody may have been there before it
                return version
            await self._clock.sleep_until_ns(self._clock.now_ns() + PROBE_EVERY_NS)
        raise DaemonStartTimeout(
            f"the daemon was not ready within {limit_s:g} s",
            hint="raise daemon.start_timeout_s, or look at the load of this machine",
        )


def exit_error(exit_: Exit, port: int) -> DaemonError:
    """Why a daemon ended before it was ready: no prompt was sent by then, so its words are shown."""
    words = "; ".join(exit_.tail.strip().splitlines()[-TAIL_LINES:])
    if "address already in use" in exit_.tail:
        return PortTaken(f"another program took the port {port}")
    return DaemonExited(
        f"the daemon ended before it was ready (code {exit_.returncode}):"
        f" {words or 'it said nothing'}",
        returncode=exit_.returncode,
        tail=exit_.tail,
    )


def _not_ollama(program: str) -> NotOllama:
    return NotOllama(
        f"the program {program} was started, and does not speak Ollama's API",
        hint="set daemon.ollama_path to the program `ollama`, or unset it",
    )
