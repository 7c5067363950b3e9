"""What names say, and how near two models are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_adapter.core.kinship import Kinship, bits_of, kinship, traits_of
from ollama_adapter.core.names import parse_name

B = 1e9


@pytest.mark.parametrize(
    ("name", "line", "version", "parameters", "bits", "words"),
    [
        ("llama3.2", "llama", "3.2", None, None, set()),
        ("llama3.3:70b", "llama", "3.3", 70 * B, None, set()),
        ("llama3.1:8b-instruct-q4_K_M", "llama", "3.1", 8 * B, 4, set()),
        ("qwen2.5-coder:1.5b-base-fp16", "qwen", "2.5", 1.5 * B, 16, {"coder"}),
        ("hf.co/someone/Llama-3.2-1B-Instruct-GGUF:Q8_0", "llama", "3.2", B, 8, set()),
        ("hf.co/someone/Mistral-7B-v0.3-GGUF:IQ2_XXS", "mistral", "0.3", 7 * B, 2, set()),
        ("mixtral:8x7b", "mixtral", "", 56 * B, None, set()),
        ("qwen3:30b-a3b", "qwen", "3", 30 * B, None, set()),
        ("gemma3n:e4b-it-bf16", "gemma", "3", 4 * B, 16, set()),
        ("smollm2:135m", "smollm", "2", 135e6, None, set()),
        ("gpt-oss:20b-mxfp4", "gpt", "", 20 * B, 4, {"oss"}),
        ("nomic-embed-text:v1.5", "nomic", "1.5", None, None, {"embed"}),
        ("llava:0b", "llava", "", None, None, {"0b"}),
        ("4real", "4real", "", None, None, set()),
        ("_:q4_0", "", "", None, 4, set()),
    ],
)
def test_names(
    name: str, line: str, version: str, parameters: float | None, bits: int | None, words: set[str]
) -> None:
    traits = traits_of(parse_name(name))
    assert (traits.line, traits.version) == (line, version)
    assert (traits.parameters, traits.bits, set(traits.words)) == (parameters, bits, words)


@pytest.mark.parametrize(
    ("quantisation", "bits"),
    [
        ("Q4_K_M", 4),
        ("Q8_0", 8),
        ("F16", 16),
        ("BF16", 16),
        ("F32", 32),
        ("IQ3_S", 3),
        ("MXFP4", 4),
        ("TQ1_0", 1),
        ("unknown", None),
        ("", None),
        ("Q9", None),
    ],
)
def test_quantisations(quantisation: str, bits: int | None) -> None:
    assert bits_of(quantisation) == bits


@pytest.mark.parametrize(
    ("one", "other", "families", "expected"),
    [
        ("llama3.2:3b", "llama3.2:1b", ("", ""), Kinship.SAME_MODEL),
        ("llama3.2", "someone/Llama3.2:1b", ("", "qwen2"), Kinship.SAME_MODEL),
        ("llama3.2", "llama3", ("", ""), Kinship.SAME_VERSION),
        ("qwen2.5", "qwen2.5-coder", ("", ""), Kinship.SAME_VERSION),
        ("llama3.2", "llama2", ("llama", "llama"), Kinship.SAME_LINE),
        ("mine", "yours", ("llama", "LLAMA"), Kinship.SAME_FAMILY),
        ("qwen3:8b", "mine", ("", "qwen2"), Kinship.SAME_FAMILY),
        ("llama3.2", "tinyllama", ("", "llama"), Kinship.SAME_FAMILY),
        ("mistral", "tinyllama", ("", "llama"), Kinship.STRANGERS),
        ("phi4", "gemma3", ("phi3", "gemma3"), Kinship.STRANGERS),
        ("mine", "yours", ("", ""), Kinship.STRANGERS),
    ],
)
def test_kinship(one: str, other: str, families: tuple[str, str], expected: Kinship) -> None:
    first, second = traits_of(parse_name(one)), traits_of(parse_name(other))
    assert kinship(first, second, families) is expected
    assert kinship(second, first, (families[1], families[0])) is expected


parts = st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,30}", fullmatch=True)


@given(parts, parts)
def test_every_name_has_traits_and_is_nearest_to_itself(model: str, tag: str) -> None:
    traits = traits_of(parse_name(f"{model}:{tag}"))
    assert kinship(traits, traits) is Kinship.SAME_MODEL
    assert traits.parameters is None or traits.parameters > 0
    assert traits.words == traits_of(parse_name(f"{model.upper()}:{tag.upper()}")).words
