"""Nothing that the process says or writes is believed: it may have been taken over."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from ollama_adapter.embedded.store import Store
from ollama_adapter.errors import PullFailed, PullRefused
from ollama_adapter.events import PullProgress
from tests.puller.conftest import Make
from tests.registry.serving import Registry

pytestmark = pytest.mark.anyio
HOSTILE = Path(__file__).with_name("hostile.py")


def nothing_in(store: Path) -> bool:
    return Store(store, bundled=False).models() == [] and not list((store / "blobs").iterdir())


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("garbage", "has ended"),
        ("nested", "has ended"),
        ("directory", "cannot be used|nothing can be put"),
        ("link", "nothing can be put|symbolic"),
        ("pipe", "not what was written"),
        ("huge", "over 1024 KiB"),
        ("not-connect", "400 Bad Request"),
        ("linked-blob", "nothing can be put"),
        ("piped-blob", "not what was written"),
        ("doubled-blob", "not what was written"),
        ("boasts", "5 bytes came of a file of 2,004"),
        ("stays", "SHA-256 is another one"),
    ],
)
async def test_it_does_no_harm(
    what: str, words: str, registry: Registry, store: Path, make: Make
) -> None:
    seen: list[PullProgress] = []
    before = {each.pid for each in psutil.Process().children(recursive=True)}
    with pytest.raises(PullFailed, match=words):
        await make(script=HOSTILE).pull(f"{registry.host}/library/{what}", seen.append)
    assert nothing_in(store)
    assert all(0 <= each.done_bytes <= each.total_bytes for each in seen)
    left = [e for e in psutil.Process().children(recursive=True) if e.pid not in before]
    assert left == []


async def test_it_cannot_have_another_host_dialled(
    registry: Registry, store: Path, make: Make
) -> None:
    with pytest.raises(PullRefused, match=r"169\.254\.169\.254:80") as caught:
        await make(script=HOSTILE).pull(f"{registry.host}/library/elsewhere")
    assert caught.value.hint
    assert registry.requests == []
    assert nothing_in(store)
