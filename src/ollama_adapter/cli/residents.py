"""`ps`, `load`, `unload`, `pin` and `unpin`: what is in memory, and what shall be.

What is in memory is a running daemon's, which outlives the command: none is started for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec

from ollama_adapter.adapter import OllamaAdapter
from ollama_adapter.cli import asking
from ollama_adapter.cli.models import FOR_EVER, add_row, adopting, instant, listing, show
from ollama_adapter.cli.output import complain, console, harmless, print_json
from ollama_adapter.cli.waiting import WaitingLine
from ollama_adapter.config import LOOPBACK, Config
from ollama_adapter.core.amounts import budget, gib
from ollama_adapter.core.durations import keep_alive_ns
from ollama_adapter.core.listing import is_for_ever, read_footprint
from ollama_adapter.core.names import key_of, local_name, weights_of
from ollama_adapter.core.reloading import check_options
from ollama_adapter.core.vocabulary import wire_keep_alive
from ollama_adapter.errors import (
    AdapterError,
    DaemonError,
    DaemonNotFound,
    InvalidRequest,
    ModelNotFound,
)
from ollama_adapter.events import Footprint
from ollama_adapter.orchestrator import Orchestrator
from ollama_adapter.system import settings
from ollama_adapter.system.clock import SystemClock
from ollama_adapter.system.runfile import RunFiles
from ollama_adapter.system.runners import at_work, listener_pid

Work = Coroutine[Any, Any, None]


@asynccontextmanager
async def running(config: Config) -> AsyncIterator[OllamaAdapter]:
    """The daemon that runs. Raises DaemonNotFound where there is none."""
    try:
        orchestrator = await Orchestrator(adopting(config)).__aenter__()
    except DaemonNotFound as error:
        ports = [each.port for each in RunFiles.of_this_user().others() if each.port]
        share = f"an application keeps one: set OLLAMA_HOST={LOOPBACK}:{ports[0]}" if ports else ""
        raise DaemonNotFound(
            f"no daemon runs on {LOOPBACK}:{config.daemon.port}, "
            "and a model stays in memory only as long as its daemon",
            hint=share or "start Ollama first; or `run`: it has a daemon for as long as it answers",
        ) from error
    try:
        yield orchestrator.adapter
    finally:
        await orchestrator.aclose()


# ps


def ps(*, as_json: bool) -> Work:
    return _ps(settings.load_config(), as_json)


async def _ps(config: Config, as_json: bool) -> None:
    found: list[dict[str, Any]] = []
    nothing = "no model is in memory"
    try:
        async with Orchestrator(adopting(config)) as orchestrator:
            found = await _residents(orchestrator.adapter)
    except DaemonError as error:
        nothing = f"{nothing}: {error}"
    if as_json:
        for each in found:
            print_json(each)
        return
    table = listing("NAME", "RAM", "VRAM", "ON GPU", "CONTEXT", "UNTIL", "STATE")
    for each in found:
        add_row(table, _resident_row(each))
    show(table, empty=nothing, spare=("CONTEXT", "ON GPU"))


async def _residents(adapter: OllamaAdapter) -> list[dict[str, Any]]:
    """As the daemon lists them, with what we know besides."""
    found = await adapter.client.ps()
    working = await _at_work(adapter, [_name(each) for each in found])
    pinned = {key_of(each) for each in adapter.config.pool.pinned}
    for each in found:
        held = footprint(each)
        each["ram_bytes"], each["vram_bytes"] = (held.ram, held.vram) if held else (None, None)
        each["busy"] = working.get(_name(each))
        for_ever = is_for_ever(each.get("expires_at"))
        each["pinned"] = for_ever or key_of(_name(each)) in pinned
    return found


async def _at_work(adapter: OllamaAdapter, names: Sequence[str]) -> dict[str, bool]:
    """Which models work at this moment, by their runners; none that cannot be seen."""
    weights: dict[str, str] = {}
    for name in names:
        with suppress(AdapterError):
            weights[name] = weights_of(await adapter.client.show(name))
    if not weights:
        return {}
    port = adapter.daemon.port
    pid = await asyncio.get_running_loop().run_in_executor(None, listener_pid, port)
    working = await at_work(pid, [each for each in weights.values() if each], SystemClock())
    return {name: working[each] for name, each in weights.items() if each in working}


def footprint(listed: Mapping[str, Any]) -> Footprint | None:
    """What an entry of /api/ps says that a model takes; None where that makes no sense."""
    held = read_footprint(listed)
    return held if held.total else None


def _resident_row(model: Mapping[str, Any]) -> list[str]:
    held = footprint(model)
    sizes = ["–", "–", "–"]
    if held is not None:
        sizes = [gib(held.ram), gib(held.vram), f"{round(100 * held.vram / held.total)} %"]
    states = {"busy": model["busy"], "idle": model["busy"] is False, "pinned": model["pinned"]}
    return [
        _name(model),
        *sizes,
        str(model.get("context_length") or "–"),
        instant(model.get("expires_at")),
        ", ".join(state for state, holds in states.items() if holds) or "–",
    ]


# load, pin, unload


class Load(msgspec.Struct, frozen=True):
    """The arguments of `load` and `pin`, as given."""

    model: str
    num_ctx: int | None
    options: Sequence[str]
    keep_alive: str | None = None
    pin: bool = False

    def prepare(self, *, as_json: bool) -> Work:
        """The work. Raises InvalidRequest, ConfigError."""
        local_name(self.model)
        fields = asking.keywords({"num_ctx": self.num_ctx}, self.options)
        options = fields.pop("options", {})
        if twice := fields.keys() & options.keys():
            raise InvalidRequest(f"{twice.pop()} is given twice", hint="as an option or with -o")
        check_options(fields | options)
        keep_alive = None if self.keep_alive is None else wire_keep_alive(self.keep_alive)
        if keep_alive is not None and not keep_alive_ns(keep_alive):
            raise InvalidRequest(
                "a model that is loaded stays for longer than 0",
                hint=f"`ollama-adapter unload {self.model}` ends its stay",
            )
        return self._load(settings.load_config(), keep_alive, fields | options, as_json)

    async def _load(
        self,
        config: Config,
        keep_alive: str | float | None,
        reloading: dict[str, Any],
        as_json: bool,
    ) -> None:
        line = WaitingLine()
        async with running(config) as adapter:
            pool = adapter.pool
            pool.on_progress(line.note)
            before = await _listed(adapter, self.model)
            try:
                if self.pin:
                    await pool.pin(self.model, **reloading)
                else:
                    await pool.ensure_loaded(self.model, keep_alive=keep_alive, reloading=reloading)
            finally:
                line.clear()
            anew = _why_anew(before, reloading) if pool.history else ""
            listed = await _listed(adapter, self.model)
            _tell_loaded(self.model, listed, anew, was=bool(before), as_json=as_json)


def _why_anew(before: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """Why a model that was in memory had to be loaded; "" where it was not there as `asked`, or gone."""
    if not before or not asked:
        return ""
    wanted = ", ".join(f"{name}={value}" for name, value in asked.items())
    had = before.get("context_length") if list(asked) == ["num_ctx"] else None
    return f"with {wanted}, since it was there with {f'num_ctx={had}' if had else 'other options'}"


def _tell_loaded(
    model: str, listed: Mapping[str, Any], anew: str, *, was: bool, as_json: bool
) -> None:
    held = footprint(listed) or Footprint()
    if as_json:
        fields = {"ram_bytes": held.ram, "vram_bytes": held.vram, "was_in_memory": was}
        print_json({"loaded": model, **fields, "loaded_anew": anew or None, **listed})
        return
    how = "was in memory" if was else "is now in memory"
    how = f"has been loaded anew {anew}" if anew else how
    until = instant(listed.get("expires_at"))
    until = until if until == FOR_EVER else f"until {until}"
    words = f"{model} {how}: {budget(held)}, {until}"
    console().print(harmless(words if listed else f"{model} has been loaded, and is gone again"))


def unload(model: str, *, as_json: bool) -> Work:
    local_name(model)
    return _unload(settings.load_config(), model, as_json)


async def _unload(config: Config, model: str, as_json: bool) -> None:
    line = WaitingLine()
    async with running(config) as adapter:
        listed = await _listed(adapter, model)
        if not listed:
            await _check_known(adapter, model)
        adapter.pool.on_progress(line.note)
        try:
            await adapter.pool.unload(model)
        finally:
            line.clear()
    held = footprint(listed) or Footprint()
    if as_json:
        print_json({"unloaded": model, "was_in_memory": bool(listed), "freed_bytes": held.total})
    elif listed:
        console().print(harmless(f"unloaded {model}: {budget(held)} are free again"))
    else:
        complain("note", f"{model} was not in memory")


async def _check_known(adapter: OllamaAdapter, model: str) -> None:
    """A name that means nothing is an error, and not just of no model in memory."""
    try:
        await adapter.client.show(model)
    except ModelNotFound as error:
        error.hint = "`ollama-adapter ps` lists what is in memory"
        raise


def unpin(model: str, *, as_json: bool) -> Work:
    local_name(model)
    return _unpin(settings.load_config(), model, as_json)


async def _unpin(config: Config, model: str, as_json: bool) -> None:
    line = WaitingLine()
    configured = local_name(model).key in map(key_of, config.pool.pinned)
    async with running(config) as adapter:
        before = await _listed(adapter, model)
        if not before:
            await _check_known(adapter, model)
        pinned = is_for_ever(before.get("expires_at"))
        adapter.pool.on_progress(line.note)
        try:
            if pinned:
                await adapter.pool.unpin(model)
        finally:
            line.clear()
        after = await _listed(adapter, model)
    if as_json:
        was = {"was_in_memory": bool(before), "was_pinned": pinned, "configured": configured}
        print_json({"unpinned": model, **was, "expires_at": after.get("expires_at")})
        return
    if pinned:
        until = f"stays until {instant(after.get('expires_at'))}" if after else "has gone"
        console().print(harmless(f"{model} is not pinned any more, and {until}"))
    else:
        complain("note", f"{model} was not {'pinned' if before else 'in memory'}")
    if configured:
        complain("note", f"pool.pinned names {model}: whoever uses it next pins it again")


async def _listed(adapter: OllamaAdapter, model: str) -> dict[str, Any]:
    """The model as the daemon lists it in memory; {} where it does not."""
    key = local_name(model).key
    return next((each for each in await adapter.client.ps() if key_of(_name(each)) == key), {})


def _name(listed: Mapping[str, Any]) -> str:
    return str(listed.get("name", ""))
