"""Who listens on a port: by the kernel's answer, and by its tables where it gives none."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator

import pytest

from ollama_adapter.system import listeners

STRANGER = 12345 if os.getuid() == 0 else os.getuid()  # only root can be somebody else


@pytest.fixture(params=["asked", "read"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """As where the kernel answers, and as where it does not know the question."""
    if request.param == "read":
        monkeypatch.setattr(listeners, "NETLINK_SOCK_DIAG", 31)
    return str(request.param)


@pytest.fixture
def strangers_port() -> Iterator[int]:
    os.seteuid(STRANGER)  # a socket is whoever's made it
    try:
        server = socket.create_server(("127.0.0.1", 0))
    finally:
        os.seteuid(os.getuid())
    with server:
        yield server.getsockname()[1]


def test_both_ways_are_there() -> None:
    if sys.platform == "linux":
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            assert set(listeners._read(port)) == {os.getuid()}


@pytest.mark.usefixtures("way")
def test_the_owner_is_told_for_either_family() -> None:
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.create_server((host, 0), family=family) as server:
            assert listeners.listener_uids(server.getsockname()[1]) == {os.getuid()}


@pytest.mark.usefixtures("way")
def test_a_stranger_is_told(strangers_port: int) -> None:
    assert listeners.listener_uids(strangers_port) == {STRANGER}


@pytest.mark.usefixtures("way")
def test_a_connection_is_no_listener_and_other_ports_are_not_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()) as connection:
            assert listeners.listener_uids(connection.getsockname()[1]) == set()
        many = [socket.create_server(("127.0.0.1", 0)) for _ in range(50)]
        ports = {each.getsockname()[1] for each in many}
        for each in many:
            each.close()
        assert {uid for port in ports for uid in listeners.listener_uids(port)} == set()


def test_an_answer_that_cannot_be_read_is_an_error() -> None:
    with pytest.raises(OSError, match="cannot be read"):
        list(listeners._messages(bytes(16)))
