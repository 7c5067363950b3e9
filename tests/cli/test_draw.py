"""Colours, the bar, the line and the account."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from ollama_adapter.cli import draw
from ollama_adapter.errors import Interruption
from ollama_adapter.events import (
    Channel,
    Finish,
    Guarantee,
    Seam,
    Standing,
    State,
    Statistics,
    Substitution,
    TokenEvent,
    Way,
)


def event(*logprobs: float, channel: Channel = Channel.TEXT) -> TokenEvent:
    return TokenEvent("word", 0, 0, "s", "m", list(logprobs) or None, channel=channel)


def test_what_is_sure_has_the_colour_of_the_terminal() -> None:
    assert draw.token_style(event(0.0, -20.0, -20.0)).color is None
    assert draw.token_style(event()).color is None  # not known: nothing is claimed


def test_a_guess_is_coloured() -> None:
    fifth = math.log(0.2)
    assert draw.token_style(event(*[fifth] * 5)) == draw.CERTAINTIES[0]


def test_surer_is_never_further_from_the_terminals_colour() -> None:
    styles = []
    for percent in range(20, 100):
        best, rest = percent / 100, (1 - percent / 100) / 4
        styles.append(draw.token_style(event(math.log(best), *[math.log(rest)] * 4)))
    levels = [draw.CERTAINTIES.index(each) for each in styles]
    assert levels == sorted(levels)
    assert levels[0] == 0 and levels[-1] >= 5


def test_thinking_has_a_look_of_its_own() -> None:
    assert draw.token_style(event(0.0, channel=Channel.THINKING)) == draw.THINKING


@given(st.floats(0, 1), st.integers(0, 60), st.booleans())
def test_the_bar_has_its_width_and_no_other(energy: float, width: int, plain: bool) -> None:
    bar = draw.energy_bar(energy, width, State.FLOWING, ascii_only=plain)
    assert cell_len(bar.plain) == width


def test_the_bar_moves_in_eighths() -> None:
    bars = [draw.energy_bar(n / 80, 10, State.FLOWING).plain for n in range(81)]
    assert len(set(bars)) == 81
    assert bars[0] == " " * 10 and bars[80] == "█" * 10 and bars[12] == "█▌" + " " * 8


@given(
    st.sampled_from(State),
    st.floats(0, 1),
    st.floats(0, 1e7),
    st.one_of(st.none(), st.floats(0, 1e12)),
    st.integers(0, 99_999),
    st.booleans(),
)
def test_the_line_does_not_jump(
    state: State, energy: float, ttft: float, tps: float | None, tokens: int, waiting: bool
) -> None:
    status = draw.Status(state, energy, ttft, waiting, tps, tokens)
    still = draw.status_line(draw.Status(), 79)
    assert cell_len(draw.status_line(status, 79).plain) == cell_len(still.plain) <= 79
    assert draw.status_line(status, 79, ascii_only=True).plain.isascii()


@pytest.mark.parametrize("width", range(120))
def test_the_line_fits(width: int) -> None:
    line = draw.status_line(draw.Status(State.SATURATED, 0.5), width)
    assert cell_len(line.plain) <= width
    if width >= 19:
        assert "SATURATED" in line.plain


@pytest.mark.parametrize("width", range(0, 130, 3))
@pytest.mark.parametrize("reason", Interruption)
def test_a_notice_fits_and_leaves_the_state(reason: str, width: int) -> None:
    status = draw.Status(State.STALLING, 0.5, 412.0, False, 38.0, 57)
    status.notice = f"interrupted, going on: {reason}"
    for ascii_only in (False, True):
        line = draw.status_line(status, width, ascii_only=ascii_only).plain
        assert cell_len(line) <= width
        assert not ascii_only or line.isascii()
        assert "tok/s" not in line
        if width >= 19:
            assert "STALLING" in line
        if width >= 95:
            assert status.notice in line


def shown(statistics: Statistics, width: int = 100) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(draw.summary(statistics))
    return captured.get()


def test_the_account_tells_what_was_kept_and_why_a_promise_was_not() -> None:
    statistics = Statistics("s", "m", "m:1b", Finish.STOP, 12, 3120.0, 8.0, 0.41, warm=True)
    statistics.guarantees = (
        Guarantee("ttft warm", False, 3120.0, 2000.0, "ms", "queued: the daemon was busy"),
        Guarantee("throughput", None, None, 15.0, "tokens/s"),
        Guarantee("handling", True, 0.2, 16.67, "ms"),
    )
    text = shown(statistics)
    assert "12 tokens" in text and "3.12 s (warm)" in text and "m:1b" in text
    assert "missed ttft warm 3.12 s, promised 2.00 s: queued: the daemon was busy" in text
    assert "kept   handling 0.20 ms" in text
    assert "throughput" not in text


def test_the_account_tells_every_place_where_it_went_on() -> None:
    statistics = Statistics("s", "m", "m", Finish.STOP, 20)
    statistics.seams = (
        Seam(0, Way.ANEW, Interruption.CUT, 0.0),
        Seam(1, Way.TOKENS, Interruption.RUNNER_DIED, 120.0, 1.0),
        Seam(12, Way.TEXT, Interruption.STALLED, 2340.0, 0.934, exact=False),
    )
    assert [line.strip() for line in shown(statistics, 200).splitlines()[1:]] == [
        "resumed before the first token (the connection was cut) · asked anew",
        "after 1 token (the process that ran the model died) · by token ids"
        " · fidelity 1.00 · gap 120 ms",
        "after 12 tokens (no token came within the limit) · from its text"
        " · fidelity 0.93 · gap 2.34 s · its length is not exact",
    ]
    assert "resumed" not in shown(Statistics("s", "m", "m", Finish.STOP, 20))


def test_the_account_tells_the_age_of_an_answer_from_memory() -> None:
    statistics = Statistics("s", "m", "m", Finish.STOP, 20, cached_age_s=12.4)
    assert "cached from memory, 12 s old: no daemon can be had" in shown(statistics)
    assert "cached" not in shown(Statistics("s", "m", "m", Finish.STOP, 20))


def test_the_account_tells_who_answered_instead_and_what_was_changed() -> None:
    statistics = Statistics(
        "s", "big", "small", Finish.STOP, 20, queued_ms=1_500.0, notes=("num_ctx stays 4096",)
    )
    statistics.substitution = Substitution("big", "small", "it does not fit")
    text = shown(statistics)
    assert "instead small for big: it does not fit" in text
    assert "changed num_ctx stays 4096" in text and "queued for 1.50 s" in text
    plain = shown(Statistics("s", "m", "m", Finish.STOP, 20, queued_ms=3.0))
    assert not any(word in plain for word in ("instead", "changed", "queued"))


def test_how_a_promise_has_been_kept() -> None:
    nothing = Standing("throughput", 15.0, "tokens/s")
    assert draw.standing(nothing) == "15 tokens/s, not measured yet"
    late = Guarantee("ttft warm", False, 2_500.0, 2_000.0, "ms", "cold: it had to be loaded")
    told = draw.standing(Standing("ttft warm", 2_000.0, "ms", 3, 1, late))
    assert told == "2.00 s: met 3, missed 1, latest 2.50 s, cold: it had to be loaded"
    soon = Guarantee("ttft warm", True, 20.0, 2_000.0, "ms")
    told = draw.standing(Standing("ttft warm", 2_000.0, "ms", 1, 0, soon))
    assert told == "2.00 s: met 1, missed 0, latest 20 ms"


def test_the_account_says_that_the_demonstration_model_knows_nothing() -> None:
    text = shown(Statistics("s", "tinydoc", "TinyDoc:latest", Finish.STOP))
    assert "knows nothing" in text
    assert "knows nothing" not in shown(Statistics("s", "m", "m", Finish.STOP))


def test_the_account_fits_a_narrow_terminal() -> None:
    statistics = Statistics("s", "m", "m", Finish.ABORTED, 1, 10.0, None, 0.4)
    statistics.guarantees = (
        Guarantee("ttft warm", False, 3120.0, 2000.0, "ms", "queued: the daemon was busy"),
        Guarantee("handling", True, 0.2, 16.67, "ms"),
    )
    for width in (20, 25, 30, 40):
        lines = shown(statistics, width).splitlines()
        assert all(len(line) <= width for line in lines)
        labels = [line.split()[0] for line in lines if not line.startswith(" ")]
        assert labels == ["answer", "kept", "missed"]
        words = " ".join(" ".join(lines).split())
        assert "kept handling 0.20 ms" in words and "missed ttft warm 3.12 s, promised" in words
    assert all(len(line) <= 5 for line in shown(statistics, 5).splitlines())


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1_000, "1.0 kB"), (1_129_632, "1.1 MB"), (4.7e9, "4.7 GB")],
)
def test_sizes(count: float, text: str) -> None:
    assert draw.size(count) == text
