"""What a GGUF file says about itself, from its bytes; nothing is believed before it is checked.

`parse` takes the whole file as one buffer (an mmap costs only the pages it touches) and returns a
Header, or raises InvalidModelFile with the reason. Work and memory are bounded by the size of the
buffer: every count is compared with the bytes that are left before anything is made of it. Long arrays
(vocabularies) are walked over, not kept: a Header holds where they are.
"""

from __future__ import annotations

import math
import struct
from typing import Any, Final

import msgspec

from ollama_adapter.errors import InvalidModelFile
from ollama_adapter.veiled import Veiled

Buffer = Any
"""bytes, bytearray, memoryview or mmap."""

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
MAX_TENSORS: Final = 1 << 17
MAX_KEYS: Final = 1 << 16
MAX_KEY_BYTES: Final = 1 << 16
MAX_TEXT_BYTES: Final = 1 << 24
MAX_DIMENSIONS: Final = 4
SHORT_ARRAY: Final = 64

_SCALARS: Final = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
STRING, _ARRAY = 8, 9

# id: (name, weights in a block, bytes of a block)
TENSOR_TYPES: Final[dict[int, tuple[str, int, int]]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4),
    27: ("I64", 1, 8), 28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
}  # fmt: skip

FILE_TYPES: Final[dict[int, str]] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K",
    11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S",
    17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS",
    23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M",
    30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4",
}  # fmt: skip


class Array(msgspec.Struct, frozen=True):
    """A long array: `count` elements of type `kind`, the first at byte `offset` of the file."""

    kind: int
    count: int
    offset: int


class Tensor(msgspec.Struct, frozen=True):
    """One tensor: dimensions innermost first; `offset` counts from the start of the data section."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int

    @property
    def weights(self) -> int:
        return math.prod(self.shape)

    @property
    def type_name(self) -> str:
        return TENSOR_TYPES[self.kind][0] if self.kind in TENSOR_TYPES else f"type {self.kind}"

    @property
    def size(self) -> int:
        """In bytes; 0 for a type we do not know (the engine has the last word on those)."""
        _, block, block_bytes = TENSOR_TYPES.get(self.kind, ("", 1, 0))
        return self.weights // block * block_bytes


class Header(Veiled, msgspec.Struct, frozen=True):
    """A checked header. `expected_size` is the least size of a complete file, in bytes."""

    version: int
    metadata: dict[str, Any]
    tensors: tuple[Tensor, ...]
    data_offset: int
    expected_size: int

    @property
    def architecture(self) -> str:
        return str(self.metadata["general.architecture"])

    @property
    def parameters(self) -> int:
        return sum(each.weights for each in self.tensors)

    @property
    def file_type(self) -> str:
        kind = self.metadata.get("general.file_type")
        return FILE_TYPES.get(kind, "unknown") if isinstance(kind, int) else "unknown"

    def number(self, name: str) -> int:
        """An integer under `<architecture>.name`; 0 where it is absent."""
        value = self.metadata.get(f"{self.architecture}.{name}")
        return value if isinstance(value, int) else 0

    def text(self, key: str) -> str:
        """A string; "" where it is absent."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else ""


def parse(data: Buffer) -> Header:
    """The header of the GGUF file whose bytes are `data`; raises InvalidModelFile."""
    reader = _Reader(data)
    version, tensor_count, key_count = _preamble(reader)
    metadata: dict[str, Any] = {}
    for _ in range(key_count):
        key = reader.text(MAX_KEY_BYTES, "a metadata key")
        if key in metadata:
            raise _invalid(f"the metadata key {key!r} occurs twice")
        metadata[key] = reader.value(reader.scalar("<I"))
    if not isinstance(metadata.get("general.architecture"), str):
        raise _invalid("it names no model architecture (general.architecture)")
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 65536 or alignment & (alignment - 1):
        raise _invalid("its alignment is not a power of two")
    tensors = tuple(_tensor(reader, alignment) for _ in range(tensor_count))
    if len({each.name for each in tensors}) != len(tensors):
        raise _invalid("two tensors have the same name")
    start = -(-reader.position // alignment) * alignment
    end = _check_extent(tensors, start, len(data))
    return Header(version, metadata, tensors, start, end)


def elements(data: Buffer, array: Array) -> list[Any]:
    """The elements of a long array, from the buffer its header was parsed from."""
    reader = _Reader(data, array.offset)
    if array.kind == STRING:
        return [reader.text(MAX_TEXT_BYTES, "a string", strict=False) for _ in range(array.count)]
    kind = _SCALARS[array.kind]
    return [reader.scalar(kind) for _ in range(array.count)]


def human_count(number: int) -> str:
    """A parameter count as Ollama writes it: 159K, 2.71M, 8.0B."""
    for unit, letter, digits in ((10**9, "B", 1), (10**6, "M", 2)):
        if number >= unit:
            whole = number % unit == 0
            return f"{number / unit:.{0 if whole else digits}f}{letter}"
    return f"{number / 1000:.0f}K" if number >= 1000 else str(number)


def _invalid(reason: str) -> InvalidModelFile:
    return InvalidModelFile(
        f"not a usable GGUF file: {reason}",
        hint="get the file again, and compare its size and SHA-256 with those of its source",
    )


def _truncated() -> InvalidModelFile:
    return InvalidModelFile("unexpected EOF", hint="the file is incomplete: get it again")


def _preamble(reader: _Reader) -> tuple[int, int, int]:
    if reader.size == 0:
        raise InvalidModelFile(
            "supplied file was not in GGUF format: it is empty", hint="get the file again"
        )
    if bytes(reader.data[:4]) != MAGIC[: reader.size]:
        raise InvalidModelFile(
            "supplied file was not in GGUF format",
            hint="only GGUF files can be used; a .safetensors or .bin model must be converted first",
        )
    reader.position = 4
    version = reader.scalar("<I")
    if version not in VERSIONS:
        if version & 0xFFFF == 0 and version >> 24 in VERSIONS:
            raise _invalid("it is for big-endian machines")
        raise _invalid(f"version {version} is not supported")
    tensors, keys = reader.scalar("<Q"), reader.scalar("<Q")
    if tensors > MAX_TENSORS or keys > MAX_KEYS:
        raise _invalid(f"it claims {tensors} tensors and {keys} metadata keys")
    return version, tensors, keys


def _tensor(reader: _Reader, alignment: int) -> Tensor:
    name = reader.text(MAX_KEY_BYTES, "a tensor name")
    count = reader.scalar("<I")
    if count > MAX_DIMENSIONS:
        raise _invalid(f"tensor {name!r} has {count} dimensions")
    shape = tuple(reader.scalar("<Q") for _ in range(count))
    kind, offset = reader.scalar("<I"), reader.scalar("<Q")
    if math.prod(shape) >= 1 << 60 or 0 in shape:
        raise _invalid(f"tensor {name!r} has an impossible shape")
    if kind in TENSOR_TYPES and count and shape[0] % TENSOR_TYPES[kind][1]:
        raise _invalid(f"the rows of tensor {name!r} do not fill whole blocks")
    if offset % alignment:
        raise _invalid(f"tensor {name!r} is not aligned")
    return Tensor(name, shape, kind, offset)


def _check_extent(tensors: tuple[Tensor, ...], start: int, size: int) -> int:
    end = start
    for each in tensors:
        stop = start + each.offset + each.size
        if stop > size:
            raise InvalidModelFile(
                f'tensor "{each.name}" offset+size ({stop}) exceeds file size ({size})',
                hint="the file is incomplete: get it again",
            )
        end = max(end, stop)
    return end


class _Reader:
    """A cursor over the buffer; every step is checked against what is left."""

    def __init__(self, data: Buffer, position: int = 0) -> None:
        self.data, self.size, self.position = data, len(data), position

    def scalar(self, kind: str) -> Any:
        try:
            (value,) = struct.unpack_from(kind, self.data, self.position)
        except struct.error:
            raise _truncated() from None
        self.position += struct.calcsize(kind)
        return value

    def text(self, limit: int, what: str, *, strict: bool = True) -> str:
        length = self.scalar("<Q")
        if length > limit:
            raise _invalid(f"{what} is {length} bytes long")
        raw = bytes(self.data[self.position : self.position + length])
        if len(raw) != length:
            raise _truncated()
        self.position += length
        try:
            return raw.decode("utf-8", "strict" if strict else "replace")
        except UnicodeDecodeError:
            raise _invalid(f"{what} is not UTF-8") from None

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == STRING:
            return self.text(MAX_TEXT_BYTES, "a string", strict=False)
        if kind == _ARRAY:
            return self._array()
        raise _invalid(f"metadata of unknown type {kind}")

    def _array(self) -> list[Any] | Array:
        kind, count = self.scalar("<I"), self.scalar("<Q")
        if kind not in _SCALARS and kind != STRING:
            raise _invalid(f"an array of unknown type {kind}")
        width = 8 if kind == STRING else struct.calcsize(_SCALARS[kind])
        if count > (self.size - self.position) // width:
            raise _truncated()
        array = Array(kind, count, self.position)
        if count <= SHORT_ARRAY:
            return [self.value(kind) for _ in range(count)]
        if kind == STRING:
            self._skip_strings(count)
        else:
            self.position += count * width
        return array

    def _skip_strings(self, count: int) -> None:
        unpack, data, position = struct.Struct("<Q").unpack_from, self.data, self.position
        try:
            for _ in range(count):
                (length,) = unpack(data, position)
                position += 8 + length
        except (struct.error, OverflowError):  # the latter: a position beyond all memory
            raise _truncated() from None
        if position > self.size:
            raise _truncated()
        self.position = position
