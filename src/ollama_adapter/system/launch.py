"""Getting a daemon: adopt the one that runs, else spawn the installed Ollama, else spawn our own.

Ready means HTTP 200 on /api/version, nothing less: Ollama opens its port seconds before it answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import cached_property
from typing import Final

from ollama_adapter.config import LOOPBACK, DaemonConfig, DaemonMode
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
)
from ollama_adapter.events.health import ADOPTED
from ollama_adapter.system import settings
from ollama_adapter.system.clock import Clock
from ollama_adapter.system.dialing import dial_port
from ollama_adapter.system.probe import probe
from ollama_adapter.system.running import Running
from ollama_adapter.system.scope import TaskScope
from ollama_adapter.system.trust import check_listener

_EMBEDDED: Final = "pip install 'ollama-adapter[embedded]'"

log = logging.getLogger("ollama_adapter")


class Launcher:
    """Knows how this application may get a daemon."""

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

    @cached_property
    def _spawn(self) -> Callable[[str, list[str]], Awaitable[Running]]:
        from ollama_adapter.system.spawning import Spawner  # for those alone who spawn

        spawner = Spawner(self._config, self._scope, self._clock, self._keep_alive, self._defaults)
        return spawner.spawn

    async def find(self) -> Running:
        """The first daemon that can be had. Raises DaemonError; cancelling ends what was begun."""
        try:
            return await self._first()
        except AdapterError:  # one of them is a TimeoutError, which Python counts among OSErrors
            raise
        except OSError as error:
            raise DaemonError(
                f"no daemon can be started: {error.strerror or type(error).__name__}",
                hint="look at the limits on open files and processes",
            ) from error

    async def adoptable(self) -> str:
        """The version of a daemon that could be adopted at this moment; "" for none."""
        if self._config.mode in (DaemonMode.AUTO, DaemonMode.ADOPT):
            with contextlib.suppress(AdapterError, OSError):
                return (await self._adopt()).version
        return ""

    async def _first(self) -> Running:
        mode = self._config.mode
        refusals: list[DaemonError] = []
        if mode in (DaemonMode.AUTO, DaemonMode.ADOPT):
            try:
                return await self._adopt()
            except DaemonError as error:
                refusals.append(error)
        failed: list[tuple[str, DaemonError]] = []
        for origin, argv in self._candidates():
            try:
                running = await self._spawn(origin, argv)
            except DaemonError as error:
                failed.append((origin, error))
                continue
            for other, reason in failed:  # where none starts, the error has all their reasons
                log.warning("the %s daemon did not start: %s", other, reason)
            return running
        raise _sum_up([*refusals, *(each for _, each in failed)], mode)

    def _candidates(self) -> list[tuple[str, list[str]]]:
        """What can be spawned here, best first."""
        found: list[tuple[str, list[str]]] = []
        mode = self._config.mode
        ollama = settings.find_ollama(self._config)
        if mode in (DaemonMode.AUTO, DaemonMode.OLLAMA) and ollama:
            found.append(("spawned", [ollama, "serve"]))
        if mode in (DaemonMode.AUTO, DaemonMode.EMBEDDED) and settings.has_embedded_engine():
            found.append(("embedded", settings.embedded_command()))
        return found

    async def _adopt(self) -> Running:
        port = self._config.port
        check_listener(port, self._config.adopt_uids)
        try:
            version = await probe(dial_port(port), port, self._config.probe_timeout_s)
        except ConnectFailed as error:
            raise DaemonNotFound(
                f"nothing listens on {LOOPBACK}:{port}", hint=remedy(self._config.mode)
            ) from error
        except ReadTimeout as error:
            raise NotOllama(
                f"what listens on {LOOPBACK}:{port} does not answer",
                hint="if it is Ollama, it may be starting or stuck: try again, or restart it",
            ) from error
        return Running(ADOPTED, port, version)


def is_transient(error: Exception) -> bool:
    """Trying again may help."""
    return isinstance(error, (DaemonExited, DaemonStartTimeout, PortTaken, asyncio.TimeoutError))


def remedy(mode: DaemonMode) -> str:
    """What there is to do where no daemon can be had: nothing that is done, nothing that does not help."""
    if mode is DaemonMode.ADOPT:
        return "start Ollama, or install it (daemon.mode is adopt, and starts none)"
    if mode is DaemonMode.OLLAMA:
        return "install Ollama (daemon.mode is ollama)"
    if mode is DaemonMode.EMBEDDED:
        return _EMBEDDED
    ours = "" if settings.has_embedded_engine() else f", or install our own daemon: {_EMBEDDED}"
    return f"start Ollama, or install it{ours}"


def _sum_up(refusals: list[DaemonError], mode: DaemonMode) -> DaemonError:
    """One error for all: the only one, or the worst of them with the reasons of all."""
    if len(refusals) == 1:
        return refusals[0]
    reasons = "; ".join(map(str, refusals)) or "nothing to spawn is installed"
    message = f"no daemon can be had: {reasons}"
    hint = (refusals[-1].hint if refusals else "") or remedy(mode)
    for each in refusals:
        if isinstance(each, DaemonExited):
            return DaemonExited(message, returncode=each.returncode, tail=each.tail, hint=hint)
    return DaemonNotFound(message, hint=hint)
