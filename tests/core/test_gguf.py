"""GGUF headers: whatever the bytes, a checked header or InvalidModelFile with a reason."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ollama_adapter.core import gguf
from ollama_adapter.errors import InvalidModelFile
from tests.embedded import ggufs

GOOD = ggufs.llama(width=32)
HEAD = gguf.parse(GOOD)


def test_a_good_file_says_what_it_is() -> None:
    assert HEAD.version == 3
    assert HEAD.architecture == "llama"
    assert HEAD.number("context_length") == 512
    assert HEAD.number("nothing") == 0
    assert HEAD.text("general.name") == "test"
    assert HEAD.text("llama.context_length") == ""
    assert HEAD.file_type == "F32"
    assert HEAD.expected_size == len(GOOD)
    assert HEAD.parameters == sum(each.weights for each in HEAD.tensors) > 0
    assert {each.type_name for each in HEAD.tensors} == {"F32"}


def test_long_arrays_are_walked_over_and_can_be_read() -> None:
    tokens = HEAD.metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, gguf.Array)
    assert gguf.elements(GOOD, tokens)[-3:] == ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    kinds = HEAD.metadata["tokenizer.ggml.token_type"]
    assert isinstance(kinds, gguf.Array)
    assert gguf.elements(GOOD, kinds) == [1] * 257 + [3] * 3
    assert HEAD.metadata["tokenizer.ggml.merges"] == ["Ġ t"]


def test_nothing_of_the_metadata_is_in_a_repr() -> None:
    assert "im_start" not in repr(HEAD)


@pytest.mark.parametrize("size", range(4, HEAD.data_offset, 97))
def test_a_header_cut_anywhere_is_incomplete(size: int) -> None:
    with pytest.raises(InvalidModelFile, match=r"unexpected EOF|exceeds file size"):
        gguf.parse(GOOD[:size])


def test_a_body_cut_anywhere_names_the_tensor_and_both_sizes() -> None:
    with pytest.raises(
        InvalidModelFile, match=r'tensor ".+" offset\+size \(\d+\) exceeds file size'
    ) as e:
        gguf.parse(GOOD[:-100])
    assert e.value.hint


@pytest.mark.parametrize("data", [b"", b"G", b"GGML" + bytes(60), b"PK\x03\x04", b"<html>"])
def test_what_is_not_gguf_is_said_to_be_not_gguf(data: bytes) -> None:
    expected = "unexpected EOF" if data == b"G" else "not in GGUF format"
    with pytest.raises(InvalidModelFile, match=expected) as caught:
        gguf.parse(data)
    assert ("it is empty" in str(caught.value)) is (data == b"")
    assert ("converted" in caught.value.hint) is (len(data) > 1)


def head(version: int = 3, tensors: int = 0, keys: int = 0) -> bytes:
    return struct.pack("<4sIQQ", b"GGUF", version, tensors, keys)


def text(value: bytes | str) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


ARCHITECTURE = text("general.architecture") + struct.pack("<I", 8) + text("llama")
LONG = 1 << 62


def tensor(
    name: str = "t", shape: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0, count: int = -1
) -> bytes:
    count = len(shape) if count < 0 else count
    return (
        text(name)
        + struct.pack(f"<I{len(shape)}Q", count, *shape)
        + struct.pack("<IQ", kind, offset)
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (head(version=1), "version 1 is not supported"),
        (head(version=3 << 24), "big-endian"),
        (head(tensors=LONG), "claims"),
        (head(keys=LONG), "claims"),
        (head(keys=1) + struct.pack("<Q", LONG), "metadata key is .* bytes long"),
        (head(keys=1) + text(b"\xff") + struct.pack("<I", 0), "not UTF-8"),
        (head(keys=2) + ARCHITECTURE * 2, "occurs twice"),
        (head(keys=1) + text("a") + struct.pack("<I", 77), "unknown type 77"),
        (head(keys=1) + text("a") + struct.pack("<IIQ", 9, 9, 1), "array of unknown type 9"),
        (head(keys=1) + text("a") + struct.pack("<IIQ", 9, 8, LONG), "unexpected EOF"),
        (head(keys=1) + text("a") + struct.pack("<IIQ", 9, 0, LONG), "unexpected EOF"),
        (head(keys=1) + text("a") + struct.pack("<IIQQ", 9, 8, 65, LONG) + bytes(600), "EOF"),
        (head(keys=1) + text("a") + struct.pack("<IIQ", 9, 8, 65) + bytes(512) + b"\1", "EOF"),
        (head(keys=1) + text("a") + struct.pack("<IIQ", 9, 8, 65) + bytes(512) + text("x")[:8], "EOF"),
        (head(keys=1) + text("a") + struct.pack("<I", 8) + struct.pack("<Q", 1 << 30), "bytes long"),
        (head(), "names no model architecture"),
        (
            head(keys=2) + ARCHITECTURE + text("general.alignment") + struct.pack("<II", 4, 33),
            "alignment",
        ),
        (head(tensors=1, keys=1) + ARCHITECTURE + tensor(count=9), "9 dimensions"),
        (head(tensors=1, keys=1) + ARCHITECTURE + tensor(shape=(LONG, LONG)), "impossible shape"),
        (head(tensors=1, keys=1) + ARCHITECTURE + tensor(shape=(0,)), "impossible shape"),
        (head(tensors=1, keys=1) + ARCHITECTURE + tensor(shape=(33,), kind=8), "whole blocks"),
        (head(tensors=1, keys=1) + ARCHITECTURE + tensor(offset=7), "not aligned"),
        (head(tensors=2, keys=1) + ARCHITECTURE + tensor() * 2 + bytes(999), "the same name"),
    ],
)  # fmt: skip
def test_every_lie_is_named(data: bytes, reason: str) -> None:
    with pytest.raises(InvalidModelFile, match=reason):
        gguf.parse(data)


def test_a_type_that_is_too_new_is_left_to_the_engine() -> None:
    header = gguf.parse(head(tensors=1, keys=1) + ARCHITECTURE + tensor(kind=99) + bytes(64))
    assert header.tensors[0].type_name == "type 99"
    assert header.tensors[0].size == 0
    assert header.file_type == "unknown"


def test_every_scalar_type_is_read() -> None:
    values: list[tuple[int, str, Any]] = [
        (0, "<B", 200), (1, "<b", -3), (2, "<H", 60000), (3, "<h", -3), (4, "<I", 1 << 31),
        (5, "<i", -5), (6, "<f", 0.5), (7, "<?", True), (10, "<Q", 1 << 63), (11, "<q", -1), (12, "<d", 0.1),
    ]  # fmt: skip
    body = b"".join(
        text(f"k{kind}") + struct.pack("<I", kind) + struct.pack(code, value)
        for kind, code, value in values
    )
    header = gguf.parse(head(keys=len(values) + 1) + ARCHITECTURE + body)
    assert [header.metadata[f"k{kind}"] for kind, _, _ in values] == [
        value for _, _, value in values
    ]


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (7, "7"),
        (159_000, "159K"),
        (2_710_000, "2.71M"),
        (3_000_000, "3M"),
        (8_030_000_000, "8.0B"),
        (70_000_000_000, "70B"),
    ],
)
def test_counts_are_written_as_ollama_writes_them(count: int, shown: str) -> None:
    assert gguf.human_count(count) == shown


def check(data: bytes) -> None:
    try:
        header = gguf.parse(data)
    except InvalidModelFile:
        return
    assert header.expected_size <= max(len(data), header.data_offset)
    for value in header.metadata.values():
        if isinstance(value, gguf.Array):
            assert len(gguf.elements(data, value)) == value.count <= len(data)


@given(st.binary(max_size=400))
@example(b"GGUF")
def test_any_bytes(data: bytes) -> None:
    check(data)
    check(b"GGUF" + struct.pack("<I", 3) + data)
    check(head(tensors=1, keys=1) + data)


@given(st.data())
def test_a_good_file_with_any_damage(draw: st.DataObject) -> None:
    data = bytearray(GOOD[: HEAD.data_offset + 64])
    for _ in range(draw.draw(st.integers(1, 8))):
        at = draw.draw(st.integers(0, HEAD.data_offset - 1))
        patch = draw.draw(st.sampled_from([b"\0", b"\xff" * 8, b"\xff", b"\x7f" * 4, b"\1\0\0\0"]))
        data[at : at + len(patch)] = patch
    check(bytes(data) + GOOD[len(data) :])
