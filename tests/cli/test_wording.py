"""What is told at a terminal is in the command's own words."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from ollama_adapter.cli.wording import in_the_commands_words
from ollama_adapter.core.failures import context_overflow
from ollama_adapter.core.patience import Patience
from ollama_adapter.core.requests import generate_request
from ollama_adapter.errors import AdapterError
from ollama_adapter.system.jail.levels import Facts, decide

PYTHON = re.compile(r"\b[a-z_]+=|`async with`|ensure_loaded|keyword|\b(stream|daemon|pool)\.")


def given_twice() -> None:
    generate_request("m", "hi", {"temperature": 1, "options": {"temperature": 2}}, "5m")


def no_prompt() -> None:
    generate_request("m", "", {}, "5m")


def unknown_keyword() -> None:
    generate_request("m", "hi", {"raw": 3}, "5m")


def too_long() -> None:
    raise context_overflow("m", 5000, 4096)


def nobody_reads() -> None:
    patience = Patience(1.0, "s")
    patience.check(3, 0)
    patience.check(3, 10**10)


def no_sandbox() -> None:
    decide(Facts(elsewhere="not Linux"))


@pytest.mark.parametrize(
    "fail", [given_twice, no_prompt, unknown_keyword, too_long, nobody_reads, no_sandbox]
)
def test_no_hint_speaks_python(fail: Callable[[], None]) -> None:
    with pytest.raises(AdapterError) as caught:
        fail()
    hint = caught.value.hint
    assert hint and PYTHON.search(hint), "this hint needs no other words"
    told = in_the_commands_words(hint)
    assert told and not PYTHON.search(told), told


def test_a_setting_is_named_as_its_variable() -> None:
    told = in_the_commands_words("stream.next_token_s is the limit, and can be raised")
    assert told == "OLLAMA_ADAPTER_STREAM_NEXT_TOKEN_S is the limit, and can be raised"
    kept = "set daemon.adopt_uids = [5]; else set OLLAMA_HOST to another port"
    assert in_the_commands_words(kept) == kept  # a line of the settings file
