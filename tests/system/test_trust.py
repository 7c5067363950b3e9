"""Whom a prompt is handed to."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ollama_adapter.errors import UntrustedDaemon
from ollama_adapter.system import trust
from ollama_adapter.system.listeners import listener_uids

STRANGER = 12345


@pytest.fixture
def listener() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_the_owner_of_a_port_is_known(listener: int) -> None:
    assert listener_uids(listener) == {os.getuid()}
    trust.check_listener(listener)


def test_a_port_without_a_listener_belongs_to_nobody(listener: int) -> None:
    with socket.create_connection(("127.0.0.1", listener)) as connection:
        port = connection.getsockname()[1]  # in use, and nobody listens
        assert listener_uids(port) == set()
        trust.check_listener(port)


def test_a_daemon_of_a_stranger_is_refused_unless_named(
    listener: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust, "listener_uids", lambda _: {STRANGER})
    with pytest.raises(UntrustedDaemon, match=f"uid {STRANGER}") as caught:
        trust.check_listener(listener)
    assert f"adopt_uids = [{STRANGER}]" in caught.value.hint
    trust.check_listener(listener, [STRANGER])


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "bin" / "ollama"
    path.parent.mkdir(mode=0o755)
    path.write_text("")
    path.chmod(0o755)
    return path


def test_a_program_of_ours_or_of_the_system_is_trusted(program: Path) -> None:
    trust.check_program(str(program))
    trust.check_program("/bin/sh")


@pytest.mark.parametrize("place", ["the program", "its directory"])
def test_a_program_that_others_may_replace_is_refused(program: Path, place: str) -> None:
    open_to_all = program if place == "the program" else program.parent
    open_to_all.chmod(0o777)
    link = program.parent.parent / "link"
    link.symlink_to(program)
    for path in (program, link):
        with pytest.raises(UntrustedDaemon, match=str(open_to_all)) as caught:
            trust.check_program(str(path))
        assert "chmod o-w" in caught.value.hint


def test_a_sticky_directory_is_no_danger_to_a_program_and_is_to_a_store(program: Path) -> None:
    program.parent.chmod(0o1777)
    trust.check_program(str(program))
    with pytest.raises(UntrustedDaemon, match="anybody may change"):
        trust.check_store(program.parent)


def test_a_store_of_ones_own_is_trusted_whatever_the_umask(tmp_path: Path) -> None:
    code = (
        "import os; os.umask(0); from pathlib import Path;"
        "from ollama_adapter.system import settings, trust;"
        "store = Path('store').absolute(); settings.daemon_environment(1, store, '5m');"
        "trust.check_store(store)"
    )
    environment = {**os.environ, "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
