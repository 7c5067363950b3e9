"""Which applications keep a daemon: by identity, never by a number alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import psutil
import pytest

from ollama_adapter.system.runfile import Entry, RunFiles

PORT = 11500


@pytest.fixture
def files(tmp_path: Path) -> RunFiles:
    return RunFiles(tmp_path / "daemons")


def put(files: RunFiles, name: str, data: bytes | Entry) -> Path:
    files.directory.mkdir(exist_ok=True)
    path = files.directory / f"{name}.json"
    path.write_bytes(data if isinstance(data, bytes) else msgspec.json.encode(data))
    return path


def test_an_application_does_not_meet_itself(files: RunFiles) -> None:
    files.write(PORT)
    assert files.others() == []
    assert [each.name for each in files.directory.iterdir()] == [f"{os.getpid()}.json"]
    files.remove()
    files.remove()
    assert list(files.directory.iterdir()) == []


def test_another_application_that_lives_is_found_and_gone_when_it_ends(files: RunFiles) -> None:
    code = (
        "import sys; from pathlib import Path; from ollama_adapter.system.runfile import RunFiles;"
        "RunFiles(Path(sys.argv[1])).write(11500); print(flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(files.directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with other:
        assert other.stdout is not None
        other.stdout.readline()
        (found,) = files.others()
        assert (found.pid, found.port) == (other.pid, PORT)
        other.kill()
    assert files.others() == []
    assert list(files.directory.iterdir()) == [], "what a crash leaves behind is removed"


@pytest.mark.parametrize(
    ("started", "boot"), [(-100.0, ""), (0.0, "another boot")], ids=["reused number", "reboot"]
)
def test_a_stranger_with_the_number_of_a_dead_one_is_not_taken_for_it(
    files: RunFiles, started: float, boot: str
) -> None:
    files.write(PORT)
    mine = msgspec.json.decode((files.directory / f"{os.getpid()}.json").read_bytes(), type=Entry)
    parent = psutil.Process(os.getppid())
    entry = Entry(parent.pid, parent.create_time() + started, boot or mine.boot, PORT)
    path = put(files, str(parent.pid), entry)
    assert files.others() == []
    assert not path.exists()
    assert parent.is_running()


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"pid":-1}', b"\xff", b"[" * 10_000])
def test_a_damaged_file_is_removed(files: RunFiles, data: bytes) -> None:
    path = put(files, "1", data)
    assert files.others() == []
    assert not path.exists()


def test_without_a_directory_there_is_nothing(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    files = RunFiles(blocked / "daemons")
    files.write(PORT)
    assert files.others() == []
    files.remove()
