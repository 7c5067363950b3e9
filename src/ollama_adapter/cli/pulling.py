"""`pull`: a model from a registry onto this machine, with consent, one bar, and an account at the end."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine, Sequence
from typing import Any, Final

from rich.progress import BarColumn, Progress, TextColumn

from ollama_adapter.adapter import OllamaAdapter
from ollama_adapter.cli.chat import read_line
from ollama_adapter.cli.draw import LABEL, size
from ollama_adapter.cli.models import adopting
from ollama_adapter.cli.output import complain, console, harmless, means_yes, print_json, stdout
from ollama_adapter.config import Config, Pulling
from ollama_adapter.core.names import local_name
from ollama_adapter.core.registry import is_consented, source_of
from ollama_adapter.errors import PullRefused
from ollama_adapter.events import PullOffer, PullProgress, PullReceipt, PullStage
from ollama_adapter.system import settings

CONTINUED: Final = "what has come is kept: the same command goes on from there"
LINES: Final = 10  # of progress, for a reader that is no terminal


def pull(
    model: str, *, yes: bool, also_from: Sequence[str], as_json: bool
) -> Coroutine[Any, Any, None]:
    source_of(local_name(model))  # one that cannot be is said before anything is asked
    return _Pull(settings.load_config(), model, yes, list(also_from), as_json).run()


class _Pull:
    """One download, from the question to the account."""

    def __init__(
        self, config: Config, model: str, yes: bool, also_from: list[str], as_json: bool
    ) -> None:
        self._config = config
        self._model = model
        self._agreed = yes or config.pool.pulling is Pulling.ALWAYS
        self._may_ask = not as_json and sys.stdin.isatty() and sys.stdout.isatty()
        self._also_from = also_from
        self._as_json = as_json
        self._screen = console(stderr=True)
        columns = (BarColumn(), TextColumn("{task.description}", style=LABEL, markup=False))
        shown = self._screen.is_terminal and not as_json
        self._bar = Progress(*columns, console=self._screen, transient=True, disable=not shown)
        self._task = self._bar.add_task("", total=None)
        self._come = False
        self._work: asyncio.Task[Any] | None = None
        self._unheard: OSError | None = None  # nobody reads what we tell
        self._told = -1  # the last tenth of which a reader that is no terminal was told
        self._line = ""  # what it was told last

    async def run(self) -> None:
        await self._agree_to_the_registry()
        self._work = asyncio.current_task()
        adapter = OllamaAdapter(adopting(self._config))
        try:
            with self._bar:
                receipt = await adapter.pull(
                    self._model, self._tell, confirm=self._confirm, also_from=self._also_from
                )
        except asyncio.CancelledError:
            if self._unheard is not None and self._work is not None:
                self._work.uncancel()
                raise self._unheard from None
            if self._come:
                complain("note", CONTINUED)
            raise
        finally:
            await adapter.aclose()
        self._account(receipt)

    async def _agree_to_the_registry(self) -> None:
        """A host that no setting names is agreed to by name, before it is talked to."""
        source = source_of(local_name(self._model))
        if is_consented(source, (*self._config.pool.registries, *self._also_from)):
            return
        host = str(source.address)
        if self._agreed or (
            self._may_ask
            and await self._asked(f"pull from {host}, a registry that your settings do not list?")
        ):
            self._also_from.append(host)

    async def _confirm(self, offer: PullOffer) -> bool:
        if self._agreed:
            return True
        if not self._may_ask:
            raise PullRefused(
                f"{offer.model} is to be downloaded from {offer.registry}, and nobody has agreed to it",
                hint="pass --yes, or set OLLAMA_ADAPTER_POOL_PULLING=always",
            )
        amount = size(offer.missing_bytes) if offer.missing_bytes else "of unknown size"
        if 0 < offer.missing_bytes < offer.total_bytes:
            amount += f" of {size(offer.total_bytes)}"
        by = "" if offer.by == "ollama-adapter" else f" by {offer.by}"
        self._bar.stop()
        agreed = await self._asked(
            f"download {offer.model}, {amount}, from {offer.registry} into {offer.store}{by}?"
        )
        self._bar.start()
        return agreed

    async def _asked(self, question: str) -> bool:
        stdout().write_now(harmless(f"{question} [y/N] "))
        line = await read_line()
        if line is None:
            stdout().write_now("\n")  # Ctrl-D leaves the cursor behind the question
        return means_yes(line or "")

    # How far it is

    def _tell(self, progress: PullProgress) -> None:
        """In a callback, where an error would be told and not end the download."""
        try:
            self._show(progress)
        except OSError as error:
            if self._unheard is None and self._work is not None:
                self._unheard = error
                self._work.cancel()

    def _show(self, progress: PullProgress) -> None:
        if progress.stage is not PullStage.ASKING:  # what comes then is no part of the model yet
            self._come = self._come or progress.done_bytes > 0
        if self._as_json:
            return self._tell_program(progress)
        total = progress.total_bytes or None
        self._bar.update(
            self._task, completed=progress.done_bytes, total=total, description=line_of(progress)
        )
        if not self._screen.is_terminal:
            self._tell_file(progress)

    def _tell_program(self, progress: PullProgress) -> None:
        if self._is_news(progress, 100):
            print_json(
                {
                    "type": "progress",
                    "stage": progress.stage.name.lower(),
                    "done_bytes": progress.done_bytes,
                    "total_bytes": progress.total_bytes,
                    "bytes_per_s": round(progress.bytes_per_s),
                    "remaining_s": progress.remaining_s,
                    "host": progress.host,
                    "note": progress.note,
                }
            )

    def _tell_file(self, progress: PullProgress) -> None:
        if self._is_news(progress, LINES):
            self._screen.print(harmless(line_of(progress)))

    def _is_news(self, progress: PullProgress, parts: int) -> bool:
        """The first of its stage or of a part of the whole, or a fault that was not the last thing told."""
        reached = parts * progress.done_bytes // max(1, progress.total_bytes)
        place = list(PullStage).index(progress.stage) * (parts + 1) + reached
        line = line_of(progress)
        if place <= self._told and (not progress.note or line == self._line):
            return False
        self._told, self._line = max(self._told, place), line
        return True

    def _account(self, receipt: PullReceipt) -> None:
        if self._as_json:
            hosts = {each.host: [each.sent_bytes, each.received_bytes] for each in receipt.hosts}
            print_json(
                {
                    "type": "pulled",
                    "model": receipt.model,
                    "by": receipt.by,
                    "total_bytes": receipt.total_bytes,
                    "fetched_bytes": receipt.fetched_bytes,
                    "elapsed_s": round(receipt.elapsed_s, 3),
                    "hosts": hosts,
                    "sandbox": receipt.sandbox,
                }
            )
            return
        console().print(harmless(f"pulled {receipt.model}, {size(receipt.total_bytes)}"))
        for each in receipt.hosts:
            line = (
                f"{each.host}: {size(each.received_bytes)} received, {size(each.sent_bytes)} sent"
            )
            self._screen.print(harmless(line), style=LABEL)
        if receipt.by != "ollama-adapter":
            complain("note", "the daemon that runs has downloaded it by itself, into its own store")


def time_left(seconds: float) -> str:
    """As exact as it can be."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def line_of(progress: PullProgress) -> str:
    """All of it in one line: one total, the speed, what is left, who sends."""
    parts = [progress.stage.value]
    if progress.total_bytes:
        share = 100 * progress.done_bytes // progress.total_bytes
        parts = [f"{share} %", f"{size(progress.done_bytes)} of {size(progress.total_bytes)}"]
        if progress.stage is PullStage.CHECKING:
            parts.append(progress.stage.value)
        elif progress.bytes_per_s:
            parts.append(f"{size(progress.bytes_per_s)}/s")
            if progress.remaining_s is not None and progress.remaining_s >= 1:
                parts.append(f"{time_left(progress.remaining_s)} left")
    if progress.note:
        parts.append(progress.note)
    elif progress.host and progress.stage is PullStage.FETCHING:
        parts.append(progress.host)
    return " · ".join(parts)
