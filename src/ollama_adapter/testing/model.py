"""A tiny language model that knows nothing: a pure function of the text so far.

The next token is drawn from a hash of what stands before the answer, of how far the answer has come, and
of its last words. So a prompt that ends in a part of an answer is continued as that answer was, exactly.
An answer begins after the last mark of an assistant's turn; a text without that mark is taken for one
answer from its beginning.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from ollama_adapter.errors import ConfigError

WORDS: Final = (
    " the", " a", " river", " moon", " sun", " stars", " sky", " rain", " wind", " stone", " fire", " snow",
    " night", " morning", " water", " garden", " mountain", " forest", " road", " bridge", " bird", " fox",
    " flows", " sings", " sleeps", " runs", " turns", " rises", " falls", " waits", " jumps", " shines",
    " slowly", " softly", " far", " bright", " cold", " warm", " silent", " green", " blue", " old", " and",
    " then", " while", " over", " under", " toward", " café", " größe", " ñandú", " Ωmega", " мир", " река",
    " 川", " 月光", " 雨", " 🌊", " 🦊", " 👩‍🚀",
)  # fmt: skip
"""Every token begins with a space, so that no text is cut into words in two ways."""
TOP: Final = 20
TURN: Final = "<|im_start|>assistant\n"
THINK: Final = "<think>"
THOUGHT: Final = "</think>"
UNFINISHED: Final = "\ufffd"
"""How a token that is only a part of a character is shown."""

DEFAULT_CONTEXT: Final = 4096
LAYERS: Final = 8
HEADS: Final = 4
HEAD_LENGTH: Final = 64
TOKEN_BYTES: Final = LAYERS * HEADS * 2 * HEAD_LENGTH * 2
"""What the cache of keys and values takes for each token: two bytes a number."""

_TAGS: Final = re.compile("(</?think>)")


@dataclass(frozen=True, slots=True)
class Token:
    """One piece of an answer. `cost` is how many tokens of the model it is made of."""

    text: str
    logprob: float
    candidates: tuple[tuple[str, float], ...] = ()
    cost: int = 1


@dataclass(frozen=True, slots=True)
class PretendModel:
    """What a pretended model is like.

    `length`: how many words an answer has; None never ends. `thinking`: how many words it thinks first,
    when it can think. `dimensions`: of an embedding. `size_bytes`: of its file; in memory there is a cache
    besides, for each token of the context, and `hidden_bytes` that nothing of what it says lets expect.
    `load_s`: how long it takes to load, where that is not the daemon's to say.
    """

    name: str = "pretend"
    length: int | None = 64
    capabilities: tuple[str, ...] = ("completion", "tools")
    thinking: int = 8
    dimensions: int = 16
    context_length: int = 4096
    size_bytes: int = 400 << 20
    hidden_bytes: int = 0
    load_s: float | None = None
    family: str = "pretend"

    def __post_init__(self) -> None:
        if self.length is not None and self.length < 1:
            raise ConfigError(
                f"an answer of {self.length} words cannot be had", hint="use 1 or more"
            )

    @property
    def thinks(self) -> bool:
        return "thinking" in self.capabilities

    def context(self, wanted: int | None = None) -> int:
        """How many tokens it has room for where so many are wanted."""
        return min(DEFAULT_CONTEXT if wanted is None else max(4, wanted), self.context_length)

    def memory_bytes(self, context: int) -> int:
        """What it takes in memory."""
        return self.size_bytes + context * TOKEN_BYTES + self.hidden_bytes

    @property
    def digest(self) -> str:
        """As Ollama names its files: the SHA-256 of a manifest, here of the model's name."""
        return hashlib.sha256(repr(self).encode()).hexdigest()

    def embed(self, text: str) -> list[float]:
        """A vector of length 1; equal for equal texts."""
        drawn = random.Random(f"{self.name} {text}")
        vector = [drawn.gauss() for _ in range(self.dimensions)]
        norm = math.sqrt(sum(each * each for each in vector)) or 1.0
        return [each / norm for each in vector]


class Writer:
    """An answer as it is written, token by token, from where `text` ends.

    At temperature 0 the most probable token is taken. Above, one is drawn by `seed`, whose numbers begin
    anew with every writer, as Ollama's do; without a seed nobody knows which.
    """

    def __init__(
        self,
        model: PretendModel,
        text: str,
        temperature: float = 0.0,
        seed: int | None = None,
        *,
        alternatives: bool = True,
    ) -> None:
        self._model = model
        self._temperature = temperature
        self._drawn = random.Random(seed)
        self._alternatives = alternatives
        head, turn, answer = text.rpartition(TURN)
        self._marked = bool(turn)
        start = hashlib.blake2b(f"{model.name} {head}".encode("utf-8", "replace")).hexdigest()
        self._start = start[:32]
        self._words = _TAGS.sub(r" \1 ", answer).split()

    def next(self) -> Token | None:
        """The next token; None at the end of the answer."""
        if (tag := self._tag()) is not None:
            self._words.append(tag)
            return Token(tag, 0.0, ((tag, 0.0),))
        if self._is_over():
            return None
        state = f"{self._start} {len(self._words)} {' '.join(self._words[-3:])}"
        weights = hashlib.blake2b(state.encode()).digest()
        token = self._take(weights)
        self._words.append(token.text.strip())
        return token

    def _tag(self) -> str | None:
        if not self._model.thinks or not self._marked:
            return None
        if not self._words:
            return THINK
        wanted = len(self._words) > self._model.thinking and THOUGHT not in self._words
        return THOUGHT if wanted and self._words[0] == THINK else None

    def _is_over(self) -> bool:
        length, written = self._model.length, len(self._words)
        if length is None:
            return False
        if self._marked:
            thought = self._model.thinking + 2 if self._words[:1] == [THINK] else 0
            return written >= length + thought
        return written > 0 and written % length == 0

    def _take(self, weights: bytes) -> Token:
        if not self._alternatives and not self._temperature:
            return _token(_best(weights), 0.0)
        logprobs, shown = _judge(weights)
        taken = best = _best(weights)
        if self._temperature > 0:
            odds = [math.exp((each - logprobs[best]) / self._temperature) for each in logprobs[:-1]]
            taken = self._drawn.choices(range(len(WORDS)), odds)[0]
        return _token(taken, logprobs[taken], shown)


def _best(weights: bytes) -> int:
    return max(range(len(WORDS)), key=weights.__getitem__)


@lru_cache(4096)
def _judge(weights: bytes) -> tuple[list[float], tuple[tuple[str, float], ...]]:
    """The log probability of each word and, last, of an end; and the best ones as they are shown."""
    scores = weights[: len(WORDS) + 1]
    sharpness = 0.01 + weights[-1] / 255 * 0.09  # so that some tokens are sure and some are not
    floor = math.log(sum(math.exp(each * sharpness) for each in scores))
    logprobs = [each * sharpness - floor for each in scores]
    order = sorted(range(len(scores)), key=logprobs.__getitem__, reverse=True)[:TOP]
    return logprobs, tuple((_SHOWN[each], logprobs[each]) for each in order)


def _token(word: int, logprob: float, candidates: tuple[tuple[str, float], ...] = ()) -> Token:
    return Token(WORDS[word], logprob, candidates, _COSTS[word])


def _cost(text: str) -> int:
    """A word is one token; each character of three or four bytes makes it one or two more."""
    return 1 + sum(len(each.encode()) - 2 for each in text if len(each.encode()) > 2)


_COSTS: Final = tuple(map(_cost, WORDS))
_SHOWN: Final = (*(WORDS[at] if cost == 1 else UNFINISHED for at, cost in enumerate(_COSTS)), "")
"""How candidates are shown; the last one is the end, which shows no text."""


def count_tokens(text: str) -> int:
    """About as many as a model would count: words, and the parts of long characters."""
    return sum(_cost(each) for each in _TAGS.sub(r" \1 ", text).split())
