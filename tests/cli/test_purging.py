"""`purge`: what lies where, and what may be removed by whom."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from ollama_adapter.system.runfile import RunFiles
from ollama_adapter.testing import ScriptedDaemon, json_response
from tests.cli.command import Machine
from tests.embedded import daemons

pytestmark = pytest.mark.anyio


def fill(path: Path, size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


def store(root: Path) -> Path:
    fill(root / "blobs/sha256-aa", 5_000)
    fill(root / "manifests/registry.ollama.ai/library/m/latest", 100)
    return root


@pytest.fixture
def data(machine: Machine) -> Path:
    return machine.home / ".local/share/ollama-adapter"


@pytest.fixture
def state(machine: Machine) -> Path:
    return machine.home / ".local/state/ollama-adapter"


async def sizes(machine: Machine) -> dict[str, int]:
    done = await machine.run("purge", "--json")
    assert done.code == 0
    return {each["part"]: each["bytes"] for each in done.lines}


async def test_a_machine_without_anything_of_ours(machine: Machine) -> None:
    done = await machine.run("purge")
    assert (done.code, done.out) == (0, "") and "nothing of ours is on this disk" in done.err
    done = await machine.run("purge", "all", "--yes")
    assert (done.code, done.out) == (0, "") and "nothing of ours is on this disk" in done.err


async def test_a_part_that_is_not_there_is_no_fault(machine: Machine, state: Path) -> None:
    for parts in (["downloads", "home"], ["settings"], ["~/.ollama/models"]):
        done = await machine.run("purge", *parts, "--yes")
        assert (done.code, done.out) == (0, "")
        assert [line.split()[-1] for line in done.err.splitlines()] == [
            part.replace("~", str(machine.home)) for part in parts
        ]
        assert done.err.count("note: there is nothing to remove in ") == len(parts)
    fill(state / "home/x", 7)
    done = await machine.run("purge", "downloads", "home", "--yes", "--json")
    told = [
        {each: line.get(each) for each in ("removed", "absent", "bytes")} for line in done.lines
    ]
    assert (done.code, told) == (
        0,
        [
            {"removed": "home", "absent": None, "bytes": 7},
            {"removed": None, "absent": "downloads", "bytes": 0},
        ],
    )
    assert not (state / "home").exists()


async def test_a_part_that_cannot_be_is_a_fault(machine: Machine, state: Path) -> None:
    kept = fill(state / "home/x", 7)
    for part, words in (("hoem", "there is no part hoem"), ("", "the name of a part is empty")):
        done = await machine.run("purge", "home", part, "--yes")
        assert done.code == 2 and f"error: {words}\n" in done.err and kept.exists()
        assert "the parts are: models, downloads, home, daemons, settings, all" in done.err


async def test_the_usual_settings_are_ours_and_those_named_elsewhere_are_not(
    machine: Machine,
) -> None:
    usual = fill(machine.home / ".config/ollama-adapter/config.toml", 0)
    named = fill(machine.home / "mine.toml", 0)
    machine.environment["OLLAMA_ADAPTER_CONFIG"] = str(named)
    assert list(await sizes(machine)) == ["settings", str(named)]
    assert (await machine.run("purge", "all", "--yes")).code == 0
    assert named.exists() and not usual.exists()


async def test_what_lies_where(machine: Machine, data: Path, state: Path) -> None:
    store(data / "models")
    fill(data / "models/blobs/sha256-bb-partial", 70)
    fill(data / "models/.pulling/key/sha256-cc", 30)
    fill(state / "home/.ollama/id", 7)
    fill(state / "daemons/1.json", 3)
    fill(machine.home / ".config/ollama-adapter/config.toml", 0)
    assert await sizes(machine) == {
        "models": 5_100,
        "downloads": 100,
        "home": 7,
        "daemons": 3,
        "settings": 0,
    }
    told = await machine.run("purge")
    assert "5.1 kB" in told.out and str(data / "models") in told.out
    assert "nothing was removed" in told.err
    assert (data / "models/blobs/sha256-aa").exists()


async def test_only_what_is_named_is_removed(machine: Machine, data: Path, state: Path) -> None:
    store(data / "models")
    partial = fill(data / "models/blobs/sha256-bb-partial", 70)
    fill(state / "home/x", 7)
    done = await machine.run("purge", "downloads", "home", "--yes")
    assert done.code == 0 and done.out.count("removed") == 2
    assert not partial.exists() and not (state / "home").exists()
    assert list(await sizes(machine)) == ["models"]
    done = await machine.run("purge", "all", "--yes", "--json")
    assert [(each["removed"], each["bytes"]) for each in done.lines] == [("models", 5_100)]
    assert not (data / "models").exists()


async def test_what_else_lies_in_a_store_stays(machine: Machine, data: Path) -> None:
    store(data / "models")
    mine = fill(data / "models/notes.txt", 1)
    assert (await machine.run("purge", "models", "-y")).code == 0
    assert mine.exists() and not (data / "models/blobs").exists()


async def test_nothing_is_removed_unasked(machine: Machine, data: Path) -> None:
    store(data / "models")
    for arguments in (("purge", "models"), ("purge", "all", "--json")):
        done = await machine.run(*arguments)
        assert done.code == 2 and "--yes" in done.out + done.err
    assert (await sizes(machine))["models"] == 5_100


@pytest.mark.parametrize("answer", ["y\n", "n\n", "\x04"])
async def test_a_person_is_asked(machine: Machine, data: Path, answer: str) -> None:
    store(data / "models")
    async with machine.terminal("purge", "models", width=120) as terminal:
        await terminal.until("remove all of this? [y/N]")
        assert "models: 5.1 kB in 2 files" in terminal.screen.text
        terminal.type(answer)
        assert await terminal.ended() == 0
        last = "removed models" if answer == "y\n" else "\nnote: nothing was removed"
        assert last in terminal.screen.text and "Traceback" not in terminal.screen.text
    assert (data / "models/blobs").exists() is (answer != "y\n")


async def test_ollamas_own_store_has_to_be_named(machine: Machine) -> None:
    ollamas = store(machine.home / ".ollama/models")
    key = fill(machine.home / ".ollama/id_ed25519", 400)
    (line,) = (await machine.run("purge", "--json")).lines
    assert (line["ours"], line["place"], line["what"]) == (False, str(ollamas), "models of Ollama")
    assert (await machine.run("purge", "all", "--yes")).code == 0
    done = await machine.run("purge", "models", "--yes")
    assert done.code == 0 and f"to remove them: purge {ollamas}" in done.err
    assert (await sizes(machine)) == {str(ollamas): 5_100}
    assert (await machine.run("purge", "~/.ollama/models", "~nobody.here/x", "-y")).code == 2
    assert (await machine.run("purge", "~/.ollama/models", "-y")).code == 0
    assert not ollamas.exists() and key.exists()


async def test_a_running_ollama_keeps_its_store(machine: Machine) -> None:
    ollamas = store(machine.home / ".ollama/models")
    async with ScriptedDaemon(lambda _: [json_response({})]) as daemon:
        machine.port = daemon.port
        done = await machine.run("purge", str(ollamas), "--yes")
    assert done.code == 1 and f"a daemon runs on 127.0.0.1:{daemon.port}" in done.err
    assert (ollamas / "blobs").exists()


async def test_nothing_is_taken_from_under_a_daemon(
    machine: Machine, data: Path, state: Path
) -> None:
    store(data / "models")
    settings = fill(machine.home / ".config/ollama-adapter/config.toml", 0)
    files = RunFiles(state / "daemons")
    files.write(0)  # this test is the other application
    done = await machine.run("purge", "all", "--yes", "--json")
    assert done.code == 1 and done.lines[0]["error"] == "DaemonError"
    assert "keeps a daemon" in done.lines[0]["message"] and settings.exists()
    assert (await machine.run("purge", "settings", "--yes")).code == 0 and not settings.exists()
    files.remove()
    assert (await machine.run("purge", "models", "--yes")).code == 0


async def test_a_pull_under_way_keeps_its_files(machine: Machine, data: Path) -> None:
    lock = fill(data / "models/.pulling/key.lock", 0)
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = await machine.run("purge", "downloads", "--yes")
        assert done.code == 1 and "is being pulled" in done.err and lock.exists()
    assert (await machine.run("purge", "downloads", "--yes")).code == 0 and not lock.exists()


async def test_links_are_not_followed(machine: Machine, data: Path, tmp_path: Path) -> None:
    elsewhere = fill(tmp_path / "elsewhere/blob", 9_000)
    store(data / "models")
    (data / "models/blobs/sha256-dd").symlink_to(elsewhere)
    (data / "models/manifests/out").symlink_to(elsewhere.parent)
    assert (await sizes(machine))["models"] == 5_100
    assert (await machine.run("purge", "models", "--yes")).code == 0
    (data / "models").parent.mkdir(parents=True, exist_ok=True)
    (data / "models").symlink_to(store(tmp_path / "large"))
    (line,) = (await machine.run("purge", "--json")).lines
    assert (line["link"], line["bytes"]) == (str(tmp_path / "large"), 0)
    done = await machine.run("purge", "models", "--yes")
    assert f"removed models (0 B): the link {data / 'models'}, not {tmp_path}" in done.out
    assert elsewhere.exists() and (tmp_path / "large/blobs/sha256-aa").exists()
    assert not (data / "models").is_symlink()


async def test_names_are_shown_and_never_obeyed(machine: Machine) -> None:
    odd = store(machine.home / "odd\x1b[2J")
    machine.environment["OLLAMA_MODELS"] = str(odd)
    done = await machine.run("purge")
    assert "odd␛[2J" in done.out and "models of yours" in done.out and "\x1b" not in done.out


async def test_what_a_daemon_serves_is_not_removed_wherever_that_listens(
    machine: Machine, data: Path
) -> None:
    store(data / "models")
    environment = {"HOME": str(machine.home), "OLLAMA_MODELS": str(data / "models")}
    with daemons.running(data / "models", **environment) as daemon:
        done = await machine.run("purge", "models", "--yes")
        assert done.code == 1 and "a daemon serves the models in" in done.err
        assert daemon.stop() == 0
    assert (await machine.run("purge", "models", "--yes")).code == 0
    assert not (data / "models" / "blobs").exists()
