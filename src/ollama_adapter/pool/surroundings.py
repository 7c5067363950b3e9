"""What a pool is told of the world it works in: how much it may use, whose daemon it is, who pulls."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec

from ollama_adapter.core.requests import Request
from ollama_adapter.core.tiers import Limits
from ollama_adapter.errors import AdapterError
from ollama_adapter.events import Footprint, LoadProgress, Substitution

Progress = Callable[[LoadProgress], None]
Pull = Callable[[str, Progress], Awaitable[None]]
"""Downloads a model. Raises PullFailed, PullRefused."""
Activity = Callable[[str], Awaitable[float | None]]
"""A number that moves while the runner of these weights (the name of their file) works; None: not known."""
Substitutes = Callable[[Request, AdapterError], Awaitable[Sequence[Substitution]]]
"""What may answer in place of a model that cannot be had, the best one first; the error's hint tells it."""

_EVERYTHING: Final = 1 << 60
UNLIMITED: Final = Limits(Footprint(_EVERYTHING), _EVERYTHING, 1 << 30, 1 << 30, (0.0, None))


def _unlimited() -> Limits:
    return UNLIMITED


def _own() -> bool:
    return False


def _one() -> int:
    return 1


async def _unknown(_: str) -> float | None:
    return None


class Surroundings(msgspec.Struct):
    """The seams of a pool. `limits`, `shared` and `parallel` are asked anew for every plan.

    `shared`: others use the daemon, too, and no budget binds them: ours is advisory then. `parallel`: for
    how many requests at a time the daemon keeps a model's context; 1 where that is not known.
    """

    limits: Callable[[], Limits] = _unlimited
    shared: Callable[[], bool] = _own
    parallel: Callable[[], int] = _one
    activity: Activity = _unknown
    pull: Pull | None = None
    substitutes: Substitutes | None = None
