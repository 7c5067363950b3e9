"""Who has agreed to a download, who is asked once its size is known, and who is told how far it is."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable

from ollama_adapter.core.pull_errors import trust_hint
from ollama_adapter.core.registry import Source, is_consented
from ollama_adapter.errors import PullRefused
from ollama_adapter.events import PullOffer, PullProgress

Report = Callable[[PullProgress], None]
Confirm = Callable[[PullOffer], Awaitable[bool]]
"""Asks for consent once the size is known; False ends the pull with PullRefused."""

log = logging.getLogger("ollama_adapter")


def check_consent(source: Source, registries: Iterable[str]) -> None:
    """Raises PullRefused for a registry that nobody has agreed to."""
    if not is_consented(source, registries):
        host = str(source.address)
        raise PullRefused(
            f"{host} is not a registry that models may be pulled from here",
            hint=trust_hint(host),
        )


def no_consent(model: str) -> PullRefused:
    """For a model that is missing, where nobody has agreed to download it."""
    return PullRefused(
        f"{model} is not on this machine, and downloads need your consent",
        hint=f'`ollama-adapter pull {model}` asks for it once; `pulling = "always"` in the section [pool] '
        "of the settings gives it for every model",
    )


def guarded(report: Report | None) -> Report:
    """The same; what it raises is told, and does not end a download that others may wait for, too."""

    def tell(progress: PullProgress) -> None:
        if report is not None:
            try:
                report(progress)
            except Exception:
                log.exception("a callback for the progress of a pull raised")

    return tell
