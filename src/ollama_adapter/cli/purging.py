"""`purge`: what of ours lies where on the disk; and, where parts are named, their removal."""

from __future__ import annotations

import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, Final

from ollama_adapter.cli.draw import size
from ollama_adapter.cli.models import add_row, adopting, listing, show
from ollama_adapter.cli.output import asked, complain, console, harmless, print_json
from ollama_adapter.config import Config
from ollama_adapter.errors import AdapterError, DaemonError, InvalidRequest
from ollama_adapter.orchestrator import Orchestrator
from ollama_adapter.system import settings
from ollama_adapter.system.belongings import Belonging, in_use, remove, survey
from ollama_adapter.system.runfile import RunFiles

ALL: Final = "all"
MODELS: Final = "models"
NOTHING: Final = "nothing of ours is on this disk"
SETTINGS: Final = "settings"


def purge(parts: Sequence[str], *, yes: bool, as_json: bool) -> Coroutine[Any, Any, None]:
    config = settings.load_config()
    known = survey(config.daemon)
    if not parts:
        return _tell([each for each in known if each.paths], as_json)
    named = choose(parts, known)
    chosen = [each for each in named if each.paths]
    if chosen and not yes:
        if as_json or not sys.stdin.isatty():
            raise InvalidRequest(
                "nothing is removed without being confirmed", hint="add --yes to remove it"
            )
        if not _confirmed(chosen):
            return _nothing()
    return _remove(config, named, known, as_json)


def choose(parts: Sequence[str], known: Sequence[Belonging]) -> list[Belonging]:
    """The parts that are named, once each; for `all`, those that are there. Raises InvalidRequest."""
    chosen: list[Belonging] = []
    for part in parts:
        if part == ALL:
            chosen += [each for each in known if each.ours and each.paths]
            continue
        named = [each for each in known if part == each.name or _is_place(part, each.place)]
        if not named:
            raise _unknown(part, known)
        chosen += named
    return list(dict.fromkeys(chosen))


def _is_place(part: str, place: Path) -> bool:
    try:
        return "/" in part and Path(part).expanduser().absolute() == place
    except RuntimeError:  # of ~nosuchuser
        return False


def _unknown(part: str, known: Sequence[Belonging]) -> InvalidRequest:
    names = ", ".join([*(each.name for each in known if each.ours or each.paths), ALL])
    message = f"there is no part {part}" if part else "the name of a part is empty"
    return InvalidRequest(message, hint=f"the parts are: {names}")


async def _tell(found: Sequence[Belonging], as_json: bool) -> None:
    if as_json:
        for each in found:
            print_json({"part": each.name, **_fields(each)})
        return
    table = listing("PART", "SIZE", "FILES", "WHAT", "WHERE")
    for each in found:
        where = f"{each.place} (a link to {each.link})" if each.link else str(each.place)
        name = each.name if each.ours else "–"
        add_row(table, [name, size(each.size_bytes), str(each.files), each.what, where])
    show(table, empty=NOTHING)
    if found:
        complain(
            "note",
            "nothing was removed",
            "ollama-adapter purge PART... removes; the part `all` is everything of ours",
        )


def _fields(each: Belonging) -> dict[str, Any]:
    return {
        "what": each.what,
        "place": str(each.place),
        "bytes": each.size_bytes,
        "files": each.files,
        "ours": each.ours,
        "link": each.link,
    }


def _confirmed(chosen: Sequence[Belonging]) -> bool:
    screen = console(stderr=True)
    for each in chosen:
        words = f"{each.what}: {size(each.size_bytes)} in {each.files} files, {each.place}"
        screen.print(harmless(words), soft_wrap=True)
    return asked("remove all of this?")


async def _nothing() -> None:
    complain("note", "nothing was removed")


async def _remove(
    config: Config, named: Sequence[Belonging], known: Sequence[Belonging], as_json: bool
) -> None:
    chosen = [each for each in named if each.paths]
    await _check_unused(config, chosen)
    for each in chosen:
        remove(each)
        if as_json:
            print_json({"removed": each.name, **_fields(each)})
        else:
            what = f"the link {each.place}, not {each.link}" if each.link else str(each.place)
            console().print(harmless(f"removed {each.what} ({size(each.size_bytes)}): {what}"))
    for each in named:
        if each.paths:
            continue
        if as_json:
            print_json({"absent": each.name, **_fields(each)})
        else:
            complain("note", f"there is nothing to remove in {each.name}", _elsewhere(each, known))
    if not named and not as_json:
        complain("note", NOTHING)


def _elsewhere(part: Belonging, known: Sequence[Belonging]) -> str:
    """Where there are models, if there are none of ours."""
    stores = [each for each in known if each.paths and not each.ours and each.what != SETTINGS]
    if part.name != MODELS or not stores:
        return ""
    return f"the models here are not ours alone; to remove them: purge {stores[0].place}"


async def _check_unused(config: Config, chosen: Sequence[Belonging]) -> None:
    """Raises DaemonError where somebody works with these files."""
    if all(each.name == SETTINGS for each in chosen):
        return
    if others := RunFiles.of_this_user().others():
        raise DaemonError(
            f"another application (process {others[0].pid}) keeps a daemon, which may use these files",
            hint="end that application first; nothing was removed",
        )
    for each in chosen:
        if use := in_use(each):
            raise DaemonError(use, hint="wait for it, or end it first; nothing was removed")
    if not all(each.ours for each in chosen) and (address := await _adoptable(config)):
        raise DaemonError(
            f"a daemon runs on {address}, and may use these files",
            hint="stop it first; nothing was removed",
        )


async def _adoptable(config: Config) -> str:
    """Where a daemon runs that is not ours; "" for none."""
    try:
        async with Orchestrator(adopting(config)) as orchestrator:
            return (await orchestrator.adapter.health()).address
    except AdapterError:
        return ""
