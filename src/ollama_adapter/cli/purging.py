"""`purge`: what of ours lies where on the disk; and, where parts are named, their removal."""

from __future__ import annotations

import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, Final

from ollama_adapter.cli.draw import size
from ollama_adapter.cli.models import add_row, adopting, listing, show
from ollama_adapter.cli.output import complain, console, harmless, print_json
from ollama_adapter.config import Config
from ollama_adapter.errors import AdapterError, DaemonError, InvalidRequest
from ollama_adapter.orchestrator import Orchestrator
from ollama_adapter.system import settings
from ollama_adapter.system.belongings import Belonging, in_use, remove, survey
from ollama_adapter.system.runfile import RunFiles

ALL: Final = "all"
SETTINGS: Final = "settings"


def purge(parts: Sequence[str], *, yes: bool, as_json: bool) -> Coroutine[Any, Any, None]:
    config = settings.load_config()
    found = survey(config.daemon)
    if not parts:
        return _tell(found, as_json)
    chosen = choose(parts, found)
    if not yes:
        if as_json or not sys.stdin.isatty():
            raise InvalidRequest(
                "nothing is removed without being confirmed", hint="add --yes to remove it"
            )
        if chosen and not _confirmed(chosen):
            return _nothing()
    return _remove(config, chosen, as_json)


def choose(parts: Sequence[str], found: Sequence[Belonging]) -> list[Belonging]:
    """The parts that are named, once each. Raises InvalidRequest for one that is none."""
    chosen: list[Belonging] = []
    for part in parts:
        if part == ALL:
            chosen += [each for each in found if each.ours]
            continue
        named = [each for each in found if part == each.name or _is_place(part, each.place)]
        if not named:
            raise _unknown(part, found)
        chosen += named
    return list(dict.fromkeys(chosen))


def _is_place(part: str, place: Path) -> bool:
    try:
        return "/" in part and Path(part).expanduser().absolute() == place
    except RuntimeError:  # of ~nosuchuser
        return False


def _unknown(part: str, found: Sequence[Belonging]) -> InvalidRequest:
    names = ", ".join([*(each.name for each in found), ALL])
    hint = f"there is: {names}" if found else "nothing of ours is on this disk"
    foreign = next((each for each in found if not each.ours), None)
    if part == "models" and foreign is not None:
        hint = f"the models here are not ours alone; to remove them: purge {foreign.place}"
    return InvalidRequest(f"there is no {part} to remove", hint=hint)


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
    show(table, empty="nothing of ours is on this disk")
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
    answer = screen.input("remove all of this? [y/N] ", markup=False, emoji=False)
    return answer.strip().lower() in ("y", "yes")


async def _nothing() -> None:
    complain("note", "nothing was removed")


async def _remove(config: Config, chosen: Sequence[Belonging], as_json: bool) -> None:
    await _check_unused(config, chosen)
    for each in chosen:
        remove(each)
        if as_json:
            print_json({"removed": each.name, **_fields(each)})
        else:
            what = f"the link {each.place}, not {each.link}" if each.link else str(each.place)
            console().print(harmless(f"removed {each.what} ({size(each.size_bytes)}): {what}"))


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
