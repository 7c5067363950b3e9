"""A stream that goes on: what the events, the account and the seam say of it."""

from __future__ import annotations

from typing import Any

from ollama_adapter.core.energy import EUMapper, profile_for
from ollama_adapter.core.generation import Generation
from ollama_adapter.core.joint import Joint
from ollama_adapter.core.records import ChatRecord, GenerateRecord, LogprobEntry, Message
from ollama_adapter.core.transcript import Replay, Transcript
from ollama_adapter.errors import Interruption, StreamInterrupted
from ollama_adapter.events import Candidate, Finish, Seam, Source, Statistics, TokenEvent, Way

MS = 1_000_000


class Stream:
    """A generation with the transcript of what it delivered."""

    def __init__(self) -> None:
        self.events: list[TokenEvent] = []
        self.statistics = Statistics("session", "m", served_by="m")
        self.transcript = Transcript()
        self.now_ns = 1_000 * MS
        self.generation = Generation(self.statistics, EUMapper(profile_for("fnd-002/2")), 0)

    def _receive(self, record: GenerateRecord | ChatRecord) -> None:
        for event in self.generation.receive([record], self.now_ns):
            self.events.append(event)
            self.transcript.add([event])

    def say(
        self,
        *pieces: str,
        candidates: list[Candidate] | None = None,
        ids: tuple[int, ...] | None = None,
    ) -> None:
        for each in pieces:
            self.now_ns += 10 * MS
            entries = [LogprobEntry(each, -0.5, candidates)] if candidates else None
            self._receive(GenerateRecord(response=each, logprobs=entries, token_ids=ids))

    def call(self, name: str) -> None:
        calls = [{"function": {"name": name}}]
        self._receive(ChatRecord(message=Message(tool_calls=calls)))

    def done(self, **last: Any) -> None:
        self._receive(GenerateRecord(done=True, **last))

    def go_on(self, way: Way, **known: Any) -> None:
        replay = Replay.of(self.transcript) if way is Way.RERUN else None
        self.generation.go_on(Joint(way, "it was cut", replay, **known))

    @property
    def text(self) -> str:
        return "".join(each.token for each in self.events)


def test_events_say_by_which_way_they_came() -> None:
    expected = {
        Way.TOKENS: (Source.RESUMED, Way.TOKENS),
        Way.TEXT: (Source.RESUMED, Way.TEXT),
        Way.RERUN: (Source.REPLAYED, Way.RERUN),
        Way.ANEW: (Source.LIVE, None),
    }
    for way, after in expected.items():
        stream = Stream()
        if way is not Way.ANEW:
            stream.say("a")
        stream.go_on(way)
        stream.say(*(["a", "b"] if way is Way.RERUN else ["b"]), ids=(7,))
        last = stream.events[-1]
        assert (last.source, last.way) == after
        assert all(each.source is Source.LIVE for each in stream.events[:-1])


def test_a_second_run_delivers_only_what_is_new_and_counts_it_once() -> None:
    stream = Stream()
    stream.say("a", "b")
    energy = stream.generation.statistics.tokens
    stream.go_on(Way.RERUN)
    stream.say("a", "bc", "d")
    stream.done(done_reason="stop", eval_count=4)
    stream.generation.close(stream.now_ns)
    assert energy == 2
    assert [each.token for each in stream.events] == ["a", "b", "c", "d"]
    assert [each.index for each in stream.events] == [0, 1, 2, 3]
    assert stream.statistics.tokens == 4
    assert stream.statistics.finish is Finish.STOP


def test_the_seam_tells_where_why_how_long_and_how_alike() -> None:
    stream = Stream()
    stream.say("a", "b")
    stream.go_on(Way.TEXT, fidelity=0.75, exact=False)
    stream.now_ns += 90 * MS
    stream.say("c", "d")
    assert stream.statistics.seams == (Seam(2, Way.TEXT, "it was cut", 100.0, 0.75, False),)
    assert stream.events[2].delta_ms == 100


def test_the_fidelity_of_a_second_run_comes_from_the_run_itself() -> None:
    seen = [Candidate("b", -0.1), Candidate("c", -3.0)]
    stream = Stream()
    stream.say("a", "b", candidates=seen)
    stream.go_on(Way.RERUN)
    stream.say("a", "b", "c", candidates=seen)
    assert stream.statistics.seams[0].fidelity == 1.0


def test_a_second_run_that_goes_another_way_delivers_nothing_and_is_an_error() -> None:
    stream = Stream()
    stream.say("a", "b")
    stream.go_on(Way.RERUN)
    stream.say("a", "x", "y")
    error = stream.generation.error
    assert isinstance(error, StreamInterrupted)
    assert error.reason is Interruption.DIVERGED
    assert stream.text == "ab"
    stream.go_on(Way.TEXT)  # and another way is still open
    stream.say("c")
    assert stream.generation.error is None
    assert stream.text == "abc"


def test_an_answer_without_ids_does_not_go_on_from_ids() -> None:
    stream = Stream()
    stream.say("a", ids=(1,))
    stream.go_on(Way.TOKENS)
    stream.say("a")  # another daemon, which began anew
    stream.done(done_reason="stop")  # in the same read
    assert isinstance(stream.generation.error, StreamInterrupted)
    assert stream.text == "a"
    assert stream.statistics.finish is None, "the end of another answer passes for ours"
    assert stream.statistics.seams == ()


def test_the_ids_of_a_piece_that_is_new_in_part_are_not_told() -> None:
    stream = Stream()
    stream.say("a", ids=(1,))
    stream.go_on(Way.RERUN)
    stream.say("ab", ids=(2,))
    assert (stream.text, stream.events[-1].token_ids) == ("ab", None)


def test_a_second_run_that_ends_early_is_another_one() -> None:
    stream = Stream()
    stream.say("a", "b")
    stream.go_on(Way.RERUN)
    stream.say("a")
    stream.done(done_reason="stop")
    assert isinstance(stream.generation.error, StreamInterrupted)
    assert stream.statistics.finish is None


def test_tool_calls_are_delivered_once() -> None:
    stream = Stream()
    stream.call("f")
    stream.go_on(Way.RERUN)
    stream.call("f")
    stream.call("g")
    assert [each.tool_calls for each in stream.events] == [
        [{"function": {"name": "f"}}],
        [{"function": {"name": "g"}}],
    ]


def test_where_only_the_last_record_was_missing_the_seam_is_the_end() -> None:
    stream = Stream()
    stream.say("a", "b")
    stream.go_on(Way.RERUN)
    stream.say("a", "b")
    stream.done(done_reason="stop")
    assert stream.statistics.finish is Finish.STOP
    assert [each.index for each in stream.statistics.seams] == [2]


def test_as_many_tokens_as_were_asked_for_are_the_whole_answer() -> None:
    stream = Stream()
    stream.say("a", "b")
    stream.go_on(Way.TOKENS, over=True)
    stream.generation.end_at_limit(stream.now_ns)
    assert stream.statistics.finish is Finish.LENGTH
    assert [each.index for each in stream.statistics.seams] == [2]
    stream.generation.end_at_limit(stream.now_ns)
    assert len(stream.statistics.seams) == 1


def test_no_repr_of_a_joint_shows_what_was_delivered() -> None:
    stream = Stream()
    stream.say("secret")
    joint = Joint(Way.RERUN, "it was cut", Replay.of(stream.transcript))
    assert "secret" not in repr(joint)
