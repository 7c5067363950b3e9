"""How much memory a model takes, from what the daemon says of it before it is loaded.

`facts_of` reads one entry of /api/tags and the answer of /api/show; any value may be missing, absurd or a
lie, and then counts as unknown. `need` is an upper estimate, and says where it had to guess. Its parts:

* the weights: the file, which is mapped or copied as a whole;
* the cache of keys and values: per layer, the context (in steps of 256) times the heads' lengths; a sliding
  window where the architecture is known to have one; the state of layers that have no attention;
* the overhead: the runner itself, its vocabulary, and the buffers that a batch of a prompt is computed in,
  which are llama.cpp's: the widest of its stages, and the mask of the attention.

Checked against the memory of real runners, and against what Ollama says of a loaded model in /api/ps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeGuard

import msgspec
from msgspec.structs import replace

MIB: Final = 1 << 20
DEFAULT_CONTEXT: Final = 4096
"""Tokens, where nobody asks for a number."""
CONTEXT_STEP: Final = 256
BATCH: Final = 512
"""Tokens of a prompt that Ollama computes at once."""
RUNTIME_BYTES: Final = 48 * MIB
"""A runner with a model of no size: 35 MiB measured."""
GPU_RUNTIME_BYTES: Final = 512 * MIB
"""A GPU's driver and its kernels, once per runner."""
TOKEN_BYTES: Final = 400
"""A vocabulary in memory, per token: its text, its merges and their index."""

_LIMITS: Final = {"layers": 1 << 12, "heads": 1 << 12, "length": 1 << 14, "width": 1 << 18}
_VOCABULARY: Final = 152_064  # a large one: Qwen's
_VOCABULARIES: Final = {"gemma": 262_144}
_USUAL_PARAMETERS: Final = 8_000_000_000
_WIDTHS: Final = ((4096, 3e9), (2048, 3e8), (512, 0))  # and the fewest parameters that go with it
_BITS: Final = {"F32": 32, "F16": 16, "BF16": 16, "Q8": 9, "Q6": 7, "Q5": 6, "Q4": 5, "Q3": 4.5}
# Which layers attend to the whole context: one in so many. The others have a sliding window.
_GLOBAL: Final = {"gemma2": 2, "gemma3": 6, "gptoss": 2, "gpt-oss": 2, "cohere2": 4, "exaone4": 4}


class Facts(msgspec.Struct, frozen=True):
    """A model on disk: 0 and "" stand for what is unknown; `remote`: it runs on another machine.

    `kv_heads` has one number per layer; 0 is a layer without a cache of keys and values. Lengths count
    numbers, not bytes. `state` is what each layer without attention keeps, in numbers.
    """

    name: str
    digest: str = ""
    weights_bytes: int = 0
    family: str = ""
    families: tuple[str, ...] = ()
    remote: bool = False
    parameters: int = 0
    quantization: str = ""
    capabilities: tuple[str, ...] = ()
    context: int = 0
    kv_heads: tuple[int, ...] = ()
    heads: int = 0
    key_length: int = 0
    value_length: int = 0
    embedding: int = 0
    feed_forward: int = 0
    vocabulary: int = 0
    window: int = 0
    state: int = 0

    @property
    def layers(self) -> int:
        return len(self.kv_heads)

    @property
    def embeds(self) -> bool:
        return "embedding" in self.capabilities


class Need(msgspec.Struct, frozen=True):
    """The bytes that a model takes with room for `num_ctx` tokens; `guess`: what was not known."""

    num_ctx: int
    weights_bytes: int
    kv_bytes: int
    overhead_bytes: int
    guess: str = ""

    @property
    def total(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.overhead_bytes


# What the daemon says


def facts_of(tag: Mapping[str, Any], shown: Mapping[str, Any] | None = None) -> Facts:
    """A model, from its entry in /api/tags and, if it is there, the answer of /api/show."""
    said = _mapping(shown)
    info = _mapping(said.get("model_info"))
    details = {**_mapping(said.get("details")), **_mapping(tag.get("details"))}
    family = _text(info.get("general.architecture")) or _text(details.get("family"))
    own = _Own(info, family)
    width = own.number("embedding_length", "width") or _number(
        details.get("embedding_length"), _LIMITS["width"]
    )
    heads = max(own.numbers("attention.head_count", "heads"), default=0)
    length = own.number("attention.key_length", "length") or (width // heads if heads else 0)
    capabilities = said.get("capabilities") or tag.get("capabilities")
    return Facts(
        name=_text(tag.get("name")) or _text(tag.get("model")),
        digest=_text(tag.get("digest")).removeprefix("sha256:"),
        weights_bytes=_number(tag.get("size"), 1 << 46),
        family=family,
        families=_texts(details.get("families")),
        remote=any(
            each.get(key) for each in (tag, said) for key in ("remote_model", "remote_host")
        ),
        parameters=_number(info.get("general.parameter_count"), 1 << 46)
        or _count(_text(details.get("parameter_size"))),
        quantization=_text(details.get("quantization_level")),
        capabilities=_texts(capabilities),
        context=own.number("context_length", "") or _number(details.get("context_length"), 1 << 40),
        kv_heads=own.kv_heads(heads),
        heads=heads,
        key_length=length,
        value_length=own.number("attention.value_length", "length") or length,
        embedding=width,
        feed_forward=own.feed_forward(),
        vocabulary=own.vocabulary(),
        window=own.number("attention.sliding_window", ""),
        state=own.state(),
    )


class _Own(msgspec.Struct, frozen=True):
    """The values under `<architecture>.`, each within reason or unknown."""

    info: Mapping[str, Any]
    family: str

    def numbers(self, name: str, kind: str) -> tuple[int, ...]:
        value = self.info.get(f"{self.family}.{name}")
        limit = _LIMITS.get(kind, 1 << 40)
        return tuple(_number(each, limit) for each in (value if _is_list(value) else [value]))

    def number(self, name: str, kind: str) -> int:
        return max(self.numbers(name, kind), default=0)

    def kv_heads(self, heads: int) -> tuple[int, ...]:
        """For each layer; () where one number of it is unknown."""
        layers = self.number("block_count", "layers")
        known = f"{self.family}.attention.head_count_kv" in self.info
        per_layer = self.numbers("attention.head_count_kv", "heads") if known else (heads,)
        if not layers or not any(per_layer) or len(per_layer) not in (1, layers):
            return ()
        return per_layer if len(per_layer) == layers else per_layer * layers

    def feed_forward(self) -> int:
        """The widest; of experts, as many as work on a token."""
        expert = self.number("expert_feed_forward_length", "width")
        working = expert * self.number("expert_used_count", "heads")
        return max(self.number("feed_forward_length", "width"), working)

    def vocabulary(self) -> int:
        tokens = self.info.get("tokenizer.ggml.tokens")
        return len(tokens) if _is_list(tokens) else self.number("vocab_size", "")

    def state(self) -> int:
        """What a layer without attention remembers (Mamba and its kin)."""
        inner, size = self.number("ssm.inner_size", "width"), self.number("ssm.state_size", "width")
        groups = self.number("ssm.group_count", "heads")
        kernel = max(1, self.number("ssm.conv_kernel", "heads"))
        return size * inner + (kernel - 1) * (inner + 2 * groups * size)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _is_list(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, list | tuple)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(each for each in value if isinstance(each, str)) if _is_list(value) else ()


def _number(value: object, limit: int) -> int:
    """A whole number within 1 and `limit`; 0 for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= limit:
        return 0
    return int(value)


def _count(text: str) -> int:
    """How many parameters "8.0B" or "159K" are; 0 where that cannot be read."""
    unit = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}.get(text[-1:].upper(), 0.0)
    digits = text[:-1].replace(".", "", 1)
    return int(float(text[:-1]) * unit) if digits.isascii() and digits.isdigit() else 0


# What it takes


def need(
    facts: Facts,
    num_ctx: int = 0,
    parallel: int = 1,
    kv_bytes_per_value: float = 2.0,
    *,
    batch: int = BATCH,
    on_gpu: bool = False,
) -> Need:
    """The memory that a model takes, in bytes: an upper estimate.

    `num_ctx` tokens of context for each of `parallel` requests; 0: what is usual. It is cut to what the
    model has been trained for, as the daemon does. `kv_bytes_per_value`: 2 for f16, 1 for q8_0.
    """
    context = num_ctx if num_ctx > 0 else DEFAULT_CONTEXT
    if facts.context:
        context = min(context, facts.context)
    window = -(-context // CONTEXT_STEP) * CONTEXT_STEP
    facts, unknown = _complete(facts)
    if facts.embeds:  # a text is computed as a whole
        batch = window
    kv = _cache(facts, window, min(batch, window), kv_bytes_per_value) * max(1, parallel)
    overhead = RUNTIME_BYTES + facts.vocabulary * TOKEN_BYTES
    overhead += _buffers(facts, window, min(batch, window))
    overhead += GPU_RUNTIME_BYTES if on_gpu else 0
    guess = f"guessed, since the model does not say: {', '.join(unknown)}" if unknown else ""
    return Need(context, facts.weights_bytes, math.ceil(kv), overhead, guess)


def _complete(facts: Facts) -> tuple[Facts, list[str]]:
    """The facts with guesses in the place of what is unknown or cannot be, and the names of these."""
    unknown = []
    weights, parameters = facts.weights_bytes, facts.parameters
    if not weights:
        unknown.append("its size")
        parameters = parameters or _USUAL_PARAMETERS
        weights = math.ceil(parameters * _bits(facts.quantization) / 8)
    # With 32 bits each the file holds the least that it can, with two the most.
    parameters = min(max(parameters or weights * 2, weights // 4), weights * 4)
    width = facts.embedding
    if not width:
        unknown.append("its width")
        width = next(width for width, least in _WIDTHS if parameters >= least)
    # Behind each token of a vocabulary, and each number in the cache, stands a row of that width.
    most = max(2, parameters // width)
    values = sum(facts.kv_heads) * (facts.key_length + facts.value_length)
    if not 0 < values <= most:
        unknown.append("its attention")
        half = math.ceil(min(most, 65_536 + parameters // 120_000) / 2)
        facts = replace(facts, kv_heads=(1,), key_length=half, value_length=half)
    vocabulary = facts.vocabulary or _VOCABULARIES.get(facts.family, _VOCABULARY)
    return replace(
        facts,
        weights_bytes=weights,
        heads=facts.heads or 32,
        embedding=width,
        feed_forward=facts.feed_forward or 4 * width,
        vocabulary=min(vocabulary, most),
    ), unknown


def _bits(quantization: str) -> float:
    """Per weight, on average, the metadata of its blocks included."""
    known = (bits for name, bits in _BITS.items() if quantization.upper().startswith(name))
    return next(known, 5.0)


def _cache(facts: Facts, context: int, batch: int, value_bytes: float) -> float:
    """One request's keys and values, and the states of the layers that have none, in bytes."""
    every = _GLOBAL.get(facts.family, 1) if facts.window else 1
    near = min(context, -(-(facts.window + batch) // CONTEXT_STEP) * CONTEXT_STEP)
    total = 0.0
    for layer, heads in enumerate(facts.kv_heads, 1):
        tokens = near if layer % every else context
        total += heads * (facts.key_length + facts.value_length) * tokens * value_bytes
        total += 0 if heads else facts.state * 4
    return total


def _buffers(facts: Facts, context: int, batch: int) -> int:
    """What a batch is computed in: the widest stage, and the mask, which says who attends to whom."""
    hidden = 4 * facts.embedding + 3 * facts.feed_forward
    scores = 0  # flash attention, which llama.cpp uses wherever it can, keeps none
    if facts.key_length != facts.value_length:
        scores = facts.heads * context
    widest = max(hidden, facts.embedding + facts.vocabulary, 4 * facts.embedding + scores)
    return 4 * batch * widest + 4 * batch * context
