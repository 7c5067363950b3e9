"""HTTP over the loopback, against servers that are slow, broken or mean."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field

import anyio
import pytest
from anyio.lowlevel import checkpoint

from ollama_adapter.errors import (
    AdapterError,
    ConnectFailed,
    ConnectionLost,
    ProtocolError,
    ReadTimeout,
)
from ollama_adapter.system.dialing import dial_port, find_free_port
from ollama_adapter.system.fetching import Response, fetch
from ollama_adapter.system.http import (
    MAX_HEAD_BYTES,
    READ_BYTES,
    Exchange,
    Sink,
    encode_request,
    open_exchange,
)

pytestmark = pytest.mark.anyio
WATCHDOG_S = 30.0
GET = encode_request("GET", "/api/version")
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
WHOLE = OK + b"Content-Length: 5\r\n\r\nhello"

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Server:
    """A raw server on the loopback; `serve` is called once the head of a request has come."""

    serve: Serve
    port: int = 0
    heads: list[bytes] = field(default_factory=list)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.heads.append(await reader.readuntil(b"\r\n\r\n"))
            self.asked.set()
            await self.serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            self.left.set()
        finally:
            writer.close()


@asynccontextmanager
async def serving(serve: Serve) -> AsyncIterator[Server]:
    it = Server(serve)
    listener = await asyncio.start_server(it._handle, "127.0.0.1", 0)
    it.port = listener.sockets[0].getsockname()[1]
    async with listener:
        with anyio.fail_after(WATCHDOG_S):
            yield it


def saying(*pieces: bytes, hold: bool = False) -> Serve:
    """Send the pieces, each as a write of its own; then hang up, or wait until the client does."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for each in pieces:
            writer.write(each)
            await writer.drain()
        if hold:
            await reader.read()
            raise ConnectionResetError

    return serve


async def get(port: int, answer_s: float | None = WATCHDOG_S) -> Response:
    return await fetch(dial_port(port), GET, connect_s=WATCHDOG_S, answer_s=answer_s)


async def until(condition: Callable[[], bool]) -> None:
    """For what the loop or the kernel does a few turns later, and tells nobody."""
    with anyio.fail_after(WATCHDOG_S):
        while not condition():
            await checkpoint()


def sockets() -> int:
    """How many sockets this process holds."""
    held = 0
    for each in os.listdir("/proc/self/fd"):
        try:
            held += os.readlink(f"/proc/self/fd/{each}").startswith("socket:")
        except OSError:
            continue  # the listing's own
    return held


# The parser's side, without a network: every way to cut an answer into two reads, and many more


@contextmanager
def wired(sink: Sink) -> Iterator[tuple[Exchange, socket.socket]]:
    """An exchange that is fed by hand, and the other end of its connection."""
    ours, theirs = socket.socketpair()
    with closing(ours), closing(theirs):
        ours.setblocking(False)
        exchange = Exchange(ours, GET, sink)
        yield exchange, theirs
        exchange.close()


Outcome = tuple[int, bytes, object]


def receive(reads: Sequence[bytes], refuse: bytes = b"\0") -> Outcome:
    """What the client makes of these reads and the end of the connection."""
    body = bytearray()
    status = 0

    def sink(status_: int, data: bytes, now_ns: int) -> None:
        nonlocal status
        assert data, "the sink was called for nothing"
        assert now_ns > 0
        status = status_
        body.extend(data)
        if refuse in body:
            raise ProtocolError("the sink refuses")

    with wired(sink) as (exchange, daemon):
        assert daemon.recv(1024) == GET
        for each in reads:
            exchange.receive(each)
        exchange.receive(b"")
        assert daemon.recv(1) == b"", "the connection was not closed"
    failure = exchange.ended.exception()
    assert not body or status == exchange.status
    outcome = str(failure) if failure else exchange.ended.result()
    return exchange.status, bytes(body), outcome


NOT_HTTP = "the answer is not HTTP"
ANSWERS: list[tuple[bytes, Outcome]] = [
    (WHOLE, (200, b"hello", True)),
    (CHUNKED + b"5\r\nhello\r\n0\r\n\r\n", (200, b"hello", True)),
    (CHUNKED + b"2\r\nhe\r\n3;name=value\r\nllo\r\n0\r\nTrailer: x\r\n\r\n", (200, b"hello", True)),
    (OK + b"Content-Length: 0\r\n\r\n", (200, b"", True)),
    (b"HTTP/1.1 204 No Content\r\n\r\n", (204, b"", True)),
    (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", (304, b"", True)),
    (b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnope", (404, b"nope", True)),
    (
        b"HTTP/1.1 302 Found\r\nLocation: http://x/\r\nContent-Length: 2\r\n\r\ngo",
        (302, b"go", True),
    ),
    (b"HTTP/1.1 100 Continue\r\n\r\n" + WHOLE, (200, b"hello", True)),
    (
        b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 100 Go\r\n\r\n" + WHOLE,
        (200, b"hello", True),
    ),
    # after the end
    (WHOLE + b"and more", (200, b"hello", True)),
    (WHOLE + b"HTTP/1.1 500 Smuggled\r\nContent-Length: 3\r\n\r\nbad", (200, b"hello", True)),
    (WHOLE + WHOLE, (200, b"hello", True)),
    (WHOLE + b"HTTP/1.1 100 Continue\r\n\r\n", (200, b"hello", True)),
    (OK + b"Connection: close\r\nContent-Length: 5\r\n\r\nhello\r\n\r\n", (200, b"hello", True)),
    # cut
    (b"", (0, b"", False)),
    (OK, (0, b"", False)),
    (OK + b"Content-Length: 5\r\n\r\nhel", (200, b"hel", False)),
    (CHUNKED + b"5\r\nhello\r\n", (200, b"hello", False)),
    (CHUNKED + b"5\r\nhel", (200, b"hel", False)),
    (b"HTTP/1.1 100 Continue\r\n\r\n", (0, b"", False)),
    (OK + b"Connection: close\r\n\r\nhello", (200, b"hello", False)),  # no length: no end is known
    (b"HTTP/1.0 200 OK\r\n\r\nhello", (200, b"hello", False)),
    # broken
    (b"SSH-2.0-OpenSSH_9.2\r\n", (0, b"", NOT_HTTP)),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", (0, b"", NOT_HTTP)),
    (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", (0, b"", NOT_HTTP)),
    (b"HTTP/1.1 twohundred OK\r\n\r\n", (0, b"", NOT_HTTP)),
    (b"HTTP/1.1 200 OK\n\nhello", (0, b"", NOT_HTTP)),
    (OK + b"Content-Length: five\r\n\r\nhello", (0, b"", NOT_HTTP)),
    (OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", (0, b"", NOT_HTTP)),
    (OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", (0, b"", NOT_HTTP)),
    (OK + b"No colon\r\n\r\n", (0, b"", NOT_HTTP)),
    (CHUNKED + b"5\r\nhello\r\nzz\r\nmore", (200, b"hello", NOT_HTTP)),
    (CHUNKED + b"5\r\nhelloXX", (200, b"hello", NOT_HTTP)),
    (CHUNKED + b"-5\r\nhello\r\n", (200, b"", NOT_HTTP)),
    (CHUNKED + b"fffffffffffffffff\r\nhello", (200, b"", NOT_HTTP)),
    (
        b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n\x81\x05",
        (0, b"", NOT_HTTP),
    ),
    # what the reader refuses is told as such, whatever follows
    (CHUNKED + b"3\r\na\0b\r\nzz\r\n", (200, b"a\0b", "the sink refuses")),
    (CHUNKED + b"3\r\na\0b\r\n0\r\n\r\n", (200, b"a\0b", "the sink refuses")),
]


async def test_an_answer_is_the_same_however_it_is_cut() -> None:
    for data, expected in ANSWERS:
        ways = [[data[:at], data[at:]] for at in range(len(data) + 1)]
        ways += [[data[at : at + n] for at in range(0, len(data), n)] for n in (1, 2, 3, 7)]
        for reads in ways:
            status, body, outcome = receive([each for each in reads if each])
            if outcome == "the sink refuses":  # it was given what had come, up to a byte
                body = expected[1]
            assert (status, body, outcome) == expected, f"cut into {reads}"


async def test_what_comes_in_one_read_is_handed_over_at_once() -> None:
    handed: list[bytes] = []
    with wired(lambda _status, data, _now: handed.append(data)) as (exchange, _):
        exchange.receive(CHUNKED + b"1\r\na\r\n1\r\nb\r\n")
        exchange.receive(b"1\r\nc\r\n0\r\n\r\n")
    assert handed == [b"ab", b"c"]


async def test_nothing_is_handed_over_after_the_end() -> None:
    handed: list[bytes] = []
    with wired(lambda _status, data, _now: handed.append(data)) as (exchange, _):
        exchange.receive(CHUNKED + b"1\r\na\r\n")
        exchange.close()
        exchange.receive(b"1\r\nb\r\n")
    assert handed == [b"a"]
    assert repr(exchange) == "<Exchange status 200 closed>"


# Over real sockets


async def test_a_request_and_its_answer() -> None:
    async with serving(saying(WHOLE)) as server:
        assert await get(server.port) == Response(200, b"hello")
    (head,) = server.heads
    assert head.startswith(b"GET /api/version HTTP/1.1\r\nHost: 127.0.0.1\r\n")
    assert b"Connection: close\r\n" in head


def test_a_request_says_what_it_carries() -> None:
    request = encode_request("POST", "/api/blobs", b"\0\xff", kind="application/octet-stream")
    head, _, body = request.partition(b"\r\n\r\n")
    assert b"Content-Type: application/octet-stream\r\nContent-Length: 2" in head
    assert body == b"\0\xff"
    assert b"Content-Type: application/json\r\n" in GET


async def test_a_response_does_not_show_its_body() -> None:
    async with serving(saying(WHOLE)) as server:
        assert "hello" not in repr(await get(server.port))


@pytest.mark.parametrize(
    ("pieces", "error"),
    [
        ((), ConnectionLost),
        ((OK,), ConnectionLost),
        ((OK, b"Content-Length: 9\r\n\r\nhel"), ConnectionLost),
        ((CHUNKED, b"5\r\nhello\r\n"), ConnectionLost),
        ((b"HTTP/1.1 100 Continue\r\n\r\n",), ConnectionLost),
        ((b"nonsense\r\n\r\n",), ProtocolError),
        ((CHUNKED, b"nonsense\r\n"), ProtocolError),
    ],
)
async def test_a_broken_answer_is_an_error_of_ours(
    pieces: tuple[bytes, ...], error: type[AdapterError]
) -> None:
    async with serving(saying(*pieces)) as server:
        with pytest.raises(error):
            await get(server.port)


async def test_a_reset_is_a_lost_connection() -> None:
    async def reset(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + b"5\r\nhello\r\n")
        await writer.drain()
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()

    async with serving(reset) as server:
        with pytest.raises(ConnectionLost):
            await get(server.port)


@pytest.mark.parametrize(
    "endless",
    [b"X-Header: " + b"y" * 1000 + b"\r\n", b"y" * 1000],
    ids=["lines", "one line"],
)
@pytest.mark.parametrize(
    "start", [OK, b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"X: "], ids=["200", "100"]
)
async def test_endless_headers_are_given_up(endless: bytes, start: bytes) -> None:
    sent = 0

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(start)
        while True:
            writer.write(endless * 16)
            await writer.drain()
            sent += 16 * len(endless)

    async with serving(serve) as server:
        with pytest.raises(ProtocolError, match=r"over 64 KiB of headers|not HTTP"):
            await get(server.port)
        await server.left.wait()
    assert sent < 20_000_000


async def test_a_header_of_twenty_megabytes_is_given_up() -> None:
    async with serving(saying(OK + b"X: " + b"y" * 20_000_000, hold=True)) as server:
        with pytest.raises(ProtocolError, match="headers"):
            await get(server.port)
        await server.left.wait()


async def test_headers_within_the_limit_pass() -> None:
    filler = b"X: " + b"y" * (MAX_HEAD_BYTES - 200) + b"\r\n"
    async with serving(saying(OK + filler, b"Content-Length: 5\r\n\r\nhello")) as server:
        assert (await get(server.port)).body == b"hello"


async def test_a_small_head_with_a_large_body_in_one_read_passes() -> None:
    body = b"z" * (MAX_HEAD_BYTES * 3)
    answer = OK + b"Content-Length: %d\r\n\r\n" % len(body) + body
    assert receive([answer]) == (200, body, True)


async def test_a_body_beyond_the_limit_is_given_up() -> None:
    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED)
        while True:
            writer.write(b"8000\r\n" + b"z" * 0x8000 + b"\r\n")
            await writer.drain()

    async with serving(serve) as server:
        with pytest.raises(ProtocolError, match="over 1024 KiB"):
            await fetch(
                dial_port(server.port), GET, connect_s=5, answer_s=WATCHDOG_S, max_bytes=1 << 20
            )
        await server.left.wait()


async def test_a_slow_drip_adds_up() -> None:
    go = asyncio.Event()

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for each in b"HTTP/1.1 100 Continue\r\n\r\n" + WHOLE:
            writer.write(bytes([each]))
            await writer.drain()
            await checkpoint()
        await go.wait()

    async with serving(serve) as server:
        assert await get(server.port) == Response(200, b"hello")
        go.set()


async def test_silence_has_a_limit_and_the_connection_is_dropped() -> None:
    async with serving(saying(CHUNKED, hold=True)) as server:
        with pytest.raises(ReadTimeout, match=r"within 0\.05 s"):
            await get(server.port, answer_s=0.05)
        await server.left.wait()


async def test_nothing_listens() -> None:
    port = find_free_port()
    with pytest.raises(ConnectFailed, match=f"127.0.0.1:{port}"):
        await get(port)


async def test_a_connection_that_is_not_answered_has_a_limit() -> None:
    """A full backlog: the kernel drops our SYN, as it does when a daemon hangs at its start."""
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        fill = [socket.socket() for _ in range(4)]
        for each in fill:
            each.setblocking(False)
            each.connect_ex(("127.0.0.1", port))
        before = sockets()
        with pytest.raises(ReadTimeout, match=r"no connection to the daemon within 0\.05 s"):
            await fetch(dial_port(port), GET, connect_s=0.05, answer_s=None)
        for each in fill:
            each.close()
        await until(lambda: sockets() <= before - len(fill))


async def test_no_file_descriptor_left_is_a_failed_connection() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        dial = dial_port(listener.getsockname()[1])
        next_number = os.dup(0)
        os.close(next_number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (next_number, hard))
        try:
            with pytest.raises(ConnectFailed, match="Too many open files"):
                await dial()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        (await dial()).close()


async def test_a_connection_that_the_system_will_not_watch_is_a_failed_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        before = sockets()
        monkeypatch.setattr(asyncio.get_running_loop(), "add_reader", refuse_to_watch)
        with pytest.raises(ConnectFailed, match="cannot be watched: No space left on device"):
            await get(listener.getsockname()[1])
        assert sockets() == before


def refuse_to_watch(*_: object) -> None:
    """As a system does that watches as many files as it may."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# The abort


async def test_closing_is_seen_by_the_server_at_once() -> None:
    ended: list[bool] = []
    async with serving(saying(CHUNKED + b"5\r\nhello\r\n", hold=True)) as server:
        arrived = asyncio.Event()
        exchange = await open_exchange(
            dial_port(server.port), GET, lambda *_: arrived.set(), WATCHDOG_S
        )
        await arrived.wait()
        exchange.close()
        exchange.close()
        await server.left.wait()
        ended.append(await exchange.ended)
    assert ended == [False]


async def test_a_close_is_on_its_way_when_the_call_returns() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        exchange = await open_exchange(dial_port(port), GET, lambda *_: None, WATCHDOG_S)
        peer, _ = listener.accept()
        with peer:
            peer.settimeout(WATCHDOG_S)
            request = b""
            while len(request) < len(GET):
                request += peer.recv(1024)
            exchange.close()
            assert peer.recv(1) == b"", "with no turn of the loop in between"


def test_a_close_in_a_closed_loop_is_seen_though_a_forked_process_holds_the_connection() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        ours = socket.create_connection(listener.getsockname())
        peer, _ = listener.accept()
        with closing(peer), closing(ours.dup()):  # the latter as a fork would have it
            ours.setblocking(False)

            async def dial() -> socket.socket:
                return ours

            loop = asyncio.new_event_loop()
            opening = open_exchange(dial, GET, lambda *_: None, WATCHDOG_S)
            exchange = loop.run_until_complete(opening)
            loop.close()
            peer.settimeout(WATCHDOG_S)
            assert peer.recv(len(GET), socket.MSG_WAITALL) == GET
            exchange.close()
            exchange.close()
            assert peer.recv(1) == b""


@pytest.mark.parametrize("moment", ["connecting", "waiting", "reading"])
async def test_cancelling_leaves_no_socket(moment: str) -> None:
    async with serving(saying(CHUNKED, hold=True)) as server:
        before = sockets()
        task = asyncio.create_task(get(server.port, answer_s=None))
        if moment == "waiting":
            await server.asked.wait()
        elif moment == "reading":
            await server.asked.wait()
            await until(lambda: sockets() == before + 2)
        else:
            await checkpoint()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        await until(lambda: sockets() == before)


async def test_cancelling_at_any_turn_of_the_loop_leaves_no_socket() -> None:
    body = encode_request("POST", "/api/generate", b"x" * 20_000_000)  # more than a kernel takes
    async with serving(saying(hold=True)) as server:
        before = sockets()
        for turns in range(10):
            task = asyncio.create_task(
                fetch(dial_port(server.port), body, connect_s=WATCHDOG_S, answer_s=None)
            )
            for _ in range(turns):
                await checkpoint()
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled(), f"after {turns} turns"
            await until(lambda: sockets() == before)


async def test_cancelling_while_the_request_goes_leaves_its_descriptor_free() -> None:
    """A loop that still waits for room to write would hold a number that is someone else's by now."""
    request = encode_request("POST", "/api/generate", b"x" * 20_000_000)
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        ours = socket.create_connection(listener.getsockname())
        ours.setblocking(False)
        number = ours.fileno()

        async def dial() -> socket.socket:
            return ours

        task = asyncio.create_task(fetch(dial, request, connect_s=WATCHDOG_S, answer_s=WATCHDOG_S))
        asyncio.get_running_loop().call_soon(task.cancel)
        await asyncio.wait([task])
        assert task.cancelled()
        with closing(socket.create_connection(listener.getsockname())) as another:
            another.setblocking(False)
            assert another.fileno() == number
            assert not asyncio.get_running_loop().remove_writer(number), "it is waited for"
            await asyncio.get_running_loop().sock_sendall(another, b"free")


async def test_an_answer_is_read_before_all_of_a_large_request_has_gone() -> None:
    request = encode_request("POST", "/api/embed", b"x" * 20_000_000)  # more than a kernel takes
    over = asyncio.Event()

    async def refuse(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        await writer.drain()
        await over.wait()

    async with serving(refuse) as server:
        response = await fetch(
            dial_port(server.port), request, connect_s=WATCHDOG_S, answer_s=WATCHDOG_S
        )
        over.set()
    assert (response.status, response.body) == (413, b"no")


async def test_a_large_answer_that_is_there_already_leaves_turns_to_others() -> None:
    ours, theirs = socket.socketpair()
    with closing(ours), closing(theirs):
        ours.setblocking(False)
        theirs.setblocking(False)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * READ_BYTES)
        size = 2 * READ_BYTES
        answer = OK + b"Content-Length: %d\r\n\r\n" % size + bytes(size)
        assert theirs.send(answer) == len(answer), "it has to be there at once"
        turns = 0

        async def dial() -> socket.socket:
            return ours

        async def others() -> None:
            nonlocal turns
            while True:
                await checkpoint()
                turns += 1

        task = asyncio.create_task(others())
        response = await fetch(dial, GET, connect_s=WATCHDOG_S, answer_s=WATCHDOG_S)
        task.cancel()
        assert len(response.body) == size
        assert turns


async def test_a_connection_whose_end_nobody_awaits_any_more_is_dropped_with_its_end() -> None:
    """A loop that went on to find the end of a connection there would do nothing else."""
    go = asyncio.Event()

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED)
        await writer.drain()
        await go.wait()

    async with serving(serve) as server:
        before = sockets()
        exchange = await open_exchange(dial_port(server.port), GET, lambda *_: None, WATCHDOG_S)
        await server.asked.wait()
        exchange.ended.cancel()
        go.set()
        await until(lambda: sockets() == before)


async def test_a_fault_of_the_sink_ends_the_connection_and_is_reported() -> None:
    reported: list[object] = []
    loop = asyncio.get_running_loop()

    def sink(*_: object) -> None:
        raise LookupError("a fault of ours")

    async with serving(saying(CHUNKED + b"5\r\nhello\r\n", hold=True)) as server:
        handler = loop.get_exception_handler()
        loop.set_exception_handler(lambda _, told: reported.append(told["exception"]))
        try:
            exchange = await open_exchange(dial_port(server.port), GET, sink, WATCHDOG_S)
            assert await exchange.ended is False
            await server.left.wait()
        finally:
            loop.set_exception_handler(handler)
    assert [type(each) for each in reported] == [LookupError]


# Back pressure


async def test_pausing_makes_the_server_wait_and_resuming_loses_nothing() -> None:
    blocked, received, sent = asyncio.Event(), 0, 0
    chunk = b"10000\r\n" + b"z" * 0x10000 + b"\r\n"

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(CHUNKED)
        while writer.transport.get_write_buffer_size() < 1 << 20:  # what the kernel does not take
            writer.write(chunk)
            sent += 0x10000
            await checkpoint()
        blocked.set()
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    def sink(_status: int, data: bytes, _now_ns: int) -> None:
        nonlocal received
        received += len(data)
        exchange.pause()

    async with serving(serve) as server:
        exchange = await open_exchange(dial_port(server.port), GET, sink, WATCHDOG_S)
        assert not exchange.paused
        await until(lambda: exchange.paused)
        at_pause = received
        await blocked.wait()
        assert received == at_pause, "it read on while paused"
        assert sent - received > 1 << 20
        while not exchange.ended.done():
            exchange.resume()
            exchange.resume()
            await checkpoint()
        assert await exchange.ended is True
        assert received == sent


async def test_a_paused_exchange_can_be_closed() -> None:
    async with serving(saying(CHUNKED + b"5\r\nhello\r\n", hold=True)) as server:
        exchange = await open_exchange(
            dial_port(server.port), GET, lambda *_: exchange.pause(), WATCHDOG_S
        )
        await until(lambda: exchange.paused)
        exchange.close()
        exchange.resume()
        exchange.pause()
        await server.left.wait()
        assert await exchange.ended is False


async def test_a_paused_exchange_that_cannot_be_watched_again_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving(saying(CHUNKED + b"5\r\nhello\r\n", hold=True)) as server:
        exchange = await open_exchange(
            dial_port(server.port), GET, lambda *_: exchange.pause(), WATCHDOG_S
        )
        await until(lambda: exchange.paused)
        with monkeypatch.context() as patch:
            patch.setattr(asyncio.get_running_loop(), "add_reader", refuse_to_watch)
            exchange.resume()
        assert await exchange.ended is False
        await server.left.wait()


async def test_a_free_port_is_free() -> None:
    port = find_free_port()
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", port))
