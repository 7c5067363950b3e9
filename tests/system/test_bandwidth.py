"""Memory is read by all threads, in rounds, until the time is up or somebody says stop."""

from __future__ import annotations

import threading

import pytest

from ollama_adapter.system.bandwidth import ROUNDS, measure


@pytest.mark.parametrize("threads", [1, 3])
def test_memory_is_read(threads: int) -> None:
    told: list[float] = []
    found = measure(threads, threading.Event(), told.append, limit_s=0.05, block_bytes=3 << 20)
    assert found.threads == threads
    assert found.bytes_per_s > 1e6
    assert told == [number / ROUNDS for number in range(1, ROUNDS + 1)]


def test_it_can_be_stopped() -> None:
    stop = threading.Event()
    told: list[float] = []

    def enough(part: float) -> None:
        told.append(part)
        stop.set()

    found = measure(1, stop, enough, limit_s=0.05, block_bytes=1 << 20)
    assert len(told) == 1 and found.bytes_per_s > 0


def test_it_can_be_stopped_before_it_begins() -> None:
    stop = threading.Event()
    stop.set()
    assert measure(1, stop, limit_s=1.0, block_bytes=1 << 10).bytes_per_s == 0


def test_it_can_be_stopped_in_the_middle_of_a_round() -> None:
    stop = threading.Event()
    threading.Timer(0.01, stop.set).start()
    assert measure(2, stop, limit_s=3600.0 * ROUNDS, block_bytes=1 << 20).bytes_per_s > 0
