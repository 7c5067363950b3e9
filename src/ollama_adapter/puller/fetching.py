"""Speaks the registry protocol, in a jail: run as a script with `-I -S`; it knows the standard library only.

It has no network. Its one way out is a stream to the proxy (proxy.py) of the application, for which it
asks through its door, a socket that it was given (argv[1]); on it comes CONNECT, then TLS, verified here,
end to end. It writes into the current directory and nowhere else. It carries out one order at a time, tries
nothing twice, and sends what it has written to the disk before it says so. A message is a line of JSON.

In:  {"do": "begin", "tls", "host", "port", "cafile", "stall_s", "agent"} once, then
     {"do": "manifest", "path", "accept", "file", "limit"} or
     {"do": "blob", "path", "file", "offset", "size", "step"}; and answers to "dial", a descriptor each
Out: {"event": "dial"}; {"event": "progress", "done"}; {"event": "done"};
     {"event": "failed", "kind", "reason", "again"} where `again` says that another try may help
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import ssl
import sys
import urllib.parse
from typing import Any, NamedTuple, Self

MESSAGE_BYTES = 1 << 14
READ_BYTES = 1 << 18
HEAD_BYTES = 1 << 13
MOST_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)
PASSING = (408, 425, 429, 500, 502, 503, 504)  # statuses that another try may not get
LOOPBACK = ("127.0.0.1", "localhost")
_RANGE = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15})")


class Failure(Exception):
    """The order cannot be carried out."""

    def __init__(self, kind: str, reason: str, *, again: bool = False) -> None:
        super().__init__(reason)
        self.kind = kind
        self.again = again


class Target(NamedTuple):
    """What to ask for, and where."""

    tls: bool
    host: str
    port: int
    path: str

    def redirected(self, location: str) -> Target:
        """Only to https, but on this machine."""
        scheme = "https" if self.tls else "http"
        here = f"{scheme}://{self.host}:{self.port}{self.path}"
        try:
            parts = urllib.parse.urlsplit(urllib.parse.urljoin(here, location))
            host, port = parts.hostname or "", parts.port
        except ValueError:
            raise Failure("protocol", "it redirects to what is no address") from None
        usable = parts.scheme == "https" or (parts.scheme == "http" and host in LOOPBACK)
        if not host or not usable or parts.username is not None:
            raise Failure("protocol", "it redirects to what is no https address")
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        tls = parts.scheme == "https"
        return Target(tls, host, port or (443 if tls else 80), path or "/")


class Fetcher:
    """One registry, for as long as the door is open."""

    def __init__(self, door: socket.socket, about: dict[str, Any]) -> None:
        self._door = door
        self._about = about
        self._context: ssl.SSLContext | None = None

    def run(self) -> None:
        while order := receive(self._door)[0]:
            try:
                self._carry_out(order)
            except Failure as failure:
                told = {"kind": failure.kind, "reason": str(failure), "again": failure.again}
                self._tell("failed", **told)

    def _carry_out(self, order: dict[str, Any]) -> None:
        try:
            if order["do"] == "manifest":
                self._fetch_manifest(order)
            else:
                self._fetch_blob(order)
        except ssl.SSLCertVerificationError as error:
            raise Failure("untrusted", error.verify_message or "no certificate") from None
        except TimeoutError:
            limit_s = self._about["stall_s"]
            raise Failure("stalled", f"nothing came for {limit_s:g} s", again=True) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise Failure("network", str(reason), again=True) from None
        except ValueError:  # an address or a header that cannot be sent
            raise Failure("protocol", "what it says is not HTTP") from None
        self._tell("done")

    # The two orders

    def _fetch_manifest(self, order: dict[str, Any]) -> None:
        response = self._get(order["path"], {"Accept": order["accept"]})
        limit = int(order["limit"])
        body = b""
        while len(body) <= limit and (data := response.read1(READ_BYTES)):
            body += data
        response.close()
        if len(body) > limit:
            raise Failure("protocol", f"its manifest has over {limit >> 10} KiB")
        with Staged(order["file"]) as file:
            file.cut(0)
            file.write(body)
            file.settle()

    def _fetch_blob(self, order: dict[str, Any]) -> None:
        offset, size, step = int(order["offset"]), int(order["size"]), int(order["step"])
        with Staged(order["file"]) as file, Journal(order["file"] + ".journal") as journal:
            if offset < size:
                response = self._get(order["path"], {"Range": f"bytes={offset}-{size - 1}"})
                offset = first_byte(response, offset, size)
            file.cut(offset)
            done = kept = offset
            try:
                self._tell("progress", done=done)
                while done < size:
                    data = response.read1(min(READ_BYTES, size - done))
                    if not data:
                        raise Failure("network", "it sent less than it said", again=True)
                    file.write(data)
                    done += len(data)
                    if done - kept >= step:
                        journal.keep(file, done)
                        kept = done
                    self._tell("progress", done=done)
            finally:
                journal.keep(file, done)

    # The way there

    def _get(self, path: str, headers: dict[str, str]) -> http.client.HTTPResponse:
        """The response to a GET, at the end of all redirects; its status is 200 or 206."""
        about = self._about
        target = Target(about["tls"], about["host"], about["port"], path)
        for _ in range(MOST_REDIRECTS + 1):
            response = self._ask(target, headers)
            if response.status in REDIRECTS:
                target = target.redirected(response.headers.get("Location", ""))
                response.close()
                continue
            if response.status not in (200, 206):
                again = response.status in PASSING
                raise Failure(f"status {response.status}", f"HTTP {response.status}", again=again)
            return response
        raise Failure("protocol", f"it redirects over {MOST_REDIRECTS} times")

    def _ask(self, target: Target, headers: dict[str, str]) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(target.host, target.port)
        connection.auto_open = 0
        # The usual port is not said: storage signs its addresses with the host as it is named there.
        connection.default_port = 443 if target.tls else 80
        connection.sock = self._connect(target)
        always = {"User-Agent": self._about["agent"], "Accept-Encoding": "identity"}
        connection.request("GET", target.path, headers={**always, **headers, "Connection": "close"})
        return connection.getresponse()

    def _connect(self, target: Target) -> socket.socket:
        stream = self._dial(target.host, target.port)
        if not target.tls:
            return stream
        if self._context is None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            self._context.minimum_version = ssl.TLSVersion.TLSv1_2
            self._context.load_verify_locations(cafile=self._about["cafile"])
        return self._context.wrap_socket(stream, server_hostname=target.host)

    def _dial(self, host: str, port: int) -> socket.socket:
        """A stream that the proxy has connected to there."""
        self._tell("dial")
        _, fds = receive(self._door)
        stream = socket.socket(fileno=fds[0])
        stream.settimeout(self._about["stall_s"])
        stream.sendall(f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = stream.recv(1)
            if not byte or len(head) > HEAD_BYTES:
                raise Failure("network", "the proxy has gone")
            head += byte
        status, _, reason = head.partition(b"\r\n")[0].decode("latin-1")[9:].partition(" ")
        if status == "403":
            raise Failure("refused", f"{host}:{port}")
        if status != "200":
            raise Failure("network", f"{host}: {reason}", again=True)
        return stream

    def _tell(self, event: str, **about: Any) -> None:
        self._door.send(json.dumps({"event": event, **about}).encode())


def first_byte(response: http.client.HTTPResponse, offset: int, size: int) -> int:
    """Where the body begins: at the offset asked for, or at 0; and it goes as far as it should."""
    if response.status == 206:
        found = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if not found or tuple(map(int, found.groups())) != (offset, size - 1, size):
            raise Failure("protocol", "it sends another part than was asked for")
    else:
        offset = 0
    if response.length is not None and response.length != size - offset:
        raise Failure("protocol", "its length is not the one of the manifest")
    return offset


class Staged:
    """A file of the current directory that is written from somewhere on."""

    def __init__(self, name: str) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = _on_disk(os.open, name, flags, 0o600)

    def cut(self, offset: int) -> None:
        """What lies behind is not to be believed."""
        _on_disk(os.ftruncate, self._fd, offset)
        _on_disk(os.lseek, self._fd, offset, os.SEEK_SET)

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[_on_disk(os.write, self._fd, view) :]

    def settle(self) -> None:
        """On the disk, for good."""
        _on_disk(os.fsync, self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


class Journal(Staged):
    """How much of a staged file is on the disk: a number of fixed length, written at once."""

    def keep(self, file: Staged, done: int) -> None:
        file.settle()
        _on_disk(os.pwrite, self._fd, b"%015d\n" % done, 0)


def _on_disk(call: Any, *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except OSError as error:
        raise Failure("disk", error.strerror or "it cannot be written") from None


def receive(door: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The next message and its descriptors; nothing when the door is closed."""
    data, fds, _, _ = socket.recv_fds(door, MESSAGE_BYTES, 1)
    return (json.loads(data) if data else {}), fds


def main() -> None:
    door = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(door.fileno(), False)
    about, _ = receive(door)
    if about:
        Fetcher(door, about).run()


if __name__ == "__main__":
    main()
