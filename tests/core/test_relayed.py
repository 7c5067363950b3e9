"""What a daemon says of its own download."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_adapter.core.relayed import MAX_FILES, Relayed
from ollama_adapter.errors import ProtocolError, PullFailed

RECORDS: list[dict[str, Any]] = [
    {"status": "pulling manifest"},
    {"status": "pulling aa", "digest": "sha256:aa", "total": 100},
    {"status": "pulling aa", "digest": "sha256:aa", "total": 100, "completed": 60},
    {"status": "pulling aa", "digest": "sha256:aa", "total": 100, "completed": 40},
    {"status": "pulling aa", "digest": "sha256:aa", "total": 100, "completed": 100},
    {"status": "pulling bb", "digest": "sha256:bb", "total": 10, "completed": 10},
    {"status": "verifying sha256 digest"},
    {"status": "success"},
]
BODY = b"".join(json.dumps(each).encode() + b"\n" for each in RECORDS)


@given(st.lists(st.integers(0, len(BODY)), max_size=8))
def test_any_slicing_tells_the_same_and_the_total_never_goes_back(cuts: list[int]) -> None:
    found = Relayed("m")
    seen: list[tuple[int, int]] = []
    edges = [0, *sorted(cuts), len(BODY)]
    for start, end in itertools.pairwise(edges):
        found.feed(BODY[start:end])
        seen.append((found.done, found.total))
    assert seen == sorted(seen)
    assert (found.done, found.total, found.succeeded) == (110, 110, True)


def test_half_of_it_is_no_success() -> None:
    found = Relayed("m")
    found.feed(BODY[:-3])
    assert not found.succeeded


def test_its_error_is_told() -> None:
    with pytest.raises(PullFailed, match="could not download m: pull model manifest") as caught:
        Relayed("m").feed(b'{"status":"pulling manifest"}\n\n{"error":"pull model manifest: no"}\n')
    assert caught.value.hint


@pytest.mark.parametrize(
    "body",
    [
        b"<html>\n",
        b"[]\n",
        b'{"total":"x"}\n',
        b'{"status":"\xff"}\n',
        b"[" * 9999 + b"\n",
        b"x" * 70_000,
    ],
)
def test_what_is_no_record_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        Relayed("m").feed(body)


def test_lies_are_bounded() -> None:
    found = Relayed("m")
    for number in range(MAX_FILES + 5):
        found.feed(json.dumps({"digest": f"{number}", "total": 1, "completed": 9}).encode() + b"\n")
    assert (found.done, found.total) == (MAX_FILES, MAX_FILES)
    found.feed(b'{"digest":"1","total":-5,"completed":-7}\n')
    assert (found.done, found.total) == (MAX_FILES, MAX_FILES)
