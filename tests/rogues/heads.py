"""Rogues that go wrong in HTTP: they lead elsewhere, speak something else, or never come to an end."""

from __future__ import annotations

import gzip

from tests.rogues.wire import (
    BLOCK,
    BROKEN,
    CHUNKED,
    CUT,
    OK,
    REFUSED,
    SILENCE,
    WELL,
    Wire,
    head,
    rogue,
    says,
)

# Leading the client elsewhere

for _status in (300, 301, 302, 303, 305, 307, 308):
    head(f"redirect_{_status}", BROKEN, b"Location: http://ELSEWHERE/api", status=_status)
head("redirect_to_another_name", BROKEN, b"Location: http://example.org/api", status=307)
head("redirect_to_tls", BROKEN, b"Location: https://ELSEWHERE/api", status=308)
head("alternative_service", WELL, b'Alt-Svc: h2="ELSEWHERE"; ma=86400')
head("refresh", WELL, b"Refresh: 0; url=http://ELSEWHERE/", b"Content-Location: http://ELSEWHERE/")
head("wants_a_password", REFUSED, b'WWW-Authenticate: Basic realm="x"', status=401)
head("wants_a_proxy_password", REFUSED, b"Proxy-Authenticate: Basic", status=407)
head("asks_for_another_place", REFUSED, b"Location: http://ELSEWHERE/", status=421)
head("cookies", WELL, b"Set-Cookie: a=b; Domain=example.org")


@rogue(WELL)
async def early_hints(wire: Wire) -> None:
    hint = b"HTTP/1.1 103 Early Hints\r\nLink: <http://127.0.0.1:%d/>; rel=preconnect\r\n\r\n"
    await wire.say(hint % wire.elsewhere)
    await wire.answer(wire.honest)


# Somebody else on the port


@rogue(BROKEN)
async def echo(wire: Wire) -> None:
    await wire.say(wire.request)


@rogue(SILENCE)
async def silence(wire: Wire) -> None:
    await wire.hold()


says("ssh", BROKEN, b"SSH-2.0-OpenSSH_9.2\r\n")
says("ftp", BROKEN, b"220 ready\r\n", hold=True)
says("tls_hello", BROKEN, b"\x16\x03\x03\x00\x7a\x02\x00\x00\x76\x03\x03" + bytes(32), hold=True)
says("tls_alert", BROKEN, b"\x15\x03\x01\x00\x02\x02\x46")
says("http2_preface", BROKEN, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", hold=True)
says("http2_settings", BROKEN, b"\0\0\x12\x04\0\0\0\0\0\0\3\0\0\0\x64", hold=True)
says("http_2_in_words", BROKEN, b"HTTP/2 200 OK\r\nContent-Length: 2\r\n\r\n{}")
says("http_0_9", BROKEN, b"<html>hello</html>")
says("icecast", BROKEN, b"ICY 200 OK\r\n\r\n")
says("redis", BROKEN, b"-ERR unknown command 'POST'\r\n")
says("noise", BROKEN, bytes(range(256)) * 16)
says("a_request_of_its_own", BROKEN, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
says(
    "websocket",
    BROKEN,
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x02{}",
)
says("http_1_0_without_a_length", CUT, b'HTTP/1.0 200 OK\r\n\r\n{"version":"1"}')

# Heads


@rogue(BROKEN)
async def endless_headers(wire: Wire) -> None:
    await wire.say(OK)
    await wire.for_ever(b"X-Y: " + b"z" * 1000 + b"\r\n")


@rogue(BROKEN)
async def endless_header_line(wire: Wire) -> None:
    await wire.say(OK + b"X: ")
    await wire.for_ever(b"z" * BLOCK)


@rogue(BROKEN)
async def endless_reason(wire: Wire) -> None:
    await wire.say(b"HTTP/1.1 200 ")
    await wire.for_ever(b"z" * BLOCK)


@rogue(BROKEN)
async def flood_of_interim_answers(wire: Wire) -> None:
    await wire.for_ever(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)


@rogue(SILENCE)
async def head_that_drips(wire: Wire) -> None:
    await wire.say(OK + b"X: ")
    await wire.drip()


@rogue(CUT)
async def close_at_once(_: Wire) -> None:
    return


@rogue(CUT)
async def reset_at_once(wire: Wire) -> None:
    wire.reset()


@rogue(CUT)
async def reset_after_the_head(wire: Wire) -> None:
    await wire.say(CHUNKED)
    wire.reset()


says("close_in_the_head", CUT, OK + b"Content-Le")
says("close_after_the_head", CUT, OK + b"Content-Length: 9\r\n\r\n")
says("close_after_an_interim_answer", CUT, b"HTTP/1.1 100 Continue\r\n\r\n")
says("silence_after_the_head", SILENCE, CHUNKED, hold=True)
says("nul_in_the_head", BROKEN, OK + b"X: a\0b\r\nContent-Length: 2\r\n\r\n{}")
says("bare_line_feeds", BROKEN, b"HTTP/1.1 200 OK\nContent-Length: 2\n\n{}")
says("header_without_a_colon", BROKEN, OK + b"nonsense\r\n\r\n")
says("status_of_words", BROKEN, b"HTTP/1.1 two OK\r\n\r\n")
says("status_too_long", BROKEN, b"HTTP/1.1 20000000000 OK\r\n\r\n")
says("status_zero", CUT, b"HTTP/1.1 000 OK\r\nContent-Length: 0\r\n\r\n")

# Lengths

says("negative_length", BROKEN, OK + b"Content-Length: -2\r\n\r\n{}")
says("length_in_words", BROKEN, OK + b"Content-Length: two\r\n\r\n{}")
says("two_lengths", BROKEN, OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} ")
says("length_and_chunks", BROKEN, OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}")
says("length_beyond_64_bits", BROKEN, OK + b"Content-Length: 18446744073709551617\r\n\r\n{}")
says("length_too_large", SILENCE, OK + b"Content-Length: 999\r\n\r\n\n", hold=True)
says("no_content", REFUSED, b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\n{}")
says("not_modified", BROKEN, b"HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n{}")
head("more_after_the_end", WELL)
head("says_it_is_compressed", WELL, b"Content-Encoding: gzip")


@rogue(WELL)
async def a_second_answer(wire: Wire) -> None:
    await wire.answer(wire.honest)
    await wire.say(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsmuggled")


@rogue(BROKEN)
async def compressed(wire: Wire) -> None:
    await wire.answer(gzip.compress(wire.honest), b"Content-Encoding: gzip")


@rogue(BROKEN)
async def compressed_bomb(wire: Wire) -> None:
    await wire.answer(gzip.compress(bytes(1 << 24)), b"Content-Encoding: gzip")


# Chunks

says("chunk_size_overflows", BROKEN, CHUNKED + b"fffffffffffffffff\r\n{}")
says("chunk_size_negative", BROKEN, CHUNKED + b"-2\r\n{}\r\n")
says("chunk_size_missing", BROKEN, CHUNKED + b"\r\n{}\r\n")
says("chunk_too_short", BROKEN, CHUNKED + b"1\r\n{}\r\n")
says("chunks_without_an_end", CUT, CHUNKED + b"1\r\n\n\r\n")
says(
    "coding_unknown",
    CUT,
    OK + b"Transfer-Encoding: chunked, gzip\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    generate=BROKEN,
)


@rogue(BROKEN)
async def never_ending_chunk(wire: Wire) -> None:
    await wire.say(CHUNKED + b"7fffffffffffffff\r\n")
    await wire.for_ever(b"z" * BLOCK)


@rogue(SILENCE)
async def never_ending_chunk_extension(wire: Wire) -> None:
    await wire.say(CHUNKED + b"2;")
    await wire.for_ever(b"z" * 1024)


@rogue(SILENCE)
async def never_ending_trailers(wire: Wire) -> None:
    await wire.say(CHUNKED + b"0\r\n")
    await wire.for_ever(b"X: y\r\n" * 100)


@rogue(SILENCE)
async def body_that_drips(wire: Wire) -> None:
    await wire.say(CHUNKED)
    await wire.drip(b"1\r\n \r\n")


@rogue(BROKEN, probe="NotOllama", generate=SILENCE)
async def blank_lines_for_ever(wire: Wire) -> None:
    await wire.say(CHUNKED)
    await wire.for_ever(b"%x\r\n%b\r\n" % (BLOCK, b"\n" * BLOCK))
