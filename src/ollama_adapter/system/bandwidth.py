"""How fast this machine's memory can be read, measured: what a model's throughput on the CPU is bound by.

Every thread compares the halves of a block that no cache holds, with the C library's own routine: it reads
as fast as the machine can, and lets the other threads run meanwhile. The best of some rounds counts, for
whatever else runs only makes a round slower.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import msgspec

from ollama_adapter.system.clock import monotonic_ns

ROUNDS: Final = 5
LIMIT_S: Final = 1.5
BLOCK_BYTES: Final = 256 << 20
"""For all threads together."""


class Bandwidth(msgspec.Struct, frozen=True):
    """Bytes read in a second, by so many threads at a time."""

    bytes_per_s: float
    threads: int


def measure(
    threads: int,
    stop: threading.Event,
    on_progress: Callable[[float], None] = lambda _: None,
    *,
    limit_s: float = LIMIT_S,
    block_bytes: int = BLOCK_BYTES,
) -> Bandwidth:
    """Takes `limit_s` at most, and the time to fill the memory; ends at once when `stop` is set.

    Blocks: to be called in a thread. `on_progress` is told the part that is done, from 0 to 1.
    """
    half = max(1, block_bytes // threads // 2)
    blocks = [_filled(2 * half) for _ in range(threads)]
    round_ns = int(limit_s * 1e9 / ROUNDS)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for number in range(ROUNDS):
            if stop.is_set():
                break
            begin = monotonic_ns()
            until = begin + round_ns
            work = [pool.submit(_read, block, half, until, stop) for block in blocks]
            read = sum(each.result() for each in work)
            best = max(best, read * 1e9 / max(1, monotonic_ns() - begin))
            on_progress((number + 1) / ROUNDS)
    return Bandwidth(best, threads)


def _filled(size: int) -> Any:
    """Memory of its own: untouched, it would be one page of zeros over and over."""
    block = ctypes.create_string_buffer(size)
    ctypes.memset(block, 1, size)
    return block


def _read(block: Any, half: int, until_ns: int, stop: threading.Event) -> int:
    """How many bytes were read before the time was up; once at least."""
    compare = _c_library().memcmp
    compare.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    first = ctypes.addressof(block)
    read = 0
    while True:
        compare(first, first + half, half)
        read += 2 * half
        if monotonic_ns() >= until_ns or stop.is_set():
            return read


def _c_library() -> ctypes.CDLL:
    return ctypes.CDLL("msvcrt" if os.name == "nt" else None)
