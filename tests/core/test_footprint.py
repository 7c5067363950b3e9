"""How much memory a model takes: parts that are known, guesses that say so, and lies that harm nobody."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_adapter.core.footprint import (
    BATCH,
    DEFAULT_CONTEXT,
    GPU_RUNTIME_BYTES,
    MIB,
    RUNTIME_BYTES,
    TOKEN_BYTES,
    Facts,
    facts_of,
    need,
)

GIB = 1 << 30
LLAMA_8B: dict[str, Any] = {
    "embedding_length": 4096,
    "block_count": 32,
    "feed_forward_length": 14336,
    "attention.head_count": 32,
    "attention.head_count_kv": 8,
    "context_length": 131072,
    "vocab_size": 128256,
}


def model(
    own: Mapping[str, Any],
    family: str = "llama",
    size: int = 4_920_734_272,
    count: str = "8.0B",
) -> Facts:
    info = {f"{family}.{name}": value for name, value in own.items()}
    tag = {"name": "m:latest", "size": size, "details": {"parameter_size": count}}
    return facts_of(tag, {"model_info": {"general.architecture": family, **info}})


def test_what_the_daemon_says() -> None:
    tag = {
        "name": "m:latest",
        "size": 4_920_734_272,
        "digest": "sha256:abc",
        "details": {
            "family": "llama",
            "families": ["llama", None, "clip"],
            "quantization_level": "Q4_K_M",
            "parameter_size": "8.0B",
        },
        "capabilities": ["completion", 7],
    }
    own = {f"llama.{name}": value for name, value in LLAMA_8B.items()}
    info = {"general.architecture": "llama", "general.parameter_count": 8_030_261_248, **own}
    assert facts_of(tag, {"model_info": info}) == Facts(
        name="m:latest",
        digest="abc",
        weights_bytes=4_920_734_272,
        family="llama",
        families=("llama", "clip"),
        parameters=8_030_261_248,
        quantization="Q4_K_M",
        capabilities=("completion",),
        context=131072,
        kv_heads=(8,) * 32,
        heads=32,
        key_length=128,
        value_length=128,
        embedding=4096,
        feed_forward=14336,
        vocabulary=128256,
    )


def test_what_only_the_listing_says() -> None:
    details = {"parameter_size": "159K", "context_length": 2048, "embedding_length": 64}
    facts = facts_of({"model": "m", "details": details})
    assert (facts.name, facts.parameters, facts.context) == ("m", 159_000, 2048)
    assert (facts.embedding, facts.layers, facts.kv_heads) == (64, 0, ())


def test_a_model_of_another_machine() -> None:
    assert facts_of({"remote_host": "https://somewhere"}).remote
    assert facts_of({}, {"remote_model": "big"}).remote
    assert not facts_of({"remote_host": ""}, {}).remote


def test_the_whole_vocabulary_may_be_there() -> None:
    shown = {"model_info": {"general.architecture": "x", "tokenizer.ggml.tokens": ["a", "b"]}}
    assert facts_of({}, shown).vocabulary == 2


@pytest.mark.parametrize(
    ("text", "count"),
    [("8.0B", 8_000_000_000), ("2.71M", 2_710_000), ("159K", 159_000), ("1t", 10**12)]
    + [(text, 0) for text in ("", "B", "big", "-1B", "nanB", "1e9B", "1.2.3B", "77")],
)
def test_how_many_parameters_a_text_means(text: str, count: int) -> None:
    assert facts_of({"details": {"parameter_size": text}}).parameters == count


def test_a_model_that_says_everything() -> None:
    """The buffers are what llama.cpp reports for it: 258.5 MiB at 512 tokens; the mask comes to that."""
    needed = need(model(LLAMA_8B), 4096)
    assert needed.weights_bytes == 4_920_734_272
    assert needed.kv_bytes == 512 * MIB
    mask = 4 * BATCH * 4096
    rest = RUNTIME_BYTES + 128256 * TOKEN_BYTES + mask
    assert needed.overhead_bytes - rest == int(258.5 * MIB)
    assert needed.total == needed.weights_bytes + needed.kv_bytes + needed.overhead_bytes
    assert (needed.num_ctx, needed.guess) == (4096, "")


@pytest.mark.parametrize(
    ("options", "context", "kv"),
    [
        ({}, DEFAULT_CONTEXT, 512 * MIB),
        ({"num_ctx": -1}, DEFAULT_CONTEXT, 512 * MIB),
        ({"num_ctx": 1000}, 1000, 128 * MIB),  # in steps of 256
        ({"num_ctx": 1 << 30}, 131072, 16 * GIB),  # what it has been trained for
        ({"num_ctx": 4096, "parallel": 2}, 4096, 1 * GIB),
        ({"num_ctx": 4096, "kv_bytes_per_value": 1.0625}, 4096, 272 * MIB),
    ],
)
def test_the_cache(options: dict[str, Any], context: int, kv: int) -> None:
    needed = need(model(LLAMA_8B), **options)
    assert (needed.num_ctx, needed.kv_bytes) == (context, kv)


def test_a_gpu_has_its_driver() -> None:
    here, there = need(model(LLAMA_8B)), need(model(LLAMA_8B), on_gpu=True)
    assert there.overhead_bytes - here.overhead_bytes == GPU_RUNTIME_BYTES


@pytest.mark.parametrize(
    ("family", "heads", "own", "tokens"),
    [
        ("llama", 8, {}, 32 * 32768),
        ("llama", 8, {"attention.sliding_window": 1024}, 32 * 32768),  # who knows in which layers
        ("gemma3", 8, {}, 32 * 32768),
        ("gemma3", 8, {"attention.sliding_window": 1024}, 5 * 32768 + 27 * 1536),
        ("gptoss", 8, {"attention.sliding_window": 128}, 16 * 32768 + 16 * 768),
        ("gemma3", 8, {"attention.sliding_window": 1 << 20}, 32 * 32768),
        ("x", [8, *[0] * 31], {}, 32768),
    ],
)
def test_layers_that_see_less(family: str, heads: Any, own: dict[str, Any], tokens: int) -> None:
    facts = model({**LLAMA_8B, "attention.head_count_kv": heads, **own}, family)
    needed = need(facts, 32768)
    assert (needed.kv_bytes, needed.guess) == (tokens * 8 * 256 * 2, "")


def test_layers_that_remember_a_state() -> None:
    ssm = {
        "ssm.inner_size": 4096,
        "ssm.state_size": 128,
        "ssm.conv_kernel": 4,
        "ssm.group_count": 8,
    }
    facts = model({**LLAMA_8B, "attention.head_count_kv": [8, *[0] * 31], **ssm}, "x")
    state = 4 * (128 * 4096 + 3 * (4096 + 2 * 8 * 128))
    assert need(facts, 4096).kv_bytes == 4096 * 8 * 256 * 2 + 31 * state


def test_heads_for_all_where_nobody_shares_them() -> None:
    own = {name: value for name, value in LLAMA_8B.items() if name != "attention.head_count_kv"}
    assert model(own).kv_heads == (32,) * 32


def test_attention_whose_keys_are_longer_keeps_its_scores() -> None:
    longer = {**LLAMA_8B, "attention.key_length": 192, "attention.value_length": 128}
    plain = need(model(LLAMA_8B), 8192).overhead_bytes
    assert need(model(longer), 8192).overhead_bytes - plain > GIB // 4


def test_experts_that_work_together() -> None:
    own = {"expert_feed_forward_length": 16384, "expert_used_count": 8}
    assert model({**LLAMA_8B, **own}).feed_forward == 131072


def test_texts_are_embedded_as_a_whole() -> None:
    facts = facts_of({"size": 100 * MIB, "capabilities": ["embedding"]}, {})
    completes = facts_of({"size": 100 * MIB, "capabilities": ["completion"]}, {})
    assert need(facts, 8192).overhead_bytes > 10 * need(completes, 8192).overhead_bytes


# Against what the real Ollama says in /api/ps, of models whose metadata the recordings do not have

RECORDED = [
    ("tiny", 646_680, "159K", 64, 2048, 1, 5_505_023),
    ("markov", 10_867_386, "2.71M", 512, 2048, 1, 27_640_462),
    ("slow", 827_250_456, "412.75M", 2048, 2048, 1, 1_014_937_681),
    ("slow", 827_250_456, "412.75M", 2048, 2048, 2, 1_149_155_409),
]


@pytest.mark.parametrize(("name", "size", "count", "width", "ctx", "parallel", "said"), RECORDED)
def test_ollamas_own_figures_are_below(
    name: str, size: int, count: str, width: int, ctx: int, parallel: int, said: int
) -> None:
    details = {"parameter_size": count, "embedding_length": width, "context_length": 2048}
    needed = need(facts_of({"name": name, "size": size, "details": details}), ctx, parallel)
    assert said <= needed.total <= 1.6 * said + 2 * RUNTIME_BYTES
    assert "its attention" in needed.guess


def test_a_geometry_that_is_known_gives_ollamas_own_figure_and_the_runner() -> None:
    """Of `slow`, which Ollama says to need 64 KiB per token, and 51 MiB for its buffers."""
    own = {"embedding_length": 2048, "block_count": 8, "feed_forward_length": 5632}
    heads = {"attention.head_count": 16, "attention.head_count_kv": 16, "vocab_size": 400}
    needed = need(model({**own, **heads}, size=827_250_456, count="412.75M"), 2048)
    rest = needed.total - RUNTIME_BYTES - 400 * TOKEN_BYTES
    assert 0 <= rest - 1_014_937_681 < 4 * MIB


# What is missing, and lies


@pytest.mark.parametrize(
    ("tag", "guessed"),
    [
        ({}, "its size, its width, its attention"),
        ({"details": {"parameter_size": "8B", "quantization_level": "Q4_K_M"}}, "its size"),
        ({"size": 5_000_000_000}, "its width, its attention"),
        ({"size": 5_000_000_000, "details": {"embedding_length": 4096}}, "its attention"),
    ],
)
def test_what_is_missing_is_guessed(tag: dict[str, Any], guessed: str) -> None:
    """A model of usual size: the guess is near what it would take."""
    needed = need(facts_of(tag), 4096)
    assert guessed in needed.guess
    assert 5 * GIB < needed.total < 8 * GIB


@pytest.mark.parametrize(
    ("level", "bits"),
    [("F16", 16), ("bf16", 16), ("Q8_0", 9), ("Q4_K_M", 5), ("IQ2_XS", 5), ("", 5)],
)
def test_the_size_of_so_many_parameters(level: str, bits: int) -> None:
    details = {"parameter_size": "8B", "quantization_level": level}
    assert need(facts_of({"details": details})).weights_bytes == bits * 1_000_000_000


LIES: list[dict[str, Any]] = [
    {"block_count": 1 << 40},
    {"block_count": -1},
    {"block_count": 4000},
    {"block_count": "32"},
    {"block_count": True},
    {"attention.head_count_kv": 1 << 60},
    {"attention.head_count_kv": [8] * 31},
    {"attention.head_count_kv": []},
    {"attention.head_count_kv": [0] * 32},
    {"attention.head_count_kv": {}},
    {"attention.key_length": math.nan, "attention.head_count": None},
    {"attention.key_length": 16384, "attention.head_count_kv": 4096},
]


@pytest.mark.parametrize("lie", LIES, ids=str)
def test_a_lie_is_not_believed(lie: dict[str, Any]) -> None:
    needed = need(model({**LLAMA_8B, **lie}), 4096)
    assert needed.guess == "guessed, since the model does not say: its attention"
    assert 5 * GIB < needed.total < 7 * GIB


def test_a_vocabulary_larger_than_the_file_is_not_believed() -> None:
    assert need(model({**LLAMA_8B, "vocab_size": 1 << 39}), 4096).overhead_bytes < 8 * GIB


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([1, 2, 32, 128, 4096, 1 << 20, "llama", "8.0B"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)
names = st.sampled_from([f"llama.{name}" for name in LLAMA_8B] + ["general.architecture"])


@given(
    tag=st.dictionaries(
        st.sampled_from(["name", "size", "digest", "details", "capabilities"]), anything
    ),
    info=st.dictionaries(names, anything),
    num_ctx=st.integers(),
    parallel=st.integers(-1, 8),
)
def test_nothing_that_is_said_breaks_it(
    tag: dict[str, Any], info: dict[str, Any], num_ctx: int, parallel: int
) -> None:
    needed = need(facts_of(tag, {"model_info": info, "details": None}), num_ctx, parallel)
    assert needed.weights_bytes > 0
    assert needed.kv_bytes > 0
    assert needed.overhead_bytes > RUNTIME_BYTES


@given(
    context=st.integers(1, 200_000),
    more=st.integers(0, 200_000),
    parallel=st.integers(1, 8),
    heads=st.integers(1, 32),
)
def test_more_never_takes_less(context: int, more: int, parallel: int, heads: int) -> None:
    facts = model({**LLAMA_8B, "attention.head_count_kv": heads})
    least = need(facts, context, parallel).total
    assert least <= need(facts, context + more, parallel).total
    assert least <= need(facts, context, parallel + 1).total
