"""`pull` from a registry of ours: in a pipe, in a terminal, interrupted."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace

import pytest

from ollama_adapter.cli.pulling import _Pull, line_of, time_left
from ollama_adapter.config import Config
from ollama_adapter.core.registry import LEAST_STEP
from ollama_adapter.events import LoadPhase, PullProgress, PullStage
from ollama_adapter.testing import ScriptedDaemon, ScriptedRequest, response
from tests.cli.command import Machine, finish
from tests.embedded.ggufs import llama
from tests.registry.serving import Fault, Registry, running

pytestmark = pytest.mark.anyio
WEIGHTS = llama(width=256)


@pytest.fixture
def registry() -> Iterator[Registry]:
    with running() as registry:
        yield registry


@pytest.fixture(autouse=True)
def nobody_runs(machine: Machine) -> None:
    """No daemon is looked for where the developer's own may be."""
    machine.environment["OLLAMA_HOST"] = "127.0.0.1:9"
    machine.environment["OLLAMA_MODELS"] = str(machine.home / "models")


def manifests(machine: Machine) -> list[str]:
    return [each.name for each in (machine.home / "models" / "manifests").rglob("latest")]


async def test_piped_it_needs_a_yes_and_says_how(machine: Machine, registry: Registry) -> None:
    name = registry.add("small", WEIGHTS)
    machine.environment["OLLAMA_ADAPTER_POOL_REGISTRIES"] = registry.host
    done = await machine.run("pull", name)
    assert done.code == 1
    assert done.out == ""
    assert f"{name} is to be downloaded from {registry.host}" in done.err
    assert "pass --yes, or set OLLAMA_ADAPTER_POOL_PULLING=always" in done.err
    assert registry.served == []
    machine.environment["OLLAMA_ADAPTER_POOL_PULLING"] = "always"
    assert (await machine.run("pull", name)).code == 0


async def test_with_a_yes_it_tells_how_far_it_is_and_every_host(
    machine: Machine, registry: Registry
) -> None:
    name = registry.add("small", WEIGHTS)
    done = await machine.run("pull", "--yes", name)
    assert done.code == 0, done.err
    assert done.out == f"pulled {name}, 2.1 MB\n"
    lines = done.err.splitlines()
    assert lines[0] == "asking the registry"
    assert any(each.startswith("100 % · 2.1 MB of 2.1 MB") for each in lines)
    assert lines[-1].startswith(f"{registry.host}: 2.1 MB received, ")
    assert len(lines) < 20
    assert manifests(machine) == ["latest"]


async def test_for_a_program_it_is_json(machine: Machine, registry: Registry) -> None:
    name = registry.add("small", WEIGHTS)
    done = await machine.run("pull", "-y", "--json", name)
    *progress, last = done.lines
    assert done.code == 0
    assert {each["type"] for each in progress} == {"progress"}
    assert last["type"] == "pulled"
    assert last["hosts"][registry.host][1] > len(WEIGHTS)
    assert last["total_bytes"] == last["fetched_bytes"] == progress[-1]["done_bytes"]
    refused = await machine.run("pull", "--json", name)
    assert refused.code == 1
    assert refused.lines[-1]["error"] == "PullRefused"


async def test_errors_have_their_codes(machine: Machine, registry: Registry) -> None:
    assert (await machine.run("pull", "a b")).code == 2
    assert (await machine.run("pull")).code == 2
    cloud = await machine.run("pull", "gpt-oss:20b-cloud")
    assert cloud.code == 1 and "runs in a cloud" in cloud.err
    missing = await machine.run("pull", "-y", f"{registry.host}/library/none")
    assert missing.code == 1 and "has no model" in missing.err


async def test_a_redirect_elsewhere_is_refused_by_name_until_it_is_allowed(
    machine: Machine, registry: Registry
) -> None:
    with running() as storage:
        name = registry.add("small", WEIGHTS)
        storage.blobs = registry.blobs
        registry.faults = [Fault("redirect", times=99, to=f"{storage.url}/blobs/DIGEST")]
        done = await machine.run("pull", "-y", name)
        assert done.code == 1
        assert f"add {storage.host} to OLLAMA_ADAPTER_POOL_REGISTRIES" in done.err
        assert "--also-from" in done.err
        assert storage.requests == []
        done = await machine.run("pull", "-y", "--also-from", storage.host, name)
        assert done.code == 0, done.err
        assert f"{storage.host}: 2.1 MB received" in done.err


async def test_in_a_terminal_it_asks_with_host_and_size(
    machine: Machine, registry: Registry
) -> None:
    name = registry.add("small", WEIGHTS)
    async with machine.terminal("pull", name, width=200) as terminal:
        await terminal.until(f"pull from {registry.host}, a registry")
        assert registry.requests == []
        terminal.type("y\n")
        await terminal.until(f"download {name}, 2.1 MB, from {registry.host} into")
        assert registry.served == []
        terminal.type("no\n")
        assert await terminal.ended() == 1
        assert "you said no" in terminal.screen.text
    async with machine.terminal("pull", name, width=200) as terminal:
        await terminal.until("[y/N]")
        terminal.type("\x04")
        assert await terminal.ended() == 1
        assert "\nerror: " in terminal.screen.text and registry.served == []
    machine.environment["OLLAMA_ADAPTER_POOL_REGISTRIES"] = registry.host
    async with machine.terminal("pull", name, width=200) as terminal:
        await terminal.until("[y/N]")
        terminal.type("yes\n")
        assert await terminal.ended() == 0, terminal.screen.text
        assert f"pulled {name}, 2.1 MB" in terminal.screen.text


async def test_ctrl_c_before_anything_has_come_promises_nothing(
    machine: Machine, registry: Registry
) -> None:
    name = registry.add("small", WEIGHTS)
    registry.statuses["blobs"] = [500] * 99
    async with machine.terminal("pull", "-y", name, width=200) as terminal:
        await terminal.until("HTTP 500")
        terminal.type("\x03")
        assert await terminal.ended() == 128 + signal.SIGINT
        assert "kept" not in terminal.screen.text


async def test_ctrl_c_says_that_it_can_go_on_and_it_does(
    machine: Machine, registry: Registry
) -> None:
    name = registry.add("small", WEIGHTS)
    registry.faults = [Fault("holds", at=len(WEIGHTS) // 2)]
    async with machine.terminal("pull", "-y", name, width=200) as terminal:
        await terminal.until("49 %")
        terminal.type("\x03")
        assert await terminal.ended() == 128 + signal.SIGINT
        assert "the same command goes on from there" in terminal.screen.text
    assert manifests(machine) == []
    done = await machine.run("pull", "-y", name)
    assert done.code == 0
    assert registry.twice() <= LEAST_STEP + len(WEIGHTS) // 100  # kept on the disk, and on its way


@pytest.mark.parametrize("as_json", [False, True])
async def test_what_goes_wrong_again_is_told_once(
    capfd: pytest.CaptureFixture[str], as_json: bool
) -> None:
    told = _Pull(Config(), "m", True, [], as_json)
    asking = PullProgress("m", LoadPhase.PULLING, stage=PullStage.ASKING)
    broken = replace(asking, note="HTTP 503")
    for each in (asking, broken, asking, broken, broken, replace(asking, note="HTTP 500"), broken):
        told._tell(each)
    out, err = capfd.readouterr()
    if as_json:
        notes = [json.loads(line)["note"] for line in out.splitlines()]
    else:
        notes = [line.removeprefix("asking the registry") for line in err.splitlines()]
    assert [each.removeprefix(" · ") for each in notes] == ["", "HTTP 503", "HTTP 500", "HTTP 503"]


async def test_a_program_that_has_gone_ends_the_download(
    machine: Machine, registry: Registry
) -> None:
    name = registry.add("small", WEIGHTS)
    reading, writing = os.pipe()
    process = await machine.start("pull", "-y", "--json", name, out=writing)
    os.close(writing)
    os.close(reading)
    done = await finish(process)
    assert (done.code, done.err) == (141, "")
    assert manifests(machine) == []


async def test_a_daemon_with_a_store_of_its_own_downloads_by_itself(machine: Machine) -> None:
    def daemon_pulls(request: ScriptedRequest) -> list[bytes]:
        if request.path == "/api/pull":
            records = [
                b'{"status":"pulling aa","digest":"sha256:aa","total":1000,"completed":500}\n',
                b'{"status":"pulling aa","digest":"sha256:aa","total":1000,"completed":1000}\n',
                b'{"status":"success"}\n',
            ]
            return [response(b"".join(records))]
        return [response(b"", 404)]

    async with ScriptedDaemon(daemon_pulls) as daemon:
        del machine.environment["OLLAMA_HOST"]
        machine.port = daemon.port
        done = await machine.run("pull", "-y", "llama3.2:1b")
        asked = [each.path for each in daemon.requests if each.path.startswith("/api/")]
    assert done.code == 0, done.err
    assert done.out == "pulled llama3.2:1b, 1.0 kB\n"
    assert "into its own store" in done.err
    assert "/api/pull" in asked
    assert not list((machine.home / "models" / "blobs").iterdir())


def test_a_line_says_all_of_it() -> None:
    progress = PullProgress(
        "m", LoadPhase.PULLING, done_bytes=500_000_000, total_bytes=2_000_000_000,
        bytes_per_s=10e6, remaining_s=150.0, host="registry.ollama.ai",
    )  # fmt: skip
    assert (
        line_of(progress) == "25 % · 500 MB of 2.0 GB · 10.0 MB/s · 2 min left · registry.ollama.ai"
    )
    assert [time_left(each) for each in (1, 119, 120, 7199, 7200)] == [
        "1 s",
        "119 s",
        "2 min",
        "120 min",
        "2 h",
    ]
    waiting = PullProgress("m", LoadPhase.PULLING, stage=PullStage.WAITING)
    assert line_of(waiting) == "waiting for another pull of this model"
