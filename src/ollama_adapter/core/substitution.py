"""Which model answers in place of one that cannot be had: missing, too large, or failing to load.

A candidate must be able to do what the request needs, and fit. Of those that do, the nearest is the best:
by its line and family, its size, its quantisation, in one measure of doublings, so that a small cousin is
not taken for a large model where a stranger of nearly its size is there. Between equals one that is in
memory already is preferred. Never chosen: a model that runs elsewhere, and the bundled demonstration model,
which knows nothing: what it says would look like an answer, and be none. Who wants it names it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from math import log2
from typing import Final

import msgspec

from ollama_adapter.core.footprint import Facts
from ollama_adapter.core.gguf import human_count
from ollama_adapter.core.kinship import Kinship, Traits, bits_of, kinship, traits_of
from ollama_adapter.core.names import key_of, parse_name
from ollama_adapter.errors import InvalidRequest
from ollama_adapter.events import Substitution

COMPLETION: Final = "completion"
EMBEDDING: Final = "embedding"
KINSHIP_DOUBLINGS: Final = {
    Kinship.SAME_MODEL: 0.0,
    Kinship.SAME_VERSION: 0.5,
    Kinship.SAME_LINE: 1.0,
    Kinship.SAME_FAMILY: 1.5,
    Kinship.STRANGERS: 2.0,
}
"""What less kinship is worth, in doublings of the size."""
WORD_DOUBLINGS: Final = 0.5
"""The same, for each word that only one of the names has: made for something else, such as code."""
BITS_DOUBLINGS: Final = 0.25
"""The same, for each halving of the bits per weight."""
UNKNOWN_DOUBLINGS: Final = 3.0
"""How far off a size is taken to be that nobody knows."""
USUAL_BITS: Final = 4.8
"""Bits per weight of the usual quantisation, where the file's own is not known."""
SHOWN: Final = 5
"""How many models an error names."""
_EMBEDDING_FAMILIES: Final = ("bert", "nomic-bert", "jina-bert-v2", "xlm-roberta")
_KIN: Final = {
    Kinship.SAME_MODEL: "same model",
    Kinship.SAME_VERSION: "same family and version",
    Kinship.SAME_LINE: "same family, another version",
    Kinship.SAME_FAMILY: "same family",
    Kinship.STRANGERS: "another family",
}
_ABILITIES: Final = {"tokens": "the vocabulary of the tokens in the request"}
"""What a model may lack, where that is not the daemon's word. Only the model itself has its tokens."""


class Candidate(msgspec.Struct, frozen=True):
    """A model that would do: how far it is from the one asked for, in doublings, and why, in words."""

    facts: Facts
    distance: float
    reason: str

    def __str__(self) -> str:
        return f"{self.facts.name} ({self.reason})"


class Choice(msgspec.Struct, frozen=True):
    """The models that would do in place of `asked`, the best first, and of the others why they would not."""

    asked: str
    ranked: tuple[Candidate, ...]
    refused: tuple[tuple[str, str], ...]

    def substitutions(self, cause: str) -> tuple[Substitution, ...]:
        """By each of them, because of `cause`, such as "it is not on this machine"."""
        return tuple(
            Substitution(self.asked, each.facts.name, f"{cause}; instead {each.reason}")
            for each in self.ranked
        )

    @property
    def hint(self) -> str:
        """For an error: which models would do, or why none does."""
        if self.ranked:
            return f"these would do: {_list([str(each) for each in self.ranked])}"
        if self.refused:
            told = [f"{name} ({why})" for name, why in self.refused]
            return f"no model here can take its place: {_list(told)}"
        return "there is no other model here"


def choose_substitute(
    asked: Facts | str,
    candidates: Sequence[Facts],
    *,
    needs: Collection[str] = (COMPLETION,),
    num_ctx: int = 0,
    obstacle: Callable[[Facts], str] = lambda _: "",
    resident: Collection[str] = (),
) -> Choice:
    """Rank the candidates for one that is asked for by a name or known by its facts.

    `needs` are the capabilities that the request makes use of, `num_ctx` the context that it asks for. A
    model that completes is never replaced by one that makes embeddings, nor the other way round.
    `obstacle` says why a model cannot be loaded, such as the budget ("": it can). `resident` are names of
    models in memory. The order of the candidates makes no difference.
    """
    wanted = _Wanted.of(asked)
    needs = wanted.kind_and(needs)
    held = {key_of(each) for each in resident}
    ranked: list[tuple[tuple[float, bool, float, float, str], Candidate]] = []
    refused: list[tuple[str, str]] = []
    for facts in sorted(candidates, key=lambda each: each.name):
        if key_of(facts.name) == wanted.key:
            continue
        if why := _refusal(wanted, facts, needs, num_ctx) or obstacle(facts):
            refused.append((facts.name, why))
            continue
        found = wanted.compare(facts)
        rank = (round(found.distance, 1), key_of(facts.name) not in held, found.distance)
        ranked.append(((*rank, -(_parameters(facts) or 0.0), facts.name), found))
    ranked.sort(key=lambda each: each[0])
    return Choice(wanted.name, tuple(found for _, found in ranked), tuple(refused))


def is_demonstration(facts: Facts) -> bool:
    """The bundled model, also under a name that somebody gave to a copy."""
    return "demonstration" in facts.families or _traits(facts.name).model == "tinydoc"


def capabilities_of(facts: Facts) -> Collection[str]:
    """What a model can do; of one whose daemon is too old to say, what its family is for."""
    if facts.capabilities:
        return facts.capabilities
    return (EMBEDDING,) if facts.family.lower() in _EMBEDDING_FAMILIES else (COMPLETION,)


class _Wanted(msgspec.Struct, frozen=True):
    """What is known of the model that was asked for."""

    name: str
    key: str
    digest: str
    kind: str
    family: str
    traits: Traits
    parameters: float | None
    bits: int | None

    @classmethod
    def of(cls, asked: Facts | str) -> _Wanted:
        facts = Facts(asked) if isinstance(asked, str) else asked
        kind = COMPLETION if COMPLETION in capabilities_of(facts) else EMBEDDING
        return cls(
            facts.name,
            key_of(facts.name),
            facts.digest,
            kind,
            facts.family,
            _traits(facts.name),
            _parameters(facts),
            _bits(facts),
        )

    def kind_and(self, needs: Collection[str]) -> Collection[str]:
        """The needs, and what a model like this one is for where they do not say it."""
        return needs if {COMPLETION, EMBEDDING} & set(needs) else {*needs, self.kind}

    def compare(self, facts: Facts) -> Candidate:
        """How far a model is from this one, and how so."""
        traits = _traits(facts.name)
        kin = kinship(self.traits, traits, (self.family, facts.family))
        words = min(len(self.traits.words ^ traits.words), 2)
        parameters = _parameters(facts)
        distance = (
            KINSHIP_DOUBLINGS[kin]
            + words * WORD_DOUBLINGS
            + _doublings(self.parameters, parameters, UNKNOWN_DOUBLINGS)
            + _doublings(self.bits, _bits(facts), 0.0) * BITS_DOUBLINGS
        )
        said = [_KIN[kin], _size_in_words(self.parameters, parameters), facts.quantization]
        return Candidate(facts, distance, ", ".join(each for each in said if each))


def _refusal(wanted: _Wanted, facts: Facts, needs: Collection[str], num_ctx: int) -> str:
    """Why a model would not do, whatever memory there is; "" where it would."""
    if not key_of(facts.name):
        return "its name cannot be used"
    if facts.remote or parse_name(facts.name).is_cloud:
        return "it runs on another machine"
    if is_demonstration(facts):
        return "a demonstration that knows nothing: it answers only where it is asked for by name"
    if facts.digest and facts.digest == wanted.digest:
        return "the same file under another name"
    able = capabilities_of(facts)
    if lacks := [_ABILITIES.get(each, each) for each in sorted(needs) if each not in able]:
        return f"it lacks {' and '.join(lacks)}"
    if 0 < facts.context < num_ctx:
        return f"its context is {facts.context} tokens, {num_ctx} are asked for"
    return ""


def _traits(name: str) -> Traits:
    try:
        return traits_of(parse_name(name))
    except InvalidRequest:
        return Traits()


def _parameters(facts: Facts) -> float | None:
    """By the file, else by the name, else by the size of the file."""
    if known := facts.parameters or _traits(facts.name).parameters:
        return float(known)
    return facts.weights_bytes * 8 / (_bits(facts) or USUAL_BITS) or None


def _bits(facts: Facts) -> int | None:
    return bits_of(facts.quantization) or _traits(facts.name).bits


def _doublings(wanted: float | None, there: float | None, unknown: float) -> float:
    if not wanted:
        return 0.0  # nothing was asked for
    return abs(log2(wanted / there)) if there else unknown


def _size_in_words(wanted: float | None, there: float | None) -> str:
    if not there:
        return "of unknown size"
    size = human_count(int(there))
    if not wanted or human_count(int(wanted)) == size:
        return f"{size} parameters"
    return f"{size} instead of {human_count(int(wanted))} parameters"


def _list(names: Sequence[str]) -> str:
    """The first few, and how many there are besides."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
