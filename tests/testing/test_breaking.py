"""The faults that no recording shows, byte by byte; how often they strike, and what holds for all."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from ollama_adapter.testing import Fault, FaultKind, Faults, ManualClock, Phase, PretendOllama
from ollama_adapter.testing.faults import CUTS
from tests.contract.replay import load_recordings
from tests.serving import until
from tests.testing.wire import Conversation, Heard, ask, chunks, shape

pytestmark = pytest.mark.anyio

SECOND = 1_000_000_000
HELLO = {"model": "pretend", "prompt": "hello"}
CHAT = {"model": "pretend", "messages": [{"role": "user", "content": "hello"}]}
ASKED = [("/api/generate", HELLO), ("/api/chat", CHAT)]
WORDS = 64
BREAKING = sorted(CUTS - {FaultKind.STALL})


async def hear(daemon: PretendOllama, **fields: Any) -> Heard:
    return await ask(daemon.port, "/api/generate", HELLO | fields)


def readable(heard: Heard) -> list[dict[str, Any]]:
    """The records that came whole; what is broken stands behind them."""
    records = []
    for line in chunks(heard.body)[0].split(b"\n")[:-1] if heard.chunked else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def pieces(heard: Heard) -> list[str]:
    return pieces_of(heard.records())


def pieces_of(records: list[dict[str, Any]]) -> list[str]:
    said = [each.get("message", each) for each in records]
    return [each.get("content", "") or each.get("response", "") for each in said]


def finished(heard: Heard) -> bool:
    return any(each.get("done") for each in heard.records())


# For all of them


@pytest.mark.parametrize("kind", BREAKING)
@pytest.mark.parametrize(("path", "body"), ASKED)
async def test_what_comes_before_a_fault_is_whole_and_nothing_ends_well(
    path: str, body: dict[str, Any], kind: FaultKind
) -> None:
    async with PretendOllama() as daemon:
        whole = pieces(await ask(daemon.port, path, body))[:-1]
        for at in (0, 1, 7, WORDS, None):
            await daemon.revive()
            daemon.faults = Faults((Fault(kind, at=at),))
            broken = await ask(daemon.port, path, body)
            assert daemon.struck == [Fault(kind, at=at)]
            assert daemon.generations()[-1].phase is Phase.BROKEN
            length = WORDS if at is None else at
            came = [each for each in readable(broken) if "error" not in each]
            said = pieces_of(came)
            assert said[:length] == whole[:length]
            assert len(said) >= length
            the_last_came = kind is FaultKind.TRUNCATED_CHUNK and length == WORDS
            assert any(each.get("done") for each in came) == the_last_came


@pytest.mark.parametrize("kind", BREAKING)
async def test_a_fault_strikes_a_whole_answer_too(kind: FaultKind) -> None:
    async with PretendOllama() as daemon:
        whole = await hear(daemon, stream=False)
        daemon.faults = Faults((Fault(kind, at=7),))
        broken = await hear(daemon, stream=False)
    if kind in (FaultKind.RST, FaultKind.EOF, FaultKind.DIE):
        assert (broken.wire, broken.end) == (b"", "RST" if kind is FaultKind.RST else "EOF")
    elif kind in (FaultKind.HALF_JSON, FaultKind.HALF_UTF8, FaultKind.TRUNCATED_CHUNK):
        assert broken.end == "EOF"
        assert broken.status == 200
        begun = broken.body.partition(b'"response":"')[2].rstrip(b"\xe5").decode()
        assert whole.text().startswith(begun.partition('"')[0])
    elif kind is FaultKind.GARBAGE:
        assert (broken.status, broken.end) == (200, "complete")
        with pytest.raises(UnicodeDecodeError):
            json.loads(broken.body)
    else:
        assert broken.status == (500 if kind is FaultKind.ERROR_LINE else 200)
        assert not broken.records()[0].get("done")


async def test_a_fault_beyond_the_end_does_not_strike() -> None:
    async with PretendOllama(faults="rst@65, eof@900") as daemon:
        assert finished(await hear(daemon))
        assert daemon.struck == []


# One by one


async def test_rst_comes_after_what_was_written() -> None:
    async with PretendOllama(faults="rst@12") as daemon:
        for _ in range(20):
            broken = await hear(daemon)
            assert (len(broken.records()), broken.end) == (12, "RST")


async def test_half_utf8_ends_inside_a_character() -> None:
    async with PretendOllama(faults="half_utf8@3") as daemon:
        broken = await hear(daemon)
    assert broken.end == "EOF"
    with pytest.raises(UnicodeDecodeError, match="unexpected end of data"):
        broken.wire.decode()
    assert chunks(broken.body)[0].count(b"\n") == 3


async def test_half_json_ends_inside_a_record() -> None:
    async with PretendOllama(faults="half_json@3") as daemon:
        broken = await hear(daemon)
    *_, rest = chunks(broken.body)[0].split(b"\n")
    assert broken.end == "EOF"
    assert rest.startswith(b'{"model":"pretend"')
    assert not rest.endswith(b"}")


async def test_a_truncated_chunk_holds_a_whole_record() -> None:
    async with PretendOllama() as daemon:
        whole = pieces(await hear(daemon))
        daemon.faults = "truncated_chunk@3"
        broken = await hear(daemon)
    assert (broken.end, pieces(broken)) == ("EOF", whole[:4])
    assert not chunks(broken.body)[1]


async def test_garbage_is_a_line_in_a_stream_that_ends_well() -> None:
    async with PretendOllama(faults="garbage@3") as daemon:
        broken = await hear(daemon)
    text, ended = chunks(broken.body)
    assert (broken.end, ended, text.count(b"\n")) == ("complete", True, 4)
    with pytest.raises(json.JSONDecodeError):
        json.loads(text.splitlines()[3].decode("latin-1"))


async def test_a_stall_ends_when_it_was_given_a_time() -> None:
    clock = ManualClock()
    async with PretendOllama(clock=clock, faults="stall@5=3s") as daemon:
        with await Conversation.open(daemon.port) as conversation:
            await conversation.say("POST", "/api/generate", json.dumps(HELLO).encode())
            await until(lambda: clock.sleepers)
            assert daemon.generations()[0].sent == 5
            clock.advance(3 * SECOND)
            heard = await conversation.hear()
    assert finished(heard)
    assert len(pieces(heard)) == WORDS + 1


@pytest.mark.parametrize(
    ("faults", "sent"),
    [("cold_load=3s", [0]), ("prompt_eval=3s", [0]), ("slow=3s", [0, 1, 2])],
)
async def test_a_fault_takes_its_time(faults: str, sent: list[int]) -> None:
    clock = ManualClock()
    async with PretendOllama(clock=clock) as daemon:
        await hear(daemon)
        daemon.faults = faults
        with await Conversation.open(daemon.port) as conversation:
            body = json.dumps(HELLO | {"options": {"num_predict": 3}}).encode()
            await conversation.say("POST", "/api/generate", body)
            for count in sent:
                await until(lambda: clock.sleepers)
                assert daemon.generations()[-1].sent == count
                clock.advance(3 * SECOND)
            heard = await conversation.hear()
    assert finished(heard)
    (name,) = {"cold_load": "load", "prompt_eval": "prompt_eval", "slow": "eval"}[
        faults.partition("=")[0]
    ].split()
    assert heard.records()[-1][f"{name}_duration"] == 3 * SECOND * len(sent)


async def test_the_dead_come_back_when_they_were_given_a_time() -> None:
    clock = ManualClock()
    async with PretendOllama(clock=clock, faults="die@5=3s*1") as daemon:
        assert (await hear(daemon)).end == "EOF"
        assert not daemon.alive
        await until(lambda: clock.sleepers)
        clock.advance(3 * SECOND)
        await daemon.until(lambda: daemon.alive)
        assert finished(await hear(daemon))


async def test_death_ends_every_connection() -> None:
    async with PretendOllama(num_parallel=2, faults="stall@2*1, die@5*1") as daemon:
        with await Conversation.open(daemon.port) as bystander:
            await bystander.say("POST", "/api/generate", json.dumps(HELLO).encode())
            await daemon.until(lambda: daemon.struck)
            assert (await hear(daemon)).end == "EOF"
            assert (await bystander.hear()).end == "EOF"
        assert not daemon.alive
        assert daemon.dropped == 0


async def test_the_deaf_take_connections_and_answer_nothing() -> None:
    async with PretendOllama(faults="deaf*2") as daemon:
        with (
            await Conversation.open(daemon.port) as one,
            await Conversation.open(daemon.port) as two,
        ):
            await one.say("GET", "/api/version", b"")
            await two.say("POST", "/api/generate", json.dumps(HELLO).encode())
            await daemon.until(lambda: len(daemon.struck) == 2)
            version = await ask(daemon.port, "/api/version", method="GET")  # it hears again
            assert version.status == 200
            assert one.heard.wire == two.heard.wire == b""
        await daemon.until(lambda: daemon.dropped == 2)


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (503, "server busy, please try again.  maximum pending requests exceeded"),
        (404, "model 'pretend' not found"),
        (500, "an error was encountered while running the model: unexpected EOF"),
        (429, "too many requests"),
        (599, "error"),
    ],
)
async def test_a_number_is_a_status(status: int, says: str) -> None:
    async with PretendOllama(faults=str(status)) as daemon:
        refused = await hear(daemon)
        assert (refused.status, refused.records()) == (status, [{"error": says}])
        assert (await ask(daemon.port, "/api/version", method="GET")).status == 200
        assert daemon.generations()[0].phase is Phase.REFUSED


async def test_a_client_that_half_closes_has_left_and_gets_a_clean_end() -> None:
    (recording,) = [each for each in load_recordings() if each.name == "disconnect-shutwr-generate"]
    async with PretendOllama("slow", faults="stall@5") as daemon:
        with await Conversation.open(daemon.port) as conversation:
            body = json.dumps(HELLO | {"model": "slow"}).encode()
            await conversation.say("POST", "/api/generate", body)
            await conversation.hear(lambda heard: len(heard.records()) == 5)
            conversation.socket.shutdown(1)
            heard = await conversation.hear()
        await daemon.until(lambda: daemon.dropped == 1)
    assert shape(heard)[:5] == shape(Heard(recording.wire, recording.end))[:5]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/generate", {"model": "pretend"}),
        ("/api/chat", {"model": "pretend", "messages": []}),
        ("/api/embed", {"model": "pretend-embed", "input": "x"}),
    ],
)
async def test_loads_and_embeddings_meet_the_faults_of_a_load(
    path: str, body: dict[str, Any]
) -> None:
    clock = ManualClock()
    async with PretendOllama(clock=clock, faults="load_fail*1, cold_load=3s*2") as daemon:
        for status, residents in ((500, []), (200, [f"{body['model']}:latest"])):
            asked = asyncio.create_task(ask(daemon.port, path, body))
            await until(lambda: clock.sleepers)
            clock.advance(3 * SECOND)
            assert (await asked).status == status
            assert daemon.residents == residents
        assert (await ask(daemon.port, path, body)).status == 200


async def test_a_rendered_prompt_uses_no_fault_up() -> None:
    async with PretendOllama(faults="503*1, eof@0*1") as daemon:
        shown = await hear(daemon, _debug_render_only=True)
        assert "_debug_info" in shown.records()[0]
        assert (daemon.struck, daemon.generations()) == ([], [])
        assert (await hear(daemon)).status == 503


# How often


async def test_a_fault_that_is_used_up_leaves_a_daemon_that_serves_well() -> None:
    async with PretendOllama(faults="rst@5*2, eof@3*1") as daemon:
        ends = [(each.end, len(each.records())) for each in [await hear(daemon) for _ in range(4)]]
        assert ends == [("EOF", 3), ("RST", 5), ("RST", 5), ("complete", WORDS + 1)]
        assert [str(each) for each in daemon.struck] == ["eof@3*1", "rst@5*2", "rst@5*2"]


async def test_faults_can_be_set_while_an_answer_is_written() -> None:
    async with PretendOllama(faults="stall@5") as daemon:
        daemon.faults = "stall@5=1ms"
        daemon.faults = "slow=1ms, eof@9"
        broken = await hear(daemon)
        assert (broken.end, len(broken.records())) == ("EOF", 9)
        kinds = [each.kind for each in daemon.generations()[0].faults]
        assert kinds == [FaultKind.SLOW, FaultKind.EOF]
