"""The vocabulary of a model as bytes, and what it says about tokens that nobody named."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_adapter.core import gguf
from ollama_adapter.embedded.pieces import Pieces, Trail, vocabulary_size
from tests.embedded import ggufs

SHORT = [b"a", b"\xf0\x9f", b"\x99", b"\x82", b"\xf0", b"\x9f\x99", b"", b" \xf0\x9f", b"\x99\x82"]


def read(**metadata: Any) -> Pieces:
    return Pieces.read(*header_of(metadata))


def header_of(metadata: dict[str, Any]) -> tuple[gguf.Header, bytes]:
    data = ggufs.llama(extra={f"tokenizer.ggml.{name}": each for name, each in metadata.items()})
    return gguf.parse(data), data


def test_byte_level_tokens_are_the_bytes_they_stand_for() -> None:
    pieces = read()
    assert [pieces.piece(token) for token in range(256)] == [bytes([byte]) for byte in range(256)]
    assert pieces.piece(256) == b" t"
    assert pieces.piece(257) == b"", "a control token shows no text"
    assert repr(pieces) == "<Pieces 260 tokens>"


def test_sentence_pieces_have_spaces_and_bytes_of_their_own() -> None:
    tokens = ["<unk>", "<s>", "<0x0A>", "<0xF0>", "▁the", "日", "▁", "<tag>"]
    pieces = read(model="llama", tokens=tokens, token_type=[2, 3, 6, 6, 1, 1, 1, 4])
    found = [pieces.piece(token) for token in range(len(tokens))]
    assert found == [b"", b"", b"\n", b"\xf0", b" the", "日".encode(), b" ", b"<tag>"]


def test_without_types_every_token_is_a_plain_one() -> None:
    assert read(tokens=["a", "Ġb"], token_type=[]).piece(1) == b" b"


@pytest.mark.parametrize(
    "metadata",
    [
        {"model": "unheard-of"},
        {"tokens": [1, 2], "token_type": [1, 1]},
        {"tokens": "no list"},
        {"tokens": list(range(100))},
        {"tokens": ["a"], "token_type": [1, 1]},
        {"tokens": ["a"] * 100, "token_type": ["b"] * 100},
        {"tokens": ["日"], "token_type": [1]},  # no stand-in for a byte
        {"model": "llama", "tokens": ["zz"], "token_type": [6]},
        {"model": "llama", "tokens": ["<0x1FF>"], "token_type": [6]},
    ],
)
def test_what_is_no_vocabulary_we_know_is_none(metadata: dict[str, Any]) -> None:
    pieces = read(**metadata)
    assert not pieces
    assert pieces.fill([None], "é") is None


def test_the_size_is_known_without_reading_it() -> None:
    for metadata, size in (({}, 260), ({"tokens": ["a", "b"]}, 2), ({"tokens": "x"}, 0)):
        assert vocabulary_size(header_of(metadata)[0]) == size


@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
        ([None, None, 3], "🙂", None),  # F0 9F|99 or F0|9F 99
        ([None, 8], "🙂", [1, 8]),
        ([None, None, None, 3], "🙂", None),  # 9F alone is no token
        ([None, 3], "🙂", None),
        ([None, 8], " 🙂", [7, 8]),
        ([0, 6, None, 8], "a🙂", [0, 6, 1, 8]),
        ([None, None, 8], "a🙂", None),  # `a` alone would have come alone
        ([0, None, 8], "b🙂", None),
        ([None, None, 8], "\ufffd🙂", None),
        ([0] * 3000 + [None, 8], "a" * 3000 + "🙂", [0] * 3000 + [1, 8]),
        ([None, 8] * 32, "🙂" * 32, [1, 8] * 32),
        ([None, 8] * 3000, "🙂" * 3000, None),  # not worth the search
        ([], "", []),
        ([0], "a", [0]),
    ],
)
def test_a_gap_is_filled_where_there_is_one_way(
    pattern: list[int | None], text: str, found: list[int] | None
) -> None:
    assert Pieces(SHORT).fill(pattern, text) == found


@given(st.text(st.sampled_from("aé日🙂 "), min_size=1, max_size=6), st.data())
def test_whatever_is_held_and_left_out_the_ids_are_the_tokens(
    text: str, data: st.DataObject
) -> None:
    """With a token per byte there is one way: the engine names the last byte of each character only."""
    trail, counted, found = Trail(Pieces([bytes([byte]) for byte in range(256)])), 0, []
    pending = ""
    for character in text:
        *_, last = encoded = character.encode()
        counted += len(encoded)
        pending += character
        if data.draw(st.booleans()):
            trail.hold([last], counted)
        else:
            found += trail.take([last], counted, pending) or pytest.fail("they are known")
            pending = ""
    if all(character.isascii() for character in pending):
        found += trail.rest(counted) or []
        assert bytes(found) == text.encode()
    else:
        assert trail.rest(counted) is None
        assert bytes(found) == text.removesuffix(pending).encode()


@given(st.text(st.sampled_from("aé日🙂"), max_size=4))
def test_a_text_ends_inside_a_character_but_where_one_ends(text: str) -> None:
    pieces, encoded = Pieces([bytes([byte]) for byte in range(256)]), list(text.encode())
    ends = {len(text[:end].encode()) for end in range(len(text) + 1)}
    for end in range(len(encoded) + 1):
        assert pieces.ends_inside(encoded[:end]) is (end not in ends)
