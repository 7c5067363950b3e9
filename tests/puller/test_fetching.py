"""What the process that fetches says to a registry, byte by byte, and where it lets itself be sent."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from ollama_adapter.puller.fetching import Failure, Fetcher, Target

ABOUT: dict[str, Any] = {
    "tls": True,
    "host": "registry.ollama.ai",
    "port": 443,
    "cafile": "",
    "stall_s": 5.0,
    "agent": "ollama-adapter",
}


class Spoken(Fetcher):
    """One whose streams lead here."""

    def __init__(self, door: socket.socket, far: socket.socket) -> None:
        super().__init__(door, ABOUT)
        self._far = far

    def _connect(self, target: Target) -> socket.socket:
        return self._far


def said_to(target: Target, headers: dict[str, str]) -> list[str]:
    """The lines of the request."""
    ours, far = socket.socketpair()
    door, other = socket.socketpair()
    with ours, far, door, other:
        ours.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
        Spoken(door, far)._ask(target, headers).close()
        return ours.recv(1 << 16).decode().removesuffix("\r\n\r\n").split("\r\n")


def test_it_says_what_it_wants_and_nothing_about_anybody() -> None:
    path = "/v2/library/llama3.2/blobs/sha256:11"
    first, *rest = said_to(Target(True, "registry.ollama.ai", 443, path), {"Range": "bytes=5-9"})
    assert first == f"GET {path} HTTP/1.1"
    assert sorted(rest) == [
        "Accept-Encoding: identity",
        "Connection: close",
        "Host: registry.ollama.ai",
        "Range: bytes=5-9",
        "User-Agent: ollama-adapter",
    ]


@pytest.mark.parametrize(
    ("tls", "port", "host"),
    [
        (True, 443, "a.example"),
        (True, 80, "a.example:80"),
        (False, 80, "a.example"),
        (False, 443, "a.example:443"),
    ],
)
def test_the_host_is_named_as_addresses_are_signed(tls: bool, port: int, host: str) -> None:
    assert f"Host: {host}" in said_to(Target(tls, "a.example", port, "/x?y=%2Fz"), {})


HERE = Target(True, "registry.example", 5000, "/v2/library/m/blobs/x")


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("https://cdn.example/a%2Fb?c=d%3D&e", Target(True, "cdn.example", 443, "/a%2Fb?c=d%3D&e")),
        ("https://CDN.example:8443", Target(True, "cdn.example", 8443, "/")),
        ("/other", Target(True, "registry.example", 5000, "/other")),
        ("//cdn.example/x", Target(True, "cdn.example", 443, "/x")),
        ("http://127.0.0.1:80/x", Target(False, "127.0.0.1", 80, "/x")),
    ],
)
def test_a_redirect_is_followed_as_it_is_written(location: str, expected: Target) -> None:
    assert HERE.redirected(location) == expected


@pytest.mark.parametrize(
    "location",
    [
        "http://cdn.example/x",
        "file:///etc/passwd",
        "https://a:b@cdn.example/",
        "https://[::1",
        "https://a:x/",
    ],
)
def test_one_to_anything_else_is_not(location: str) -> None:
    with pytest.raises(Failure, match="redirects to what is no"):
        HERE.redirected(location)
