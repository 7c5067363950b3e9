"""What a request holds of a model in memory, from its admission to its end."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from ollama_adapter.core.ledger import Entry
from ollama_adapter.core.requests import Request
from ollama_adapter.events import Substitution


class Lender(Protocol):
    """Who gave a lease, and gets it back."""

    def has(self, entry: Entry) -> bool:
        """The model is still in memory, as far as we know."""
        ...

    def give_back(self, entry: Entry, *, used: bool) -> None:
        """One that was busy with it no longer is; `used`: it has answered a request."""
        ...


class Lease:
    """A model in memory that is busy, hence not evicted, until `release`.

    `request` is what is to be sent: with the model that serves, and the reloading options that it has.
    `notes` say in words what was changed on the way. `warm`: it was in memory when the request came.
    `vram_share` in [0, 1] is how much of it is on GPUs; None where that is not known.
    """

    __slots__ = (
        "_entry",
        "_lender",
        "notes",
        "queued_ms",
        "request",
        "substitution",
        "vram_share",
        "warm",
    )

    def __init__(
        self,
        request: Request,
        entry: Entry,
        lender: Lender,
        *,
        warm: bool,
        queued_ms: float = 0.0,
        notes: tuple[str, ...] = (),
        substitution: Substitution | None = None,
        vram_share: float | None = None,
    ) -> None:
        self._entry = entry
        self._lender: Lender | None = lender  # until it is released
        self.vram_share = vram_share
        self.request = request
        self.warm = warm
        self.queued_ms = queued_ms
        self.notes = notes
        self.substitution = substitution

    def __repr__(self) -> str:
        return f"<Lease of {self.model}{'' if self._lender else ', released'}>"

    @property
    def model(self) -> str:
        """The one that serves."""
        return self.request.model

    @property
    def valid(self) -> bool:
        """The model is still held in memory; not where its daemon has ended, and the model with it."""
        return self._lender is not None and self._lender.has(self._entry)

    def release(self) -> None:
        """The model is not needed any more: its keep-alive begins. Idempotent, and never waits."""
        lender, self._lender = self._lender, None
        if lender is not None:
            lender.give_back(self._entry, used=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()
