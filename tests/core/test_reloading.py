"""Options that would load a model anew: kept, refused or allowed; and the request written anew."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_adapter.config import Reloading
from ollama_adapter.core.reloading import Held, Settled, check_options, readdress, settle
from ollama_adapter.core.requests import (
    Request,
    chat_request,
    embed_request,
    generate_request,
)
from ollama_adapter.core.vocabulary import RELOADING
from ollama_adapter.errors import ConfigError, InvalidRequest

KEEP, REFUSE, ALLOW = Reloading.KEEP, Reloading.REFUSE, Reloading.ALLOW
LOADED = Held({"num_ctx": 2048, "use_mmap": False}, 2048, 8192)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "num_ctx": st.sampled_from([2048, 4096, 1 << 40]),
        "num_thread": st.integers(0, 4),
        "num_gpu": st.integers(-1, 1),
        "use_mmap": st.booleans(),
        "shift": st.booleans(),
        "draft_num_predict": st.integers(0, 2),
    },
)


@given(OPTIONS, st.sampled_from(Reloading))
def test_what_a_model_has_is_no_difference(options: dict[str, Any], policy: Reloading) -> None:
    assert settle("m", options, Held(options), policy) == Settled(options)
    assert settle("m", {}, Held(options), policy) == Settled(options)


@given(OPTIONS, OPTIONS)
def test_what_is_kept_is_always_sent_and_differences_are_told(
    asked: dict[str, Any], has: dict[str, Any]
) -> None:
    settled = settle("m", asked, Held(has), KEEP)
    assert (settled.reloading, settled.anew) == (has, False)
    if not settled.notes:
        settle("m", asked, Held(has), REFUSE)
    else:
        with pytest.raises(InvalidRequest):
            settle("m", asked, Held(has), REFUSE)


@given(OPTIONS, OPTIONS)
def test_a_model_loaded_anew_serves_both(asked: dict[str, Any], has: dict[str, Any]) -> None:
    settled = settle("m", asked, Held(has), ALLOW)
    again = Held(settled.reloading)
    assert not settle("m", asked, again, ALLOW).anew
    kept = {name: value for name, value in has.items() if name not in asked}
    assert not settle("m", kept, again, ALLOW).anew


@pytest.mark.parametrize(
    ("asked", "held"),
    [
        ({"num_ctx": 4096}, Held({}, 4096)),
        ({"num_ctx": 1 << 40}, Held({}, 8192, 8192)),
        ({"num_ctx": 1}, Held({}, 4, 8192)),
        ({"shift": True, "num_batch": 512, "num_gpu": -1}, Held({})),
    ],
)
def test_what_means_the_same_is_no_difference(asked: dict[str, Any], held: Held) -> None:
    assert settle("m", asked, held, REFUSE) == Settled({})


@pytest.mark.parametrize(
    ("asked", "held", "words"),
    [
        ({"num_ctx": 8192}, LOADED, "num_ctx=8192 was not used: m is in memory with num_ctx=2048"),
        ({"shift": False}, LOADED, "shift=False was not used: m is in memory with shift=True"),
        (
            {"use_mmap": True},
            Held({}),
            "use_mmap=True was not used: m is in memory with the usual use_mmap",
        ),
        (
            {"num_ctx": 8192, "num_gpu": 0},
            Held({}, 4096, 8192),
            "num_ctx=8192, num_gpu=0 was not used: m is in memory with num_ctx=4096, num_gpu=-1",
        ),
    ],
)
def test_the_words(asked: dict[str, Any], held: Held, words: str) -> None:
    assert settle("m", asked, held, KEEP).notes == (words,)


def test_a_refusal_says_what_to_do() -> None:
    with pytest.raises(InvalidRequest, match="in memory with num_ctx=2048") as caught:
        settle("m", {"num_ctx": 4096}, LOADED, REFUSE)
    assert "pool.reloading" in caught.value.hint


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_ctx": "many"}, "num_ctx must be an integer"),
        ({"temperature": 1.0}, "no option of a load temperature"),
        ({"shift": 1}, "shift must be True or False"),
    ],
)
def test_what_decides_no_load_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        check_options(options)


def test_what_decides_a_load_is_not() -> None:
    check_options({"num_ctx": 64, "use_mmap": False, "shift": True})
    check_options({"num_ctx": 1, "num_gpu": -1, "num_thread": 0})


@pytest.mark.parametrize("wrong", [0, -1, -(10**400), 1.5, "64", None, True])
def test_a_context_is_a_number_of_tokens(wrong: object) -> None:
    with pytest.raises(ConfigError, match=r"^num_ctx must be ") as caught:
        check_options({"num_ctx": wrong})
    assert caught.value.hint


# The request


def ask(**keywords: Any) -> Request:
    return generate_request("m", "a prompt 🌊", {"seed": 7} | keywords, "5m")


def body(request: Request) -> dict[str, Any]:
    return dict(json.loads(request.body))


def test_nothing_is_written_where_nothing_changes() -> None:
    request = ask(num_ctx=64)
    assert readdress(request, "m:latest", {"num_ctx": 64}, "5m") is request


def test_options_take_the_place_of_those_that_were_asked_for() -> None:
    request = ask(num_ctx=64, num_thread=2, shift=False)
    sent = readdress(request, "n:latest", {"num_ctx": 128}, -1)
    wanted = body(request) | {"model": "n:latest", "keep_alive": -1}
    wanted["options"] = {"seed": 7, "num_ctx": 128}
    del wanted["shift"]
    assert body(sent) == wanted
    assert (sent.model, sent.keep_alive, sent.reloading) == ("n:latest", -1, {"num_ctx": 128})
    assert body(readdress(sent, "n:latest", {"shift": True}, -1))["shift"] is True


def test_a_request_without_options_gets_them_and_loses_them() -> None:
    request = generate_request("m", "p", {}, "5m")
    sent = readdress(request, "m:latest", {"num_ctx": 64}, "5m")
    assert body(sent)["options"] == {"num_ctx": 64}
    assert "options" not in body(readdress(sent, "m:latest", {}, "5m"))


def test_an_embedding_knows_no_shift() -> None:
    sent = readdress(embed_request("m", "text", {}, "5m"), "m:latest", {"shift": False}, "5m")
    assert "shift" not in body(sent)


@given(OPTIONS, OPTIONS)
def test_what_is_sent_has_exactly_these_options(asked: dict[str, Any], has: dict[str, Any]) -> None:
    request = chat_request("m", [{"role": "user", "content": "x"}], asked | {"top_k": 3}, "5m")
    sent = readdress(request, "m:latest", has, "5m")
    options = body(sent).get("options", {})
    found = {name: options[name] for name in RELOADING if name in options}
    found |= {"shift": body(sent)["shift"]} if "shift" in body(sent) else {}
    assert found == has == sent.reloading
    assert options["top_k"] == 3
    assert body(sent)["messages"] == body(request)["messages"]
