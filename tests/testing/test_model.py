"""The pretended model: a pure function of the text so far, so that a cut answer is continued exactly."""

from __future__ import annotations

import math
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_adapter.errors import ConfigError
from ollama_adapter.testing import PretendModel
from ollama_adapter.testing.model import THINK, THOUGHT, TURN, Token, Writer

PROMPTS = st.text(max_size=40)
MODEL = PretendModel(length=24)
THINKER = PretendModel("thinker", length=12, thinking=4, capabilities=("completion", "thinking"))


def write(
    model: PretendModel, text: str, temperature: float = 0.0, seed: int | None = None
) -> list[Token]:
    writer = Writer(model, text, temperature, seed)
    return list(islice(iter(writer.next, None), 200))


def said(tokens: list[Token]) -> str:
    return "".join(each.text for each in tokens)


@given(PROMPTS, st.sampled_from([MODEL, THINKER]), st.data())
def test_a_cut_answer_is_continued_exactly(
    prompt: str, model: PretendModel, data: st.DataObject
) -> None:
    whole = write(model, prompt + TURN)
    cut = data.draw(st.integers(0, len(whole)))
    assert write(model, prompt + TURN + said(whole[:cut])) == whole[cut:]


@given(st.text(alphabet="ab ", max_size=40), st.data())
def test_without_a_turn_the_text_is_an_answer_that_goes_on(text: str, data: st.DataObject) -> None:
    whole = write(MODEL, text)
    cut = data.draw(st.integers(1, max(1, len(whole))))
    assert write(MODEL, text + said(whole[:cut])) == whole[cut:]


@given(PROMPTS)
def test_an_answer_has_the_length_it_was_given(prompt: str) -> None:
    assert len(write(MODEL, prompt + TURN)) == 24
    assert len(write(PretendModel(length=None), prompt + TURN)) == 200


def test_prompts_and_models_have_answers_of_their_own() -> None:
    answers = {said(write(PretendModel(name), f"{n}{TURN}")) for name in "ab" for n in range(50)}
    assert len(answers) == 100


def test_an_answer_holds_characters_of_every_width() -> None:
    widths = {len(each.encode()) for n in range(20) for each in said(write(MODEL, f"{n}{TURN}"))}
    assert widths == {1, 2, 3, 4}


@given(PROMPTS, st.integers(0, 1 << 31), st.floats(0.1, 4.0))
def test_a_seed_makes_an_answer_that_can_be_had_again(prompt: str, seed: int, warm: float) -> None:
    assert write(MODEL, prompt + TURN, warm, seed) == write(MODEL, prompt + TURN, warm, seed)


def test_seeds_differ_and_so_do_answers_without_one() -> None:
    seeded = {said(write(MODEL, TURN, 1.0, seed)) for seed in range(20)}
    assert len(seeded) == 20
    assert len({said(write(MODEL, TURN, 1.0)) for _ in range(20)}) == 20
    assert said(write(MODEL, TURN)) not in seeded


@given(PROMPTS)
def test_the_probabilities_are_those_of_a_distribution(prompt: str) -> None:
    for token in write(MODEL, prompt + TURN):
        best = [logprob for _, logprob in token.candidates]
        assert best == sorted(best, reverse=True)
        assert len(best) == 20
        assert 0 < sum(map(math.exp, best)) <= 1 + 1e-9
        assert token.logprob <= 0


def test_some_tokens_are_sure_and_some_are_not() -> None:
    sureness = [math.exp(each.logprob) for n in range(20) for each in write(MODEL, f"{n}{TURN}")]
    assert min(sureness) < 0.1
    assert max(sureness) > 0.4


def test_without_alternatives_the_words_are_the_same() -> None:
    quick = Writer(MODEL, TURN, alternatives=False)
    assert said(list(iter(quick.next, None))) == said(write(MODEL, TURN))


def test_a_thinker_thinks_first() -> None:
    words = [each.text for each in write(THINKER, f"x{TURN}")]
    assert words[0] == THINK
    assert words[5] == THOUGHT
    assert len(words) == 4 + 2 + 12


def test_equal_texts_have_equal_vectors_of_length_one() -> None:
    one, same, other = (PretendModel().embed(each) for each in ("a", "a", "b"))
    assert one == same != other
    assert math.isclose(math.hypot(*one), 1.0)


def test_an_answer_needs_a_length() -> None:
    with pytest.raises(ConfigError):
        PretendModel(length=0)
