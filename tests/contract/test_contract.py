"""The public face: names, signatures, orders. A change here is a new major version."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import AsyncIterator

import ollama_adapter
from ollama_adapter import OllamaAdapter, TokenEvent, TokenStream, errors

SIGNATURES = {
    "ensure_running": "(self) -> 'None'",
    "generate_stream": "(self, model: 'str', prompt: 'str', **kwargs: 'Any') -> 'TokenStream'",
    "stop_generation": "(self, session_id: 'str') -> 'None'",
    "health_check": "(self) -> 'bool'",
}
FIELDS = [
    ("token", "str", dataclasses.MISSING),
    ("timestamp_ms", "int", dataclasses.MISSING),
    ("delta_ms", "int", dataclasses.MISSING),
    ("session_id", "str", dataclasses.MISSING),
    ("model", "str", dataclasses.MISSING),
    ("logprobs", "list[float] | None", None),
    ("energy", "float | None", None),
]


def test_the_four_methods_have_their_signatures() -> None:
    for name, signature in SIGNATURES.items():
        assert str(inspect.signature(getattr(OllamaAdapter, name))) == signature
    for name in ("ensure_running", "stop_generation", "health_check"):
        assert inspect.iscoroutinefunction(getattr(OllamaAdapter, name))
    assert not inspect.iscoroutinefunction(OllamaAdapter.generate_stream)
    assert issubclass(TokenStream, AsyncIterator)


def test_a_token_event_has_its_fields_in_their_order_and_more_only_with_defaults() -> None:
    fields = dataclasses.fields(TokenEvent)
    assert [(each.name, each.type, each.default) for each in fields[: len(FIELDS)]] == FIELDS
    for each in fields[len(FIELDS) :]:
        assert each.default is not dataclasses.MISSING, each.name
    event = TokenEvent("t", 1, 2, "s", "m")
    assert (event.logprobs, event.energy) == (None, None)


def test_the_package_names_at_most_25_things_and_has_them_all() -> None:
    assert len(ollama_adapter.__all__) <= 25
    assert sorted(ollama_adapter.__all__) == ollama_adapter.__all__
    for name in ollama_adapter.__all__:
        assert inspect.getdoc(getattr(ollama_adapter, name)), f"{name} has no docstring"


def test_every_error_is_an_adapter_error_with_a_hint() -> None:
    classes = [each for _, each in inspect.getmembers(errors, inspect.isclass)]
    ours = [each for each in classes if each.__module__ == errors.__name__]
    ours.remove(errors.Interruption)  # the reasons of one of them
    assert len(ours) >= 30
    for each in ours:
        assert issubclass(each, errors.AdapterError)
        error = each("what happened", hint="what to do")
        assert (str(error), error.hint) == ("what happened", "what to do")
        assert each("x").hint == each.usual_hint


def test_the_version_is_that_of_the_package() -> None:
    from importlib.metadata import version

    assert ollama_adapter.__version__ == version("ollama-adapter")
