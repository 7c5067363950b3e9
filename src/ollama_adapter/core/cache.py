"""Whole answers, kept for a while, for the time when no daemon can be had.

An answer is found again by a request that asks the same of the same model: model digest, path and body,
without the fields that do not change an answer. Its key is a digest made with a secret of this process, so
nothing in it can be recognised. Laws: never more than `max_bytes` are held, nothing is found once it is
`ttl_s` old, what was used least recently goes first, and only an answer that ended by itself is kept.
An answer is held as bytes: nobody who was given it can change it, and its size is known.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from ollama_adapter.events import Candidate, Channel, Finish, Source, Statistics, TokenEvent
from ollama_adapter.veiled import Veiled

OVERHEAD_BYTES: Final = 512
"""What an entry takes besides its data, generously: key, two places in tables, the objects."""
SECRET_BYTES: Final = 16
_WHOLE: Final = (Finish.STOP, Finish.LENGTH)
_SECOND_HAND: Final = (Source.CACHED, Source.SUBSTITUTED)  # older than it seems; another model's
_SAME_ANSWER: Final = ("model", "keep_alive", "stream")  # the digest says which model


class CachedToken(Veiled, msgspec.Struct, array_like=True, gc=False):
    """What one event carried."""

    token: str
    channel: Channel = Channel.TEXT
    logprob: float | None = None
    candidates: list[Candidate] | None = None
    tool_calls: list[dict[str, Any]] | None = None
    token_ids: tuple[int, ...] | None = None


class Cached(Veiled, msgspec.Struct, frozen=True):
    """An answer of `age_ns` ago: its tokens, how it ended, and the daemon's own counts."""

    age_ns: int
    tokens: list[CachedToken]
    finish: Finish
    prompt_eval_count: int
    eval_count: int


class _Data(msgspec.Struct, array_like=True):
    parts: list[msgspec.Raw]
    finish: Finish
    prompt_eval_count: int
    eval_count: int


class _Entry(Veiled, msgspec.Struct):
    data: bytes
    stored_ns: int


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(_Data).decode
_decode_part: Final = msgspec.msgpack.Decoder(list[CachedToken]).decode


def pack(events: Sequence[TokenEvent]) -> bytes | None:
    """A part of an answer as it is kept, for `AnswerCache.put`. None for what cannot be, or must not be.

    In bytes already while it comes: events that stay make Python's collector walk over them again and
    again, 100 streams of them for tens of milliseconds.
    """
    for each in events:
        if each.source in _SECOND_HAND:
            return None
    try:
        return _encode(
            [  # CachedToken, field by field
                (
                    each.token,
                    each.channel,
                    each.logprob,
                    each.candidates,
                    each.tool_calls,
                    each.token_ids,
                )
                for each in events
            ]
        )
    except OverflowError:  # an integer of more than 64 bits in the arguments of a tool
        return None


class AnswerCache:
    """The answers of one process. `secret` is random, and never leaves the process."""

    def __init__(self, max_bytes: int, ttl_s: float, secret: bytes) -> None:
        if len(secret) < SECRET_BYTES:
            raise ValueError(f"the secret must have {SECRET_BYTES} bytes or more")
        self._max_bytes = max_bytes
        self._ttl_ns = int(ttl_s * 1e9)
        self._secret = secret
        self._entries: dict[bytes, _Entry] = {}  # the least recently used first
        self._ages: dict[bytes, None] = {}  # the oldest first
        self._bytes = 0

    def __repr__(self) -> str:
        return f"<AnswerCache {len(self)} answers>"

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def held_bytes(self) -> int:
        """How much is held, generously measured."""
        return self._bytes

    def key(self, model_digest: str, path: str, body: bytes) -> bytes:
        """What an answer to this request is kept under. The order of fields and options does not matter.

        Further inside it does: a model is shown the tools, and obeys a schema, in the order given.
        """
        asked = msgspec.json.decode(body)
        for name in _SAME_ANSWER:
            asked.pop(name, None)
        if isinstance(asked.get("options"), dict):
            asked["options"] = dict(sorted(asked["options"].items()))
        question = msgspec.json.encode([model_digest, path, sorted(asked.items())])
        return hashlib.blake2b(question, digest_size=32, key=self._secret[:64]).digest()

    def put(self, key: bytes, parts: Sequence[bytes], statistics: Statistics, now_ns: int) -> bool:
        """Keep an answer, all its parts. False for one that is not to be kept: cut short, or too long."""
        self.expire(now_ns)
        if statistics.finish not in _WHOLE:
            return False
        raw = [msgspec.Raw(each) for each in parts]
        counts = statistics.prompt_eval_count, statistics.eval_count
        data = _encode(_Data(raw, statistics.finish, *counts))
        if len(data) + OVERHEAD_BYTES > self._max_bytes:
            return False
        self._drop(key)
        while self._bytes + len(data) + OVERHEAD_BYTES > self._max_bytes:
            self._drop(next(iter(self._entries)))
        self._entries[key] = _Entry(data, now_ns)
        self._ages[key] = None
        self._bytes += len(data) + OVERHEAD_BYTES
        return True

    def get(self, key: bytes, now_ns: int) -> Cached | None:
        """The answer kept under a key; it counts as used now."""
        self.expire(now_ns)
        entry = self._entries.pop(key, None)
        if entry is None:
            return None
        self._entries[key] = entry
        found = _decode(entry.data)
        tokens = [token for part in found.parts for token in _decode_part(part)]
        age_ns = now_ns - entry.stored_ns
        return Cached(age_ns, tokens, found.finish, found.prompt_eval_count, found.eval_count)

    def expire(self, now_ns: int) -> None:
        """Forget what is too old; `get` and `put` do it, too."""
        while self._ages:
            oldest = next(iter(self._ages))
            if now_ns - self._entries[oldest].stored_ns < self._ttl_ns:
                return
            self._drop(oldest)

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._ages.clear()
        self._bytes = 0

    def _drop(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            del self._ages[key]
            self._bytes -= len(entry.data) + OVERHEAD_BYTES
