"""Who may answer in place of a model that cannot be had: core's choice among what the daemon has.

The nearest are looked at more closely, whether they fit. An error that stands says in its hint which models
would do, or why none does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ollama_adapter.client import OllamaClient
from ollama_adapter.core.footprint import Facts, facts_of
from ollama_adapter.core.names import key_of, local_name
from ollama_adapter.core.planning import too_large
from ollama_adapter.core.requests import Request
from ollama_adapter.core.substitution import Choice, choose_substitute
from ollama_adapter.errors import (
    AdapterError,
    BudgetExceeded,
    InvalidModelFile,
    ModelLoadFailed,
)
from ollama_adapter.events import Substitution
from ollama_adapter.pool import ModelPool

ENOUGH: Final = 3
"""How many that fit are looked for: the next one answers where one fails."""
_CAUSES: Final[tuple[tuple[type[AdapterError], str], ...]] = (
    (BudgetExceeded, "it does not fit into memory"),
    (ModelLoadFailed, "it could not be loaded"),
    (InvalidModelFile, "its file is damaged"),
)
MISSING: Final = "it is not on this machine"


class Standins:
    """The `substitutes` of a pool. It keeps nothing."""

    def __init__(self, client: OllamaClient, pool: ModelPool) -> None:
        self._client = client
        self._pool = pool

    def __repr__(self) -> str:
        return f"<Standins for {self._pool!r}>"

    async def __call__(self, request: Request, error: AdapterError) -> Sequence[Substitution]:
        """The best first; and what is to be known of them, into the hint of `error`. Cancelling is safe."""
        try:
            listed = await self._client.tags()
        except AdapterError:
            return ()
        choice = await self._choose(request, [facts_of(each) for each in listed])
        error.hint = "; ".join(each for each in (choice.hint, error.hint) if each)
        cause = next((words for kind, words in _CAUSES if isinstance(error, kind)), MISSING)
        return choice.substitutions(cause)

    async def _choose(self, request: Request, there: Sequence[Facts]) -> Choice:
        """Ranked, and those taken out that have been found not to fit."""
        key = local_name(request.model).key
        asked = next((each for each in there if key_of(each.name) == key), request.model)
        obstacles: dict[str, str] = {}

        def choose() -> Choice:
            return choose_substitute(
                asked,
                there,
                needs=request.needs,
                num_ctx=request.reloading.get("num_ctx", 0),
                obstacle=lambda each: obstacles.get(each.name, ""),
                resident=[each.model for each in self._pool.residents()],
            )

        fitting = 0
        for each in choose().ranked:
            obstacles[each.facts.name] = why = await self._obstacle(each.facts.name)
            fitting += not why
            if fitting == ENOUGH:
                break
        return choose()

    async def _obstacle(self, name: str) -> str:
        """Why a model could not be brought into memory; "" where it could."""
        try:
            plan = await self._pool.plan(name)
        except AdapterError as error:
            return str(error)
        if plan.fits:
            return ""
        if plan.advisory:  # it would be loaded whatever goes; but none beyond the budget
            limits = self._pool.surroundings.limits()
            return too_large(plan.weights_bytes, plan.takes.total, limits)
        return plan.reason
