"""From arguments to a request."""

from __future__ import annotations

from pathlib import Path

import pytest

from ollama_adapter.cli import asking
from ollama_adapter.config import Config
from ollama_adapter.core.vocabulary import OPTIONS
from ollama_adapter.errors import InvalidRequest


@pytest.mark.parametrize(
    ("words", "model", "expected"),
    [
        (["hi"], "", ("tinydoc", "hi")),
        (["m", "hi"], "", ("m", "hi")),
        (["hi"], "m", ("m", "hi")),
        (["m", "-"], "", ("m", "-")),
        ([], "m", ("m", None)),
        ([], "", ("tinydoc", None)),
    ],
)
def test_one_word_is_the_prompt_and_two_are_model_and_prompt(
    words: list[str], model: str, expected: tuple[str, str | None]
) -> None:
    assert asking.model_and_prompt(words, model, Config()) == expected


@pytest.mark.parametrize(
    ("words", "model"), [(["tell", "me", "more"], ""), (["a", "b"], "m"), (["", "b"], "")]
)
def test_other_numbers_of_words_ask_for_quotes(words: list[str], model: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        asking.model_and_prompt(words, model, Config())
    assert "quotes" in caught.value.hint


def test_options_have_the_type_that_ollama_gives_them() -> None:
    given = ["temperature=0.5", "seed=7", "use_mmap=off", "stop=END", "stop=\n", "top_p=1"]
    assert asking.keywords({"seed": None, "num_ctx": 64}, given) == {
        "num_ctx": 64,
        "options": {
            "temperature": 0.5,
            "seed": 7,
            "use_mmap": False,
            "stop": ["END", "\n"],
            "top_p": 1.0,
        },
    }


def test_a_list_may_be_json() -> None:
    assert asking.parse_option("stop", '["a", "b"]') == ["a", "b"]


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_refuses_what_it_is_not(name: str) -> None:
    wrong = "[1" if OPTIONS[name].words == "a list of strings" else "abc"
    with pytest.raises(InvalidRequest, match=f"{name} must be .*, not '"):
        asking.parse_option(name, wrong)


@pytest.mark.parametrize("option", ["temperature", "=1", ""])
def test_an_option_without_a_value_is_refused(option: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        asking.keywords({}, [option])
    assert "NAME=VALUE" in caught.value.hint


@pytest.mark.parametrize("text", ["nan", "inf", "1e999"])
def test_a_number_is_finite(text: str) -> None:
    with pytest.raises(InvalidRequest, match="finite"):
        asking.parse_option("temperature", text)


def test_bytes_that_are_no_text_are_refused_with_their_place() -> None:
    with pytest.raises(InvalidRequest, match="byte 0xff at position 2"):
        asking.decode(b"ab\xff", "the standard input")
    with pytest.raises(InvalidRequest, match="an argument is not UTF-8: byte 0xe9 at position 3"):
        asking.model_and_prompt(["caf\udce9"], "", Config())


def test_a_format_is_json_or_a_schema_in_a_file(tmp_path: Path) -> None:
    good, broken, number = tmp_path / "good", tmp_path / "broken", tmp_path / "number"
    good.write_text('{"type": "object"}')
    broken.write_text("{")
    number.write_text("1")
    assert asking.read_format(None) is None
    assert asking.read_format("json") == "json"
    assert asking.read_format(str(good)) == {"type": "object"}
    for path, words in (
        (broken, "not JSON"),
        (number, "object"),
        (tmp_path / "no", "cannot be read"),
    ):
        with pytest.raises(InvalidRequest, match=words):
            asking.read_format(str(path))
