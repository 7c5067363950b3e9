"""A registry with faults: what can be mended is mended from where it was, the rest has a name and a hint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from msgspec import structs

from ollama_adapter.embedded.store import Store
from ollama_adapter.errors import AdapterError, InvalidModelFile, PullFailed, PullRefused
from ollama_adapter.events import PullProgress
from tests.embedded.ggufs import llama
from tests.puller.conftest import QUICK, Make
from tests.registry.serving import AUTHORITY, STRANGER, Fault, Registry, running

pytestmark = pytest.mark.anyio
WEIGHTS = llama(width=256)
MOST = len(WEIGHTS) * 7 // 10


def nothing_in(store: Path) -> bool:
    """No model, and no blob that Ollama would take for one."""
    blobs = [each for each in (store / "blobs").iterdir() if not each.name.endswith("-partial")]
    return Store(store, bundled=False).models() == [] and not any(
        hashlib.sha256(each.read_bytes()).hexdigest() != each.name[7:] for each in blobs
    )


@pytest.mark.parametrize(
    "fault",
    [
        Fault("resets", at=MOST),
        Fault("resets", at=0),
        Fault("truncates", at=MOST),
        Fault("truncates", at=MOST, times=3),
        Fault("ignores ranges"),
    ],
    ids=lambda fault: f"{fault.kind} at {fault.at}, {fault.times} times",
)
async def test_what_is_cut_goes_on_from_there(
    fault: Fault, registry: Registry, store: Path, make: Make
) -> None:
    name = registry.add("small", WEIGHTS)
    registry.faults = [replace(fault)]
    seen: list[PullProgress] = []
    await make().pull(name, seen.append)
    model = Store(store).find(Store(store, bundled=False).models()[0].name)
    assert model.weights is not None
    assert model.weights.read_bytes() == WEIGHTS
    if fault.kind == "truncates":  # a reset throws away what was on its way
        assert registry.twice() == 0
    if fault.kind != "ignores ranges":
        assert any(each.note for each in seen)
        assert len(registry.served) == 2 + fault.times


async def test_a_registry_that_falls_silent_is_asked_again(
    registry: Registry, store: Path, make: Make
) -> None:
    name = registry.add("small", WEIGHTS)
    registry.faults = [Fault("holds", at=MOST)]
    seen: list[PullProgress] = []
    await make(patience=structs.replace(QUICK, stall_s=0.2)).pull(name, seen.append)
    assert "nothing came for 0.2 s" in {each.note for each in seen}
    assert registry.twice() == 0
    assert len(Store(store, bundled=False).models()) == 1


async def test_one_that_stays_silent_is_given_up_and_what_has_come_is_kept(
    registry: Registry, store: Path, make: Make
) -> None:
    name = registry.add("small", WEIGHTS)
    registry.faults = [Fault("holds", at=MOST), Fault("holds", at=0, times=99)]
    with pytest.raises(PullFailed, match="has fallen silent") as caught:
        await make(patience=structs.replace(QUICK, stall_s=0.2)).pull(name)
    assert "what has come is kept: pull again" in caught.value.hint
    assert nothing_in(store)
    registry.faults.clear()
    await make().pull(name)
    assert registry.twice() == 0


@pytest.mark.parametrize("where", ["manifests", "blobs"])
async def test_a_status_that_passes_is_waited_out(
    where: str, registry: Registry, store: Path, make: Make
) -> None:
    name = registry.add("small", WEIGHTS)
    registry.statuses[where] = [500, 503, 429]
    await make().pull(name)
    assert len(Store(store, bundled=False).models()) == 1


@pytest.mark.parametrize(
    ("where", "statuses", "words"),
    [
        ("manifests", [404], "has no model"),
        ("manifests", [401], "HTTP 401"),
        ("blobs", [403], "HTTP 403"),
        ("blobs", [500] * 20, "HTTP 500"),
        ("manifests", [500] * 20, "HTTP 500"),
        ("manifests", [100, 204], "HTTP 204"),
    ],
)
async def test_a_status_that_stays_is_told(
    where: str, statuses: list[int], words: str, registry: Registry, store: Path, make: Make
) -> None:
    name = registry.add("small", WEIGHTS)
    registry.statuses[where] = statuses
    with pytest.raises(PullFailed, match=words) as caught:
        await make().pull(name)
    assert caught.value.hint and "is kept" not in caught.value.hint
    assert nothing_in(store)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault("wrong", times=9), "SHA-256 is another one"),
        (Fault("lies", at=1, times=9), "length"),
        (Fault("lies", at=-1, times=9), "length"),
        (Fault("lies", at=1 << 60, times=9), "length"),
        (Fault("redirect", times=9, to="ftp://127.0.0.1/x"), "no https address"),
        (Fault("redirect", times=9, to="http://registry.example/x"), "no https address"),
        (Fault("redirect", times=9, to="https://user:pass@127.0.0.1/"), "no https address"),
        (Fault("redirect", times=9, to="https://[::1/"), "no address"),
        (Fault("redirect", times=9, to="https://127.0.0.1:99999/"), "no address"),
        (
            Fault("redirect", times=99, to="/v2/library/small/blobs/DIGEST"),
            "redirects over 5 times",
        ),
    ],
    ids=str,
)
async def test_what_cannot_be_right_ends_the_pull(
    fault: Fault, words: str, registry: Registry, store: Path, make: Make
) -> None:
    name = registry.add("small", WEIGHTS)
    registry.faults = [replace(fault)]
    with pytest.raises(PullFailed, match=words) as caught:
        await make().pull(name)
    assert caught.value.hint
    assert nothing_in(store)
    registry.faults.clear()
    await make().pull(name)  # and nothing of it stands in the way
    assert len(Store(store, bundled=False).models()) == 1


async def test_an_endless_body_is_read_as_far_as_the_manifest_says(
    registry: Registry, store: Path, make: Make
) -> None:
    name = registry.add("small", WEIGHTS)
    registry.faults = [Fault("endless", times=9)]
    await make().pull(name)
    assert Store(store, bundled=False).models()[0].size == sum(map(len, registry.blobs.values()))


# Redirects


async def test_a_redirect_to_a_listed_host_is_followed(
    registry: Registry, store: Path, make: Make
) -> None:
    with running() as storage:
        name = registry.add("small", WEIGHTS)
        storage.blobs = registry.blobs
        registry.faults = [
            Fault("redirect", times=9, to=f"{storage.url}/data/blobs/DIGEST?signature=a%2Fb")
        ]
        with pytest.raises(PullRefused, match=storage.host) as caught:
            await make().pull(name)
        assert f"add {storage.host} to pool.registries" in caught.value.hint
        assert storage.requests == []
        registry.faults[0].times = 9
        receipt = await make().pull(name, also_from=[storage.host])
        assert {each.host for each in receipt.hosts} == {registry.host, storage.host}
        assert all(path.endswith("?signature=a%2Fb") for path, _ in storage.requests)
        assert sum(each.sent for each in registry.served) == 0


async def test_a_host_that_cannot_be_resolved_or_reached_is_named(make: Make) -> None:
    with pytest.raises(PullFailed, match=r"registry\.invalid"):
        await make(registries=("registry.invalid",)).pull("registry.invalid/me/m")
    with running() as gone:
        host = gone.host
    with pytest.raises(PullFailed, match="Connection refused"):
        await make(registries=(host,)).pull(f"{host}/me/m")


@pytest.mark.parametrize(
    "host", ["127.1", "0x7f.0.0.1", "localhost.localdomain", "169.254.169.254"]
)
async def test_no_other_name_leads_to_this_machine(
    host: str, registry: Registry, make: Make
) -> None:
    """Whatever a resolver makes of it, and whatever the settings say."""
    port = registry.host.partition(":")[2]
    registry.add("small", WEIGHTS)
    with pytest.raises(PullFailed, match=host) as caught:
        await make(registries=(f"{host}:{port}",)).pull(f"{host}:{port}/library/small")
    assert registry.requests == []
    if host != "localhost.localdomain":  # which a resolver may not know
        assert "no address that may be used" in str(caught.value)


# What is in a model


def manifest_of(registry: Registry, model: str) -> dict[str, object]:
    tree: dict[str, object] = json.loads(
        registry.manifests[f"/v2/library/{model}/manifests/latest"]
    )
    return tree


@pytest.mark.parametrize(
    ("weights", "kind"),
    [
        (WEIGHTS[:-64], InvalidModelFile),
        (b"not a model at all", InvalidModelFile),
        (b"", InvalidModelFile),
        (b"GGUF" + b"\xff" * 64, InvalidModelFile),
    ],
    ids=["lies about its size", "no GGUF", "empty", "bomb"],
)
async def test_a_file_that_is_no_model_does_not_get_in(
    weights: bytes, kind: type[AdapterError], registry: Registry, store: Path, make: Make
) -> None:
    name = registry.add("small", weights)
    with pytest.raises(kind) as caught:
        await make().pull(name)
    assert caught.value.hint
    assert nothing_in(store)


@pytest.mark.parametrize(
    "break_it",
    [
        lambda tree: b"x" * (2 << 20),
        lambda tree: b"[" * 100_000,
        lambda tree: json.dumps({**tree, "layers": tree["layers"] * 300}).encode(),
        lambda tree: json.dumps(tree).replace("sha256:", "sha256:../../../../tmp/").encode(),
        lambda tree: b"<html>a login page</html>",
    ],
    ids=["bomb", "nested", "layers", "traversal", "page"],
)
async def test_a_manifest_that_cannot_be_does_no_harm(
    break_it: Callable[[dict[str, object]], bytes], registry: Registry, store: Path, make: Make
) -> None:
    name = registry.add("small", WEIGHTS)
    path = "/v2/library/small/manifests/latest"
    registry.manifests[path] = break_it(manifest_of(registry, "small"))
    with pytest.raises(PullFailed):
        await make().pull(name)
    assert registry.served == []
    assert [each for each in store.rglob("*") if each.is_file()] == []


# Certificates


async def test_tls_is_verified_inside_the_jail(store: Path, make: Make) -> None:
    with running(tls=True) as sure:
        name = sure.add("small", WEIGHTS)
        with pytest.raises(PullFailed, match="cannot prove who it is") as caught:
            await make(registries=(sure.host,), cafile=STRANGER).pull(name)
        assert caught.value.hint
        assert sure.requests == []
        receipt = await make(registries=(sure.host,), cafile=AUTHORITY).pull(name)
        assert receipt.hosts[0].received_bytes > len(WEIGHTS)
    assert len(Store(store, bundled=False).models()) == 1


async def test_a_name_that_the_certificate_does_not_have_is_refused(make: Make) -> None:
    with running(tls=True) as sure:
        sure.add("small", WEIGHTS)
        port = sure.host.partition(":")[2]
        named = make(registries=(f"localhost:{port}",), cafile=AUTHORITY)
        await named.pull(f"localhost:{port}/library/small")
        with running() as plain:
            plain.add("small", WEIGHTS)
            unsure = make(registries=(plain.host,), cafile=AUTHORITY)
            with anyio.fail_after(30), pytest.raises(PullFailed):
                await unsure.pull(f"{plain.host}/library/small")
