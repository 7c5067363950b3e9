"""Which tokens make a text, where the engine does not say: pure, from the vocabulary in a model's file.

The engine sends a character of several tokens once it is whole, and names the last of them only. How many
it left out is known, so is every byte: if the vocabulary allows exactly one way to fill the gap, that is
what the model wrote. Where it allows two, or the bytes are no characters after all, the ids are not known,
and nobody is told any. (That a control token stands inside a character is not thought of.)
"""

from __future__ import annotations

import itertools
import struct
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from ollama_adapter.core import gguf

REPLACEMENT: Final = "\ufffd"  # what bytes that are no character are sent as
_MAX_GAPS: Final = 32  # more can only be in a long text that looked like a stop text
_TOKENS: Final = "tokenizer.ggml.tokens"
_TYPES: Final = "tokenizer.ggml.token_type"
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_SPACE: Final = "▁".encode()
_MARKED: Final = "Ġ".encode()  # a space in byte-level BPE


def vocabulary_size(header: gguf.Header) -> int:
    """How many tokens a model knows; 0 where its file does not say."""
    tokens = header.metadata.get(_TOKENS)
    if isinstance(tokens, gguf.Array):
        return tokens.count
    return len(tokens) if isinstance(tokens, list) else 0


class Pieces:
    """The bytes of every token, and the tokens that are not whole characters by their bytes."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._ends = array("I")
        self._parts: dict[bytes, list[int]] = {}
        end = 0
        for token, piece in enumerate(pieces):
            end += len(piece)
            self._ends.append(end)
            if not piece.isascii() and not _is_text(piece):
                self._parts.setdefault(piece, []).append(token)
        self._all = b"".join(pieces)
        self._longest = max(map(len, self._parts), default=0)

    def __repr__(self) -> str:
        return f"<Pieces {len(self._ends)} tokens>"

    def __bool__(self) -> bool:
        return bool(self._ends)

    @classmethod
    def read(cls, header: gguf.Header, data: gguf.Buffer) -> Pieces:
        """Those of a model; none where its kind of vocabulary is not known here."""
        decode = _DECODERS.get(header.text("tokenizer.ggml.model"))
        if decode is None:
            return cls(())
        raw = _strings(data, header.metadata.get(_TOKENS))
        try:
            kinds = _integers(data, header.metadata.get(_TYPES))
            kinds = kinds or [_NORMAL] * vocabulary_size(header)
            return cls([decode(each, kind) for each, kind in zip(raw, kinds, strict=True)])
        except (ValueError, AttributeError):  # not what such a vocabulary is made of
            return cls(())

    def piece(self, token: int) -> bytes:
        """The bytes that a token adds to the text."""
        return self._all[self._ends[token - 1] if token else 0 : self._ends[token]]

    def fill(self, pattern: Sequence[int | None], text: str) -> list[int] | None:
        """The one list of tokens that fits `pattern` (None: any part of a character) and makes `text`."""
        if not self or REPLACEMENT in text or pattern.count(None) > _MAX_GAPS:
            return None
        found = self._ways(pattern, text.encode())
        first = next(found, None)
        return first if next(found, None) is None else None

    def _ways(self, pattern: Sequence[int | None], data: bytes) -> Iterator[list[int]]:
        """Every list of tokens that fits; recurses once for each gap."""
        known = _known(itertools.takewhile(lambda token: token is not None, pattern))
        start = b"".join(map(self.piece, known))
        if not data.startswith(start):
            return
        pattern, data = pattern[len(known) :], data[len(start) :]
        if not pattern:
            if not data:
                yield known
            return
        for length in range(1, min(len(data), self._longest) + 1):
            for part in self._parts.get(data[:length], ()):
                for rest in self._ways(pattern[1:], data[length:]):
                    yield [*known, part, *rest]

    def ends_inside(self, tokens: Sequence[int]) -> bool:
        """Whether the text of these tokens ends with a part of a character, which the engine would hold."""
        tail = b"".join(map(self.piece, tokens[-16:]))[-3:]
        return any(
            tail[-back] >= (0xC0, 0xE0, 0xF0)[back - 1] and tail[-back] < 0xF8
            for back in range(1, len(tail) + 1)
        )


class Trail:
    """The ids of the tokens behind one answer, record by record."""

    def __init__(self, pieces: Pieces) -> None:
        self.pieces = pieces
        self._counted = 0
        self._held: list[int | None] = []

    def hold(self, tokens: list[int], counted: int) -> None:
        """Tokens that show no text yet. `counted` is the engine's count of all so far."""
        self._held += [None] * (counted - self._counted - len(tokens))
        self._held += tokens
        self._counted = counted

    def take(self, tokens: list[int], counted: int, text: str) -> list[int] | None:
        """All ids since the last text, with those that make this one; None where they are not known."""
        if counted == self._counted + 1 and len(tokens) == 1 and not self._held:
            self._counted = counted
            return tokens
        self.hold(tokens, counted)
        pattern, self._held = self._held, []
        return self.pieces.fill(pattern, text) if None in pattern else _known(pattern)

    def rest(self, counted: int) -> list[int] | None:
        """The ids of an answer that no text was made of, up to its end; None where they are not known."""
        self.hold([], counted)
        return None if None in self._held else _known(self._held)


def _known(tokens: Iterable[int | None]) -> list[int]:
    return [each for each in tokens if each is not None]


def _is_text(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


def _strings(data: gguf.Buffer, tokens: Any) -> Iterator[bytes]:
    if isinstance(tokens, list):
        yield from (each.encode() for each in tokens)
    elif isinstance(tokens, gguf.Array) and tokens.kind == gguf.STRING:
        unpack, position = struct.Struct("<Q").unpack_from, tokens.offset
        for _ in range(tokens.count):
            (length,) = unpack(data, position)
            yield bytes(data[position + 8 : position + 8 + length])
            position += 8 + length


def _integers(data: gguf.Buffer, values: Any) -> Sequence[int]:
    if isinstance(values, gguf.Array):
        return [int(each) for each in gguf.elements(data, values)]
    return values if isinstance(values, list) else ()


def _byte_of() -> dict[int, int]:
    """The byte that each printable stand-in of byte-level BPE means."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return {byte if byte in plain else next(spare): byte for byte in range(256)}


_BYTE_OF: Final[Mapping[int, int]] = _byte_of()


def _byte_level(raw: bytes, kind: int) -> bytes:
    if kind in (_CONTROL, _UNUSED):
        return b""
    if kind == _USER_DEFINED or raw.isascii():
        return raw
    if raw.startswith(_MARKED) and raw[2:].isascii():
        return b" " + raw[2:]
    return raw.decode().translate(_BYTE_OF).encode("latin-1")


def _sentence_piece(raw: bytes, kind: int) -> bytes:
    if kind == _BYTE:
        return bytes([int(raw[1:-1], 16)])  # <0x0A>
    if kind in (_CONTROL, _UNUSED, _UNKNOWN):
        return b""
    return raw.replace(_SPACE, b" ")


_DECODERS: Final = {"gpt2": _byte_level, "llama": _sentence_piece}
