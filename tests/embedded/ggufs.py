"""Writes small GGUF models of random weights, for tests: a few hundred kilobytes, loaded by the real engine.

The vocabulary is byte-level BPE with one merge: a token per byte value, one for ` t`, and the
control tokens of a ChatML-like template. Nothing here is clever; every number is deterministic.
"""

from __future__ import annotations

import random
import struct
from array import array
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

U32, I32, F32, BOOL, STRING, ARRAY, U64 = 4, 5, 6, 7, 8, 9, 10
ALIGNMENT = 32
NARROW = 64
"""The weights of wider models are of 256 values: drawing millions of others takes seconds."""
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

SAYING = "a日béc🙂 td"
"""What the parrot says, over and over."""
SAID = [*SAYING.removesuffix(" td").encode(), 256, *b"d"]
"""The same as tokens: a byte is one, and so is ` t`; none occurs twice."""
TOOLS = "{% if tools %}tools: {{ tools | tojson }}\n{% endif %}" + CHATML


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", U32, value)
    if isinstance(value, float):
        return struct.pack("<If", F32, value)
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _string(value)
    if value and isinstance(value[0], str):
        body = b"".join(map(_string, value))
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + body
    return struct.pack("<IIQ", ARRAY, I32, len(value)) + struct.pack(f"<{len(value)}i", *value)


def gguf(
    metadata: Mapping[str, Any], tensors: Mapping[str, tuple[tuple[int, ...], bytes]]
) -> bytes:
    """The bytes of a GGUF file, version 3; tensors are F32, shapes innermost first."""
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata))
    head += b"".join(_string(key) + _value(value) for key, value in metadata.items())
    offset, body = 0, b""
    for name, (shape, data) in tensors.items():
        head += _string(name) + struct.pack("<I", len(shape))
        head += struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", 0, offset)
        padded = data + b"\0" * (-len(data) % ALIGNMENT)
        body += padded
        offset += len(padded)
    return head + b"\0" * (-len(head) % ALIGNMENT) + body


def _byte_characters() -> list[str]:
    """The printable stand-ins of byte-level BPE for the byte values 0..255."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(spare)) for b in range(256)]


def _vocabulary() -> dict[str, Any]:
    words = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    tokens = [*_byte_characters(), "Ġt", *words]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * 257 + [3] * len(words),
        "tokenizer.ggml.merges": ["Ġ t"],
        "tokenizer.ggml.bos_token_id": 259,
        "tokenizer.ggml.eos_token_id": 258,
        "tokenizer.ggml.add_bos_token": False,
    }


def llama(
    *,
    context: int = 512,
    template: str | None = CHATML,
    pooling: int | None = None,
    seed: int = 1,
    width: int = 64,
    extra: Mapping[str, Any] | None = None,
    replaced: Mapping[str, tuple[tuple[int, ...], bytes]] | None = None,
) -> bytes:
    """A Llama of one layer and random weights; with `pooling` (1: mean) it is an embedding model."""
    vocabulary = _vocabulary()
    size = len(vocabulary["tokenizer.ggml.tokens"])
    metadata: dict[str, Any] = {
        "general.architecture": "llama",
        "general.name": "test",
        "general.file_type": 0,
        "llama.context_length": context,
        "llama.embedding_length": width,
        "llama.block_count": 1,
        "llama.feed_forward_length": width,
        "llama.attention.head_count": 2,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": width // 2,
        **vocabulary,
    }
    if template is not None:
        metadata["tokenizer.chat_template"] = template
    if pooling is not None:
        metadata["llama.pooling_type"] = pooling
    metadata.update(extra or {})
    rng = random.Random(seed)

    def weights(*shape: int, spread: float = 0.3) -> tuple[tuple[int, ...], bytes]:
        count = 1
        for each in shape:
            count *= each
        if width > NARROW:
            steps = [spread * (each / 127.5 - 1) for each in range(256)]
            return shape, array("f", map(steps.__getitem__, rng.randbytes(count))).tobytes()
        values = array("f", (rng.uniform(-spread, spread) for _ in range(count)))
        return shape, values.tobytes()

    def ones(n: int) -> tuple[tuple[int, ...], bytes]:
        return (n,), array("f", [1.0] * n).tobytes()

    tensors = {"token_embd.weight": weights(width, size), "output_norm.weight": ones(width)}
    for name in ("attn_norm", "ffn_norm"):
        tensors[f"blk.0.{name}.weight"] = ones(width)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        tensors[f"blk.0.{name}.weight"] = weights(width, width)
    return gguf(metadata, {**tensors, **(replaced or {})})


def parrot() -> bytes:
    """A model that says SAYING: each of its tokens leads to the next, all others to the first."""
    size = len(_vocabulary()["tokenizer.ggml.tokens"])
    following = dict(zip(SAID, SAID[1:] + SAID[:1], strict=True))

    def square(ones: Iterable[tuple[int, int]]) -> tuple[tuple[int, ...], bytes]:
        """A matrix of zeros, but for a one at each (row, column)."""
        values = array("f", bytes(4 * size * size))
        for row, column in ones:
            values[row * size + column] = 1.0
        return (size, size), values.tobytes()

    tensors = {
        f"blk.0.{name}.weight": square(())
        for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    }
    tensors["token_embd.weight"] = square((token, token) for token in range(size))
    tensors["output.weight"] = square(
        (following.get(token, SAID[0]), token) for token in range(size)
    )
    return llama(width=size, replaced=tensors)


def odd() -> bytes:
    """A model with a token that byte-level BPE has no bytes for."""
    tokens = [*_vocabulary()["tokenizer.ggml.tokens"]]
    tokens[5] = "日"
    return llama(extra={"tokenizer.ggml.tokens": tokens})


def write(path: Path, **options: Any) -> Path:
    """A model of `llama(**options)` at `path`."""
    path.write_bytes(llama(**options))
    return path
