"""Output that never holds up the loop, and nothing that a terminal would obey."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import sys

import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_adapter.cli.output import Output, asked, harmless


@given(st.text())
def test_nothing_that_a_terminal_obeys_is_left(text: str) -> None:
    left = harmless(text)
    assert all(each in "\n\t" or each.isprintable() or ord(each) >= 0xA0 for each in left)
    left.encode()


def test_ordinary_text_stays() -> None:
    text = "a\tb\n日本 👩‍💻 é\u200d"
    assert harmless(text) == text


@pytest.mark.anyio
async def test_a_full_pipe_makes_the_writer_wait_and_not_the_loop() -> None:
    read, write = os.pipe()
    os.set_blocking(read, False)
    text = "x" * 300_000
    async with asyncio.TaskGroup() as group:
        writing = group.create_task(Output(write).write(text))
        for _ in range(200):
            await anyio.lowlevel.checkpoint()
        assert not writing.done()
        got = 0
        while got < len(text):
            with contextlib.suppress(BlockingIOError):
                got += len(os.read(read, 65536))
            await anyio.lowlevel.checkpoint()
    os.close(read)
    os.close(write)


@pytest.mark.anyio
async def test_a_closed_pipe_is_an_error() -> None:
    read, write = os.pipe()
    os.close(read)
    with pytest.raises(BrokenPipeError):
        await Output(write).write("x")
    os.close(write)


def test_what_an_encoding_lacks_is_replaced() -> None:
    read, write = os.pipe()
    Output(write, "ascii").write_now("caf\u00e9")
    assert os.read(read, 100) == b"caf?"
    os.close(read)
    os.close(write)


@pytest.mark.parametrize(
    ("typed", "yes"),
    [
        *((b"y\n", True), (b" YES \n", True), (b"y", True), (b"n\n", False), (b"\n", False)),
        *((b"", False), (b"\xff\n", False)),
    ],
)
def test_only_a_yes_is_one(monkeypatch: pytest.MonkeyPatch, typed: bytes, yes: bool) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed), "utf-8"))
    assert asked("really?") is yes
