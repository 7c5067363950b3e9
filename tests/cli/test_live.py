"""The live view leaves on the screen what a plain program would, whatever it draws in between."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from ollama_adapter.cli import live
from ollama_adapter.cli.draw import token_style
from ollama_adapter.cli.live import Flow, LiveView
from ollama_adapter.cli.output import Output
from ollama_adapter.events import Channel, SessionFrame, State, TokenEvent
from tests.cli.screen import Screen

TEXT = st.text(st.sampled_from("ab c\n日本👍é\t"), max_size=60)
SIZES = st.tuples(st.integers(2, 30), st.integers(1, 6))


class Sink(Output):
    """A terminal without a device."""

    def __init__(self, screen: Screen) -> None:
        super().__init__(-1, "utf-8")
        self.screen = screen

    @property
    def ready(self) -> bool:
        return True

    def write_now(self, text: str) -> None:
        self.screen.feed(text.replace("\n", "\r\n").encode())


@contextmanager
def sized(width: int, height: int) -> Iterator[None]:
    real = os.get_terminal_size
    live.os.get_terminal_size = lambda _=1: os.terminal_size((width, height))  # type: ignore[attr-defined]
    try:
        yield
    finally:
        live.os.get_terminal_size = real  # type: ignore[attr-defined]


def view_on(screen: Screen) -> LiveView:
    console = Console(
        file=io.StringIO(), force_terminal=True, width=screen.width, color_system="truecolor"
    )
    return LiveView(Sink(screen), console)


def event(text: str, index: int = 0, channel: Channel = Channel.TEXT) -> TokenEvent:
    return TokenEvent(text, 0, 0, "s", "m", [-0.1, -3.0], arrival_ns=1000 + index, channel=channel)


def frame() -> SessionFrame:
    return SessionFrame(0.5, State.FLOWING)


@given(st.lists(TEXT, max_size=12), SIZES)
def test_the_screen_ends_as_if_the_text_had_just_been_written(
    pieces: list[str], size: tuple[int, int]
) -> None:
    width, height = size
    screen, plain = Screen(width, height), Screen(width, height)
    with sized(width, height):
        view = view_on(screen)
        view.begin("starting")
        for index, piece in enumerate(pieces):
            view.add(event(piece, index))
            view.draw(frame(), 2000)
        view.finish()
    written = "".join(pieces).lstrip()
    plain.feed(written.replace("\n", "\r\n").encode())
    assert screen.text == plain.text


def test_the_line_is_below_the_text_while_it_runs() -> None:
    screen = Screen(60, 10)
    with sized(60, 10):
        view = view_on(screen)
        view.add(event("Hello "))
        view.draw(frame(), 2000)
        assert screen.text.splitlines()[0] == "Hello"
        assert "FLOWING" in screen.text.splitlines()[2]
        assert (screen.row, screen.column) == (0, 6)
        view.finish()
    assert screen.text == "Hello"
    assert (screen.row, screen.column) == (1, 0)


def test_a_stream_that_was_cut_says_why_instead_of_a_rate() -> None:
    with sized(80, 10):
        screen = Screen(80, 10)
        view = view_on(screen)
        view.add(event("a", 0))
        view.add(event("b", 1))
        view.draw(SessionFrame(0.5, State.STALLING), 2000, "the connection was cut")
        assert "interrupted, going on: the connection was cut" in screen.text
        assert "tok/s" not in screen.text
        view.draw(frame(), 3000)
        assert "interrupted" not in screen.text and "tok/s" in screen.text


def test_a_long_silence_is_counted_instead_of_a_rate() -> None:
    stalling = SessionFrame(0.5, State.STALLING)
    with sized(80, 10):
        screen = Screen(80, 10)
        view = view_on(screen)
        view.add(event("a"))
        view.draw(stalling, 2_000_000_000)
        assert "tok/s" in screen.text
        view.draw(stalling, 7_000_001_000)
        assert "no token for 7 s" in screen.text and "tok/s" not in screen.text


def test_thinking_is_set_apart() -> None:
    screen = Screen(60, 10)
    with sized(60, 10):
        view = view_on(screen)
        view.add(event("let me see", channel=Channel.THINKING))
        view.add(event("\n"))
        view.add(event("42"))
        view.finish()
    assert screen.text == "let me see\n\n42"


def test_control_characters_are_shown_and_not_obeyed() -> None:
    screen = Screen(60, 10)
    with sized(60, 10):
        view = view_on(screen)
        view.add(event("a\x1b[2Jb\x07\r\nc\x9b31md\u202e"))
        view.finish()
    assert screen.text == "a␛[2Jb␇\nc\ufffd31md\ufffd"


@given(TEXT, TEXT, st.integers(2, 12), st.integers(2, 12))
def test_after_a_resize_the_text_ends_where_it_would_have(
    before: str, after: str, one: int, other: int
) -> None:
    style = token_style(event("x"))
    resized, fresh = Flow(one), Flow(other)
    before, after = before.replace("\t", ""), "x" + after.replace("\t", "")
    resized.feed([(before, style)])
    resized.resize(other)
    resized.feed([(after, style)])
    fresh.feed([(before + after, style)])
    assert resized.column == fresh.column
    assert "".join(text for text, _ in resized.rest()) == "".join(text for text, _ in fresh.rest())


@pytest.mark.parametrize("height", [1, 2, 3])
def test_a_terminal_of_few_rows(height: int) -> None:
    screen = Screen(20, height)
    with sized(20, height):
        view = view_on(screen)
        for index in range(9):
            view.add(event(f"line {index}\n", index))
            view.draw(frame(), 2000)
        view.finish()
    assert screen.text == "\n".join(f"line {index}" for index in range(9))
