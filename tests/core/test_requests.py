"""The vocabulary of requests: what is accepted, what is refused, by which name, and what is sent."""

from __future__ import annotations

import base64
import enum
import json
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_adapter.core.requests import (
    Request,
    chat_request,
    embed_request,
    generate_request,
    load_request,
)
from ollama_adapter.core.vocabulary import (
    CHAT,
    EMBED,
    GENERATE,
    OPTIONS,
    default_keep_alive,
    wire_keep_alive,
)
from ollama_adapter.errors import ConfigError, InvalidRequest, RemoteModelRefused

USER = [{"role": "user", "content": "hello"}]


class Word(str):
    """A string with ideas of its own, as a template library has them."""

    def __str__(self) -> str:
        return "something else"


class Number(float):
    """Stands for NumPy's."""


class Count(int):
    """The same, of whole numbers."""


class Level(enum.IntEnum):
    SEVEN = 7


class Tongue(enum.StrEnum):
    C = "c"


def generate(**keywords: Any) -> Request:
    return generate_request("tiny", "hello", keywords, "5m")


def chat(**keywords: Any) -> Request:
    return chat_request("tiny", USER, keywords, "5m")


def embed(**keywords: Any) -> Request:
    return embed_request("tiny", "hello", keywords, "5m")


def sent(request: Request) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(request.body)
    return body


# What each keyword takes. Everything that is in GOOD under one name is BAD where it is not listed.
INTEGERS = [0, 1, -1, 2**31, Level.SEVEN, Count(3)]
NUMBERS = [*INTEGERS, 0.5, -0.0, 1e300, Number(0.25)]
BOOLEANS = [True, False]
STRINGS = ["", "hello", "ünï", Word("hi"), Tongue.C]
GOOD: dict[str, list[Any]] = {
    "format": ["json", {}, {"type": "object"}, MappingProxyType({"type": "object"})],
    "keep_alive": [0, -1, 300, 2.5, "300", "5m", "-1", "1h30m", "0", "250ms"],
    "think": [True, False, "low", "medium", "high", "max"],
    "truncate": BOOLEANS,
    "shift": BOOLEANS,
    "logprobs": BOOLEANS,
    "top_logprobs": [0, 1, 20],
    "_debug_render_only": BOOLEANS,
    "options": [{}, {"seed": 1}, MappingProxyType({"top_k": 5})],
    "suffix": STRINGS,
    "system": STRINGS,
    "template": STRINGS,
    "context": [[], [1, 2], (3,)],
    "raw": BOOLEANS,
    "images": [[], ["aGk="], [b"hi"], (b"hi",)],
    "prompt_tokens": [[], [1, 2], (3,)],
    "tools": [[], [{"type": "function"}], (MappingProxyType({"type": "function"}),)],
    "dimensions": INTEGERS,
    **dict.fromkeys(
        ("num_keep", "seed", "num_predict", "top_k", "repeat_last_n", "num_batch"),
        INTEGERS,
    ),
    **dict.fromkeys(("num_gpu", "main_gpu", "num_thread", "draft_num_predict"), INTEGERS),
    **dict.fromkeys(("top_p", "min_p", "typical_p", "temperature", "repeat_penalty"), NUMBERS),
    **dict.fromkeys(("presence_penalty", "frequency_penalty"), NUMBERS),
    "num_ctx": [1, 2**31, Level.SEVEN, Count(3)],
    "use_mmap": BOOLEANS,
    "stop": [[], ["a", "b"], ("a",)],
}
BAD: dict[str, list[Any]] = {
    "format": ["xml", "", True, None, ["json"], 5],
    "keep_alive": [True, None, "abc", "", "5 m", math.inf, math.nan, [], "1e3"],
    "think": ["ultra", "", "true", None, 1, 0, [], {}],
    "top_logprobs": [21, -1, True, 5.0, "5", None, 10**5000],
    "options": [None, [], "seed=1", 5, [("seed", 1)]],
    "images": ["aGk=", b"hi", [5], None, {"a": b"hi"}],
    **{key: ["1", [True], [1.0], ["1"], None, 5, {1: 2}] for key in ("context", "prompt_tokens")},
    "tools": [[1], {}, "tools", None, [None], [["a"]]],
    "stop": ["dog", [1], None, [None], [b"dog"], {"a": 1}, {"a"}],
    **{
        name: ["yes", 1, 0, None, [], 0.0]
        for name in ("truncate", "shift", "logprobs", "_debug_render_only", "raw", "use_mmap")
    },
    **{name: [b"bytes", 5, None, [], True] for name in ("suffix", "system", "template")},
    **{
        name: [1.0, "1", True, None, [], math.nan, b"1"]
        for name in OPTIONS
        if GOOD[name] is INTEGERS
    },
    "dimensions": [1.0, "1", True, None],
    "num_ctx": [0, -1, 1.0, "1", True, None, [], math.nan],
    **{
        name: ["1", True, None, [], math.nan, math.inf, -math.inf, 1j]
        for name in OPTIONS
        if GOOD[name] is NUMBERS
    },
}
CALLS: list[tuple[Callable[..., Request], Mapping[str, Any]]] = [
    (generate, GENERATE | OPTIONS),
    (chat, CHAT | OPTIONS),
    (embed, EMBED | OPTIONS),
]


def test_the_vocabulary_is_that_of_ollama() -> None:
    common = (
        "format keep_alive think truncate shift logprobs top_logprobs _debug_render_only options"
    )
    assert set(GENERATE) == set(
        f"{common} suffix system template context raw images prompt_tokens".split()
    )
    assert set(CHAT) == set(f"{common} tools".split())
    assert set(EMBED) == {"keep_alive", "truncate", "dimensions", "options"}
    assert set(OPTIONS) == {
        "num_keep",
        "seed",
        "num_predict",
        "top_k",
        "top_p",
        "min_p",
        "typical_p",
        "repeat_last_n",
        "temperature",
        "repeat_penalty",
        "presence_penalty",
        "frequency_penalty",
        "stop",
        "num_ctx",
        "num_batch",
        "num_gpu",
        "main_gpu",
        "use_mmap",
        "num_thread",
        "draft_num_predict",
    }
    assert set(GOOD) == set(BAD) == {name for _, vocabulary in CALLS for name in vocabulary}


@pytest.mark.parametrize(
    ("call", "name"), [(call, name) for call, vocabulary in CALLS for name in vocabulary]
)
def test_a_keyword_of_the_right_type_is_sent_under_its_name(
    call: Callable[..., Request], name: str
) -> None:
    for value in GOOD[name]:
        extra = {"logprobs": True} if name == "top_logprobs" else {}
        body = sent(call(**{name: value}, **extra))
        where = body["options"] if name in OPTIONS else body
        if name == "keep_alive" and value in ("300", "0", "-1"):
            assert where[name] == float(value)
        elif name == "images":
            assert all(base64.b64decode(each) == b"hi" for each in where[name])
        elif name == "options" and not value:
            assert name not in where
        elif isinstance(value, Word):
            assert where[name] == "hi"
        else:
            assert where[name] == (
                [dict(each) if isinstance(each, Mapping) else each for each in value]
                if isinstance(value, (list, tuple))
                else dict(value)
                if isinstance(value, Mapping)
                else value
            )


@pytest.mark.parametrize(
    ("call", "name"), [(call, name) for call, vocabulary in CALLS for name in vocabulary]
)
def test_a_keyword_of_a_wrong_type_is_refused_by_its_name(
    call: Callable[..., Request], name: str
) -> None:
    for value in BAD[name]:
        with pytest.raises(InvalidRequest, match=rf"^{name} must be ") as caught:
            call(**{name: value})
        assert isinstance(caught.value, ValueError)
        assert len(str(caught.value)) < 150


@pytest.mark.parametrize("value", [10**23, 1 << 63, 1 << 20_000], ids=["far", "just", "endless"])
@pytest.mark.parametrize("name", ["seed", "num_ctx"])
def test_an_integer_that_is_too_large_is_said_to_be(name: str, value: int) -> None:
    with pytest.raises(InvalidRequest, match=r"not one that takes more than 64 bits$"):
        generate_request("m", "hi", {name: value}, "5m")


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_may_stand_in_options_and_is_checked_there_too(name: str) -> None:
    for value in GOOD[name]:
        expected = list(value) if isinstance(value, tuple) else value
        assert sent(generate(options={name: value}))["options"] == {name: expected}
    for value in BAD[name]:
        with pytest.raises(InvalidRequest, match=rf"^{name} must be "):
            generate(options={name: value})


def test_an_option_is_given_once() -> None:
    with pytest.raises(InvalidRequest, match=r"^seed is given twice$"):
        generate(seed=1, options={"seed": 1})


@pytest.mark.parametrize("call", [call for call, _ in CALLS])
@pytest.mark.parametrize(
    "name", ["max_tokens", "Temperature", "stream", "model", "prompt", "", "tfs_z"]
)
def test_an_unknown_keyword_is_refused_by_its_name(call: Callable[..., Request], name: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"^there is no keyword {name}$") as caught:
        call(**{name: 1})
    assert caught.value.hint
    with pytest.raises(InvalidRequest, match=rf"^there is no option {name}$"):
        call(options={name: 1})


@pytest.mark.parametrize(
    ("name", "meant"),
    [("topP", "top_p"), ("TopK", "top_k"), ("numCtx", "num_ctx"), ("keepAlive", "keep_alive")],
)
def test_a_misspelt_keyword_is_put_right(name: str, meant: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        generate(**{name: 1})
    assert caught.value.hint == f"did you mean {meant}?"


def test_an_unknown_keyword_far_from_any_lists_them_all() -> None:
    with pytest.raises(InvalidRequest) as caught:
        embed(wibble=1)
    assert all(name in caught.value.hint for name in (*EMBED, *OPTIONS))


@pytest.mark.parametrize("name", [5, None, ("seed",), b"seed"])
def test_the_name_of_an_option_is_a_string(name: Any) -> None:
    with pytest.raises(InvalidRequest, match="must be a string"):
        generate(options={name: 1})


# Prompt, messages, input, model


@pytest.mark.parametrize("prompt", [None, b"hello", 12345678, ["hello"], 1.5, True])
def test_a_prompt_is_a_string_and_never_repeated(prompt: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"^prompt must be a string, not \w+$") as caught:
        generate_request("tiny", prompt, {}, "5m")
    assert "12345678" not in str(caught.value)


def test_an_empty_prompt_is_refused_unless_it_comes_as_tokens() -> None:
    with pytest.raises(InvalidRequest, match=r"^the prompt is empty$"):
        generate_request("tiny", "", {}, "5m")
    with pytest.raises(InvalidRequest, match=r"^the prompt is empty$"):
        generate_request("tiny", "", {"prompt_tokens": []}, "5m")
    request = generate_request("tiny", "", {"prompt_tokens": [1, 2], "raw": True}, "5m")
    assert sent(request)["prompt_tokens"] == [1, 2]


@pytest.mark.parametrize("messages", [None, "hello", {"role": "user"}, [1], ["hello"], 5])
def test_messages_are_a_list_of_dicts(messages: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"^messages must be a list of dicts"):
        chat_request("tiny", messages, {}, "5m")


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        ({}, "message 1 has no role"),
        ({"role": 5, "content": "x"}, "message 1 has no role"),
        (
            {"role": "user", "content": b"SECRET"},
            "the content of message 1 must be a string, not bytes",
        ),
        (
            {"role": "user", "content": 777888999},
            "the content of message 1 must be a string, not int",
        ),
        ({"role": "user", "content": ["a"]}, "the content of message 1 must be a string, not list"),
        ({"role": "user", "content": "", "images": "x"}, "images of message 1 must be"),
        ({"role": "user", "content": "", "images": [5]}, "images of message 1 must be"),
    ],
)
def test_a_broken_message_is_told_by_its_place_and_never_repeated(
    message: dict[str, Any], fault: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat_request("tiny", [*USER, message], {}, "5m")
    assert str(caught.value).startswith(fault)
    assert "SECRET" not in str(caught.value)
    assert "777888999" not in str(caught.value)


def test_there_must_be_messages() -> None:
    with pytest.raises(InvalidRequest, match=r"^there are no messages$"):
        chat_request("tiny", [], {}, "5m")


def test_a_message_keeps_its_fields_and_its_images_are_encoded() -> None:
    given_messages: list[Mapping[str, Any]] = [
        MappingProxyType({"role": "user", "content": "see", "images": [b"hi", "aGk="]}),
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]},
        {"role": "tool", "content": "4", "tool_name": "f"},
    ]
    body = sent(chat_request("tiny", given_messages, {}, "5m"))
    assert body["messages"][0] == {"role": "user", "content": "see", "images": ["aGk=", "aGk="]}
    assert body["messages"][1:] == given_messages[1:]
    assert given_messages[0]["images"] == [b"hi", "aGk="], "what the caller passed was changed"


@pytest.mark.parametrize(
    ("texts", "expected"), [("a", "a"), (["a", ""], ["a", ""]), (("a",), ["a"]), ([], [])]
)
def test_the_input_of_embed(texts: Any, expected: Any) -> None:
    assert sent(embed_request("tiny", texts, {}, "5m"))["input"] == expected


@pytest.mark.parametrize("texts", [None, 5, [5], b"a", [b"a"], {"a": 1}])
def test_the_input_of_embed_is_text(texts: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"^input must be a list of strings"):
        embed_request("tiny", texts, {}, "5m")


@pytest.mark.parametrize("model", [None, 5, b"tiny", ["tiny"]])
@pytest.mark.parametrize("call", [generate_request, embed_request])
def test_a_model_is_a_string(call: Callable[..., Request], model: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"^model must be a string, not \w+$"):
        call(model, "hello", {}, "5m")


@pytest.mark.parametrize("model", ["m:cloud", "gpt-oss:20b-cloud", "me/m:CLOUD"])
def test_nothing_is_made_for_a_model_of_the_cloud(model: str) -> None:
    with pytest.raises(RemoteModelRefused):
        generate_request(model, "hello", {}, "5m")
    with pytest.raises(RemoteModelRefused):
        chat_request(model, USER, {}, "5m")
    with pytest.raises(RemoteModelRefused):
        embed_request(model, "hello", {}, "5m")
    with pytest.raises(RemoteModelRefused):
        load_request(model, "5m", {})


# The body


def test_a_request_asks_for_log_probabilities_and_forbids_truncation() -> None:
    request = generate()
    assert sent(request) == {
        "model": "tiny:latest",
        "keep_alive": "5m",
        "prompt": "hello",
        "truncate": False,
        "logprobs": True,
        "top_logprobs": 5,
    }
    assert (request.path, request.model, request.truncate) == (
        "/api/generate",
        "tiny:latest",
        False,
    )
    body = sent(chat(truncate=True))
    assert (body["messages"], body["truncate"], body["top_logprobs"]) == (USER, True, 5)
    assert chat(truncate=True).truncate
    assert sent(embed()) == {
        "model": "tiny:latest",
        "keep_alive": "5m",
        "input": "hello",
        "truncate": False,
    }


def test_log_probabilities_can_be_left_out_and_their_number_chosen() -> None:
    assert "top_logprobs" not in sent(generate(logprobs=False))
    assert sent(generate(logprobs=False))["logprobs"] is False
    assert sent(generate(top_logprobs=0))["top_logprobs"] == 0
    assert sent(generate(top_logprobs=20))["logprobs"] is True
    with pytest.raises(InvalidRequest, match=r"^top_logprobs needs logprobs$"):
        generate(logprobs=False, top_logprobs=5)


def test_a_loading_request_generates_nothing() -> None:
    request = load_request("tiny", 0, {"num_ctx": 64})
    assert (request.path, request.keep_alive) == ("/api/generate", 0)
    body = sent(request)
    assert (body["prompt"], body["stream"], body["options"]) == ("", False, {"num_ctx": 64})
    request = load_request("tiny", "300", {}, embedding=True)
    assert (request.path, request.keep_alive) == ("/api/embed", 300.0)
    assert sent(request)["input"] == []


def test_the_options_that_decide_how_a_model_is_loaded_are_told_apart() -> None:
    loading = {
        "num_ctx": 1, "num_batch": 2, "num_thread": 3, "num_gpu": 4, "main_gpu": 5, "use_mmap": True,
    }  # fmt: skip
    request = generate(options=loading, temperature=0.5, seed=7)
    assert request.reloading == loading
    assert generate(seed=7).reloading == {}


@pytest.mark.parametrize(
    ("given_value", "wire"),
    [
        ("5m", "5m"),
        ("300", 300.0),
        ("-1", -1.0),
        (300, 300),
        (2.5, 2.5),
        (0, 0),
        (-1, -1),
        ("1.5h", "1.5h"),
    ],
)
def test_a_plain_number_in_a_string_is_seconds(given_value: Any, wire: Any) -> None:
    """In its environment Ollama takes "300" for seconds; in JSON it would refuse it."""
    assert wire_keep_alive(given_value) == wire
    assert type(wire_keep_alive(given_value)) is type(wire)
    assert default_keep_alive(given_value) == wire
    request = generate_request("tiny", "hello", {}, given_value)
    assert request.keep_alive == sent(request)["keep_alive"] == wire


def test_a_wrong_setting_is_no_wrong_request() -> None:
    with pytest.raises(ConfigError, match=r"pool\.keep_alive must be seconds") as caught:
        default_keep_alive("abc")
    assert not isinstance(caught.value, InvalidRequest)
    assert "OLLAMA_KEEP_ALIVE" in caught.value.hint and "pool.keep_alive" in caught.value.hint


def test_the_default_keep_alive_is_checked_too() -> None:
    with pytest.raises(ConfigError, match=r"^keep_alive must be "):
        generate_request("tiny", "hello", {}, "soon")


@pytest.mark.parametrize("value", ["\ud800", "a\udfffb", {"role": "user", "content": "\ud83d"}])
def test_half_a_surrogate_pair_is_refused_without_a_trace_of_the_text(value: Any) -> None:
    with pytest.raises(InvalidRequest, match="surrogate") as caught:
        if isinstance(value, dict):
            chat_request("tiny", [value], {}, "5m")
        else:
            generate_request("tiny", f"SECRET {value}", {}, "5m")
    error: BaseException | None = caught.value
    while error is not None:
        assert not isinstance(error, UnicodeError), "the chain holds the text"
        error = error.__cause__ or error.__context__


def circle() -> dict[str, Any]:
    inside: dict[str, Any] = {}
    inside["inside"] = inside
    return inside


@pytest.mark.parametrize("schema", [{"a": object()}, {"a": 1j}, circle(), {"a": {"b": print}}])
def test_what_json_cannot_say_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="JSON"):
        generate(format=schema)


def test_no_request_shows_its_body() -> None:
    requests = [
        generate_request("tiny", "SECRET", {"system": "SECRET", "stop": ["SECRET"]}, "5m"),
        chat_request("tiny", [{"role": "user", "content": "SECRET"}], {}, "5m"),
        embed_request("tiny", ["SECRET"], {}, "5m"),
    ]
    for each in requests:
        assert b"SECRET" in each.body
        for shown in (repr(each), str(each), f"{each}", repr([each])):
            assert "SECRET" not in shown


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.dictionaries(st.sampled_from([*GENERATE, *OPTIONS, "other"]), anything, max_size=4),
    st.text() | anything,
)
def test_any_keywords_make_a_request_or_an_error_of_ours(
    keywords: dict[str, Any], prompt: Any
) -> None:
    try:
        request = generate_request("tiny", prompt, keywords, "5m")
    except InvalidRequest as error:
        assert len(str(error)) < 200
    else:
        assert sent(request)["prompt"] == prompt


@given(st.lists(st.dictionaries(st.text(max_size=8) | st.just("content"), anything, max_size=3)))
def test_any_messages_make_a_request_or_an_error_of_ours(messages: list[dict[str, Any]]) -> None:
    try:
        request = chat_request("tiny", [{"role": "user", **each} for each in messages], {}, "5m")
    except InvalidRequest:
        pass
    else:
        assert len(sent(request)["messages"]) == len(messages)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("seed", 2**63), ("num_predict", 2**70), ("num_ctx", -(2**63) - 1)),
        *(("temperature", 10**400), ("images", ["no base64 !!"]), ("images", [""])),
    ],
)
def test_a_value_out_of_range_is_named_at_the_call(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=name):
        generate_request("m", "p", {name: value}, "5m")


def test_what_an_old_daemon_does_not_grant_is_what_was_asked_for() -> None:
    missing = ("logprobs", "truncate", "_debug_render_only")
    plain = generate_request("m", "p", {}, "5m")
    assert plain.ungranted(missing) == ("logprobs", "truncate")
    bare = generate_request("m", "p", {"logprobs": False, "truncate": True}, "5m")
    assert bare.ungranted(missing) == ()
    rendering = generate_request("m", "p", {"_debug_render_only": True}, "5m")
    assert rendering.ungranted(missing) == missing
    assert rendering.ungranted(()) == ()


def test_what_decides_how_a_model_is_loaded_goes_where_it_belongs() -> None:
    asked = generate_request("m", "p", {"num_ctx": 64, "shift": False, "seed": 1}, "5m")
    assert asked.reloading == {"num_ctx": 64, "shift": False}
    body = json.loads(load_request("m", "5m", asked.reloading).body)
    assert (body["options"], body["shift"]) == ({"num_ctx": 64}, False)
    body = json.loads(load_request("m", "5m", {}).body)
    assert body["options"] == {} and "shift" not in body


def test_a_request_tells_what_its_model_must_be_able_to_do() -> None:
    def asked(**keywords: Any) -> tuple[str, ...]:
        return generate_request("m", "hello", keywords, "5m").needs

    assert asked() == asked(think=False) == asked(images=[]) == ("completion",)
    assert asked(images=[b"\x89PNG"]) == ("completion", "vision")
    assert asked(think="high", suffix="end") == ("completion", "thinking", "insert")
    assert asked(context=[1, 2]) == asked(prompt_tokens=[3]) == ("completion", "tokens")
    shown: list[dict[str, Any]] = [{"role": "user", "content": "", "images": [b"\x89PNG"]}]
    tools = [{"type": "function", "function": {"name": "now"}}]
    assert chat_request("m", USER, {}, "5m").needs == ("completion",)
    assert chat_request("m", shown, {"tools": tools}, "5m").needs == (
        "completion",
        "tools",
        "vision",
    )
    assert embed_request("m", "hello", {}, "5m").needs == ("embedding",)
    assert load_request("m", "5m", {}, embedding=True).needs == ("embedding",)
