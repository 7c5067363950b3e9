"""`import`: a GGUF file into the model store, with its progress."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

from ollama_adapter.cli.models import adopting
from ollama_adapter.cli.output import complain, console, harmless, print_json
from ollama_adapter.config import Config
from ollama_adapter.core.names import local_name
from ollama_adapter.embedded.importer import import_gguf
from ollama_adapter.errors import AdapterError, InvalidRequest, ModelNotFound
from ollama_adapter.orchestrator import Orchestrator
from ollama_adapter.system import settings


class _Stopped(Exception):
    """Raised in the thread that copies."""


def import_file(file: Path, name: str | None, *, as_json: bool) -> Coroutine[Any, Any, None]:
    if not file.name:
        raise InvalidRequest("no file was named", hint="ollama-adapter import FILE.gguf")
    config = settings.load_config()
    given = name or name_of(file)
    try:
        local_name(given)
    except InvalidRequest as error:
        if name is None:
            error.hint = "name it: ollama-adapter import FILE.gguf NAME"
        raise
    return _import(config, file, given, as_json)


def name_of(file: Path) -> str:
    """A model name from the name of its file."""
    stem = file.name.removesuffix(".gguf").removesuffix(".GGUF")
    kept = "".join(
        each if each.isascii() and (each.isalnum() or each in "._-") else "-" for each in stem
    )
    return kept.strip("-.")[:80].lower()


async def _import(config: Config, file: Path, name: str, as_json: bool) -> None:
    store = settings.models_dir(config.daemon)
    screen = console(stderr=True)
    columns = (BarColumn(), DownloadColumn(), TimeRemainingColumn())
    shown = screen.is_terminal and not as_json
    with Progress(*columns, console=screen, transient=True, disable=not shown) as progress:
        bar = progress.add_task("", total=None)

        def tell(done: int, total: int) -> None:
            progress.update(bar, completed=done, total=total)

        full_name = await _copy(file, name, store, tell)
    if as_json:
        print_json({"name": full_name, "store": str(store)})
    else:
        console().print(harmless(f"imported {full_name} into {store}"))
    await _check_seen(config, full_name)


async def _copy(file: Path, name: str, store: Path, tell: Callable[[int, int], None]) -> str:
    """The import in a thread, which cannot be cancelled: it is told to stop, and cleans up."""
    stopped = threading.Event()

    def progress(done: int, total: int) -> None:
        if stopped.is_set():
            raise _Stopped
        tell(done, total)

    work = functools.partial(import_gguf, file, name, store, progress=progress)
    copying = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return str(await asyncio.shield(copying))
    except asyncio.CancelledError:
        stopped.set()
        await asyncio.wait([copying])
        copying.exception()  # seen: it is how the thread ends
        raise


async def _check_seen(config: Config, name: str) -> None:
    """A daemon that runs may have a store of its own."""
    try:
        async with Orchestrator(adopting(config)) as orchestrator:
            await orchestrator.adapter.client.show(name)
    except ModelNotFound:
        complain(
            "warning",
            "the daemon that runs keeps its models elsewhere, and does not see this one",
            "set OLLAMA_MODELS to its store (if you may write there), or stop that daemon",
        )
    except AdapterError:
        return  # none runs: the one that will be started reads this store
