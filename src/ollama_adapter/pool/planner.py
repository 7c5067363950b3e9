"""Plans of the moment: what is known of a model and of memory, brought before core.planning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ollama_adapter.core.footprint import Need, need
from ollama_adapter.core.ledger import Entry, Lessons
from ollama_adapter.core.planning import Rules, as_measured, plan_load, plan_relief
from ollama_adapter.core.reloading import Held
from ollama_adapter.events import Eviction, LoadPlan
from ollama_adapter.pool.parts import Parts


class Planner:
    """Decides nothing itself, and changes nothing but what it has learned."""

    def __init__(self, parts: Parts) -> None:
        self._cooldown_ns = int(parts.config.cooldown_s * 1e9)
        self._surroundings = parts.surroundings
        self._catalogue = parts.catalogue
        self._ledger = parts.ledger
        self._clock = parts.clock
        self._lessons = Lessons()
        self.pinned: set[str] = set()

    def __repr__(self) -> str:
        return f"<Planner with {self._lessons!r}>"

    def held(self, entry: Entry) -> Held:
        """How a model was loaded."""
        return Held(entry.reloading, entry.num_ctx, self._catalogue.facts(entry.key).context)

    def keeps(self, entry: Entry) -> bool:
        """It stays for good: we have pinned it, or somebody else has."""
        return entry.held or entry.key in self.pinned

    def serves(self, entry: Entry, options: Mapping[str, Any]) -> bool:
        """It was loaded with options that mean the same."""
        held = self.held(entry)
        return all(held.has(name, value) for name, value in options.items())

    def learn(self, entry: Entry) -> None:
        """A load has succeeded, and was read back."""
        if entry.listed and entry.load_s is not None:
            digest, size = self._digest(entry.key), entry.footprint.total
            self._lessons.learn(digest, entry.reloading, size, entry.load_s)

    def plan(self, key: str, name: str, options: Mapping[str, Any]) -> LoadPlan:
        """What loading it with these options would do."""
        wanted, now_ns = self._need(key, options), self._clock.now_ns()
        entry = self._ledger.find(key)
        if entry is not None and entry.listed and self.serves(entry, options):
            return self._resident(entry, wanted, now_ns)
        return plan_load(
            name if entry is None else entry.name,  # however it is spelled: it is one model
            wanted,
            self._ledger.residents(self.pinned),
            self._surroundings.limits(),
            Rules(now_ns, self._cooldown_ns, advisory=self._surroundings.shared()),
            self._lessons.expected_s(self._digest(key), options, wanted.total),
        )

    def relief(self) -> tuple[Eviction, ...]:
        """Whom to evict since others have grown; nobody where the budget is advice."""
        if self._surroundings.shared():
            return ()
        rules = Rules(self._clock.now_ns(), self._cooldown_ns)
        residents = self._ledger.residents(self.pinned)
        return plan_relief(residents, self._surroundings.limits(), rules)

    def _resident(self, entry: Entry, wanted: Need, now_ns: int) -> LoadPlan:
        known = as_measured(wanted, entry.footprint.total)
        return LoadPlan(
            entry.name,
            fits=True,
            reason="it is in memory already",
            resident=True,
            num_ctx=entry.num_ctx or wanted.num_ctx,
            weights_bytes=known.weights_bytes,
            kv_bytes=known.kv_bytes,
            overhead_bytes=known.overhead_bytes,
            takes=entry.footprint,
            used=self._ledger.taken(),
            budget=self._surroundings.limits().budget,
            expected_s=0.0 if entry.is_warm(now_ns) else None,
            advisory=self._surroundings.shared(),
        )

    def _digest(self, key: str) -> str:
        return self._catalogue.digest(key) or key

    def _need(self, key: str, options: Mapping[str, Any]) -> Need:
        context = options.get("num_ctx") or self._catalogue.usual_context(key)
        on_gpu = self._surroundings.limits().budget.vram > 0
        facts = self._catalogue.facts(key)
        parallel = 1 if facts.embeds else self._surroundings.parallel()
        found = need(facts, context, parallel, on_gpu=on_gpu)
        seen = self._lessons.size(self._digest(key), options)
        if (
            seen or not facts.weights_bytes
        ):  # nobody is refused, or evicted, for a size that nobody said
            return as_measured(found, seen)
        return found
