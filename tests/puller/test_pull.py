"""Pulling from a registry that behaves, into a store that Ollama would read."""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from pathlib import Path

import pytest

from ollama_adapter.core.names import parse_name
from ollama_adapter.embedded.store import Store
from ollama_adapter.errors import PullFailed, PullRefused, RemoteModelRefused
from ollama_adapter.events import PullOffer, PullProgress, PullStage
from tests.embedded.ggufs import llama
from tests.puller.conftest import Make
from tests.registry.serving import Registry

pytestmark = pytest.mark.anyio
WEIGHTS = llama()


def leftovers(store: Path) -> list[str]:
    """What lies beside blobs and manifests."""
    return sorted(each.name for each in store.iterdir() if each.name not in ("blobs", "manifests"))


async def test_a_model_comes_whole_and_lies_as_ollama_lays_it(
    registry: Registry, store: Path, make: Make
) -> None:
    name = registry.add("small:1b", WEIGHTS, template=b"{{ .Prompt }}", params=b'{"top_k": 3}')
    progress: list[PullProgress] = []
    receipt = await make().pull(name, progress.append)
    model = Store(store).find(parse_name(name))
    raw = registry.manifests["/v2/library/small/manifests/1b"]
    assert model.digest == hashlib.sha256(raw).hexdigest()
    assert model.weights is not None
    assert model.weights.read_bytes() == WEIGHTS
    assert model.weights.stat().st_mode & 0o777 == 0o644
    assert model.weights.stat().st_uid == store.stat().st_uid
    assert model.text("template") == "{{ .Prompt }}"
    assert model.parameters() == {"top_k": 3}
    assert leftovers(store) == []
    total = sum(map(len, registry.blobs.values()))
    assert (receipt.total_bytes, receipt.fetched_bytes) == (total, total)
    assert [each.host for each in receipt.hosts] == [registry.host]
    assert receipt.hosts[0].received_bytes > total
    assert receipt.hosts[0].sent_bytes > 0
    assert receipt.sandbox in ("namespaces", "no socket of its own")
    assert progress[-1].stage is PullStage.DONE
    assert progress[-1].done_bytes == progress[-1].total_bytes == total
    fetching = [each for each in progress if each.stage is not PullStage.ASKING]
    assert {each.total_bytes for each in fetching} == {total}
    assert all(one.done_bytes <= two.done_bytes for one, two in pairwise(fetching))
    assert registry.twice() == 0
    for _, headers in registry.requests:
        assert set(headers) <= {
            "host",
            "user-agent",
            "accept-encoding",
            "connection",
            "range",
            "accept",
        }


async def test_what_is_there_is_not_fetched_again(
    registry: Registry, store: Path, make: Make
) -> None:
    puller = make()
    await puller.pull(registry.add("one", WEIGHTS, license=b"MIT"))
    before = len(registry.served)
    receipt = await puller.pull(registry.add("two", WEIGHTS, license=b"MIT", system=b"Be brief"))
    assert [each.digest for each in registry.served[before:]] == [
        "sha256:" + hashlib.sha256(b"Be brief").hexdigest()
    ]
    assert receipt.fetched_bytes == len(b"Be brief")
    again = await puller.pull(f"{registry.host}/library/one")
    assert again.fetched_bytes == 0
    assert len(Store(store, bundled=False).models()) == 2


async def test_consent_is_asked_for_with_the_size_and_a_no_is_a_no(
    registry: Registry, store: Path, make: Make
) -> None:
    name = registry.add("small", WEIGHTS)
    offers: list[PullOffer] = []

    async def no(offer: PullOffer) -> bool:
        offers.append(offer)
        return False

    with pytest.raises(PullRefused, match="you said no"):
        await make().pull(name, confirm=no)
    assert registry.served == []
    assert Store(store, bundled=False).models() == []
    assert leftovers(store) == []
    total = sum(map(len, registry.blobs.values()))
    assert offers == [PullOffer(name, registry.host, total, total, str(store))]


async def test_a_registry_that_is_not_listed_is_not_dialled(registry: Registry, make: Make) -> None:
    name = registry.add("small", WEIGHTS)
    with pytest.raises(PullRefused, match=registry.host) as caught:
        await make(registries=()).pull(name)
    assert f"add {registry.host} to pool.registries" in caught.value.hint
    assert registry.requests == []
    await make(registries=()).pull(name, also_from=[registry.host])


@pytest.mark.parametrize("name", ["gpt-oss:20b-cloud", "kimi:cloud"])
async def test_a_cloud_name_is_refused_before_anything_is_sent(name: str, make: Make) -> None:
    with pytest.raises(RemoteModelRefused):
        await make().pull(name)


@pytest.mark.parametrize("where", ["manifest", "config"])
async def test_a_model_that_runs_elsewhere_is_not_kept(
    where: str, registry: Registry, store: Path, make: Make
) -> None:
    remote = {"remote_host": "https://ollama.com:443", "remote_model": "gpt-oss:20b"}
    changes = {"config": remote} if where == "config" else {"changed": remote}
    name = registry.add("away", WEIGHTS, **changes)  # type: ignore[arg-type]
    with pytest.raises(RemoteModelRefused):
        await make().pull(name)
    assert Store(store, bundled=False).models() == []
    assert json.dumps(remote) not in str(list(store.rglob("*")))


async def test_a_store_that_cannot_be_written_is_said_before_anybody_is_asked(
    registry: Registry, make: Make
) -> None:
    name = registry.add("small", WEIGHTS)
    with pytest.raises(PullFailed, match="nothing can be put into the model store") as caught:
        await make(store=Path("/dev/null/models")).pull(name)
    assert "OLLAMA_MODELS" in caught.value.hint
    assert registry.requests == []


async def test_downloads_grow_where_they_are_told_to_if_that_is_the_same_disk(
    registry: Registry, store: Path, make: Make
) -> None:
    name = registry.add("small", WEIGHTS)
    registry.statuses["blobs"] = [403]
    registry.faults = []
    ours = store.parent / "ours"
    with pytest.raises(PullFailed):
        await make(ours=ours).pull(name)
    assert not ours.exists(), "nothing has come that would be of use"
    seen: list[Path] = []
    await make(ours=ours).pull(name, lambda _: seen.extend(ours.glob("*/sha256-*")))
    assert seen
    assert not ours.exists()
    other = Path("/dev/shm/ollama-adapter-tests")
    if other.parent.stat().st_dev != store.parent.stat().st_dev:  # then it is in the store
        inside: list[Path] = []
        renamed = registry.add("other", WEIGHTS, system=b"another text")
        await make(ours=other).pull(renamed, lambda _: inside.extend(store.glob(".pulling/*")))
        assert inside
    assert not other.exists()
    assert leftovers(store) == []
