"""What is inside a request, in and out of bounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_adapter.embedded.requests import decode_body
from ollama_adapter.embedded.values import (
    ApiError,
    decode_options,
    parse_format,
    parse_keep_alive,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(5, 5.0), (0, 0.0), (-1, math.inf), ("0", 0.0), ("1h30m", 5400.0), ("250ms", 0.25), ("-1s", math.inf)],
)  # fmt: skip
def test_keep_alive_is_seconds_or_a_duration_of_go(value: Any, seconds: float) -> None:
    assert parse_keep_alive(value) == pytest.approx(seconds)


@pytest.mark.parametrize("value", ["", "abc", "5", "5x", "m", True, [], {}])
def test_another_keep_alive_is_an_error(value: Any) -> None:
    with pytest.raises(ApiError) as refused:
        parse_keep_alive(value)
    assert refused.value.status == 400


def test_options_are_brought_to_their_types_and_unknown_ones_left_out() -> None:
    given_ = {"num_ctx": 5.9, "seed": None, "nonsense": [], "num_predict": 10**40, "stop": ["a"]}
    assert decode_options(given_) == {"num_ctx": 5, "num_predict": (1 << 31) - 1, "stop": ["a"]}
    for name, value, words in (
        ("use_mmap", 1, "boolean"),
        ("temperature", True, "float32"),
        ("top_k", "x", "integer"),
    ):
        with pytest.raises(ApiError, match=f'"{name}" must be of type {words}') as refused:
            decode_options({name: value})
        assert refused.value.status == 500


def status_of(call: Callable[[], object]) -> int:
    """The status of a refusal; 200 where there is none."""
    try:
        call()
    except ApiError as error:
        return error.status
    return 200


@given(st.binary(max_size=80))
def test_any_body_is_decoded_or_refused_with_400(body: bytes) -> None:
    assert status_of(lambda: decode_body(body, "GenerateRequest")) in (200, 400)


@given(st.dictionaries(st.sampled_from(["type", "properties", "items", "$ref", "enum"]), JSON))
def test_any_schema_is_taken_or_refused(schema: dict[str, Any]) -> None:
    assert status_of(lambda: parse_format(schema)) in (200, 400)


@pytest.mark.parametrize("level", ["items", "properties", "list"])
def test_a_schema_too_deep_to_be_walked_through_is_refused(level: str) -> None:
    """One that Python's decoder, in C, may have let through."""
    schema: Any = {"type": "string"}
    for _ in range(100_000):
        schema = [schema] if level == "list" else {level: {"a": schema}}
    with pytest.raises(ApiError, match="exceeded max depth") as refused:
        parse_format(schema)
    assert refused.value.status == 400


@given(st.dictionaries(st.sampled_from(["num_ctx", "stop", "top_p", "use_mmap"]), JSON))
def test_any_options_are_taken_or_refused(options: dict[str, Any]) -> None:
    assert status_of(lambda: decode_options(options)) in (200, 500)
