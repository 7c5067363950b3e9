"""Traces (WVMP v0.1): what a session's energy was made of, and the same energy and frames from it.

A trace has the arrival and the log probabilities of every token, the frame that showed it, and the
instants of the session and of its frames. That determines E(t) and the frames to the last bit; epoch
and processing times are replayed as data. Text is in it only when the user asked for it by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, inf, log
from typing import Any, NamedTuple

import msgspec

from ollama_adapter.config import Tier
from ollama_adapter.core.energy import MS, EUMapper, profile_for
from ollama_adapter.core.frames import FrameComposer
from ollama_adapter.errors import ConfigError
from ollama_adapter.events import Frame, Source, TokenEvent


class TopCandidate(msgspec.Struct, omit_defaults=True):
    lp: float | None  # natural log probability; None is minus infinity, which JSON cannot say
    t: str = ""


class TraceToken(msgspec.Struct, kw_only=True, omit_defaults=True):
    t_ms: float  # since the request
    delta_ms: float
    tps: int
    stall: bool  # whether the gap was longer than the profile's limit
    energy: float = msgspec.field(name="E")
    t_ns: int
    index: int
    frame: int | None = None  # the frame that showed it
    topk: list[TopCandidate] | None = None
    entropy: float | None = None  # in nats, of the candidates normalised to 1
    certainty: float | None = None  # absent where an older one was reused
    token: str = ""

    @property
    def logprobs(self) -> list[float] | None:
        if self.topk is None:
            return None
        return [-inf if each.lp is None else each.lp for each in self.topk]


class TraceModel(msgspec.Struct):
    name: str
    backend: str
    tokens: list[TraceToken]


class Tick(msgspec.Struct, array_like=True):
    """One frame, as far as it does not follow from the tokens."""

    tick: int
    now_ns: int
    epoch_ms: int
    queue_depth: int
    processing_ns: int


class TraceMeta(msgspec.Struct, kw_only=True):
    wvmp: str = "0.1"
    profile: str
    tier: Tier
    weight: float
    request_ns: int
    total_energy: float  # of the frames before this session
    tick: int | None  # the frame before it
    end_ns: int | None = None
    end_frame: int | None = None
    frames: list[Tick] = msgspec.field(default_factory=list)


class Trace(msgspec.Struct):
    session_id: str
    models: list[TraceModel]
    meta: TraceMeta


class TraceRecorder:
    """Writes the trace of one session; made right before its `composer.open`, of which it reads.

    Then, in the order in which things happen: `token` after each token, `end`, and `frame` after each
    frame. `text` records the tokens' text, too.
    """

    def __init__(
        self,
        session_id: str,
        model: str,
        mapper: EUMapper,
        composer: FrameComposer,
        now_ns: int,
        *,
        weight: float = 1.0,
        text: bool = False,
    ) -> None:
        self._mapper, self._text = mapper, text
        self._unshown: list[TraceToken] = []
        self._tokens: list[TraceToken] = []
        self.trace = Trace(
            session_id,
            [TraceModel(model, "ollama", self._tokens)],
            TraceMeta(
                profile=mapper.profile.name,
                tier=mapper.profile.tier,
                weight=weight,
                request_ns=now_ns,
                total_energy=composer.total_energy,
                tick=composer.tick,
            ),
        )

    def token(self, event: TokenEvent, logprobs: Sequence[float] | None = None) -> None:
        """Record a token right after `mapper.token`, with the log probabilities that it was given."""
        mapper = self._mapper
        token = TraceToken(
            t_ms=(event.arrival_ns - self.trace.meta.request_ns) / MS,
            delta_ms=mapper.delta_ns / MS,
            tps=mapper.tps,
            stall=mapper.stall_ns > 0,
            energy=mapper.energy,
            t_ns=event.arrival_ns,
            index=event.index,
            token=event.token if self._text else "",
        )
        if logprobs and mapper.certainty is not None:
            token.topk = [TopCandidate(None if each == -inf else each) for each in logprobs]
            token.entropy, token.certainty = entropy(logprobs), mapper.certainty
            if self._text and event.candidates and len(event.candidates) == len(logprobs):
                for top, candidate in zip(token.topk, event.candidates, strict=True):
                    top.t = candidate.token
        self._tokens.append(token)
        self._unshown.append(token)

    def end(self, now_ns: int) -> None:
        self.trace.meta.end_ns = now_ns

    def frame(self, frame: Frame) -> None:
        """Record a frame; those without this session are ignored."""
        meta = self.trace.meta
        if self.trace.session_id not in frame.sessions:
            return
        for token in self._unshown:
            token.frame = frame.frame_id
        self._unshown.clear()
        if meta.end_ns is not None and meta.end_frame is None:
            meta.end_frame = frame.frame_id
        meta.frames.append(
            Tick(
                frame.frame_id,
                frame.monotonic_ns,
                frame.epoch_ms,
                frame.queue_depth,
                frame.processing_ns,
            )
        )

    def document(self) -> dict[str, Any]:
        """The trace, ready for JSON."""
        document: dict[str, Any] = msgspec.to_builtins(self.trace)
        return document


def entropy(logprobs: Sequence[float]) -> float | None:
    """In nats, of these candidates normalised to 1; None where they hold no mass at all."""
    masses = [exp(min(each, 0.0)) for each in logprobs]
    whole = sum(masses)
    if whole == 0.0:
        return None
    return max(0.0, -sum(p / whole * log(p / whole) for p in masses if p / whole > 0.0))


class Replay(NamedTuple):
    """E after each token, by session; and the frames."""

    energies: dict[str, list[float]]
    frames: list[Frame]


class _Player:
    """One trace being played: its session, opened, fed and ended as it was."""

    def __init__(self, trace: Trace, composer: FrameComposer) -> None:
        meta = trace.meta
        self._trace, self._composer = trace, composer
        self._mapper = EUMapper(profile_for(meta.profile, meta.tier))
        self._tokens = [(model.name, token) for model in trace.models for token in model.tokens]
        self._played = 0
        self.energies: list[float] = []

    def open(self) -> None:
        meta = self._trace.meta
        self._composer.open(self._trace.session_id, self._mapper, meta.request_ns, meta.weight)

    def play(self, frame: int | None) -> None:
        """The tokens that this frame showed, and the end if it came then."""
        meta, session_id = self._trace.meta, self._trace.session_id
        while self._played < len(self._tokens) and self._tokens[self._played][1].frame == frame:
            model, token = self._tokens[self._played]
            self._played += 1
            energy = self._mapper.token(token.t_ns, token.logprobs)
            self.energies.append(energy)
            event = TokenEvent(
                token.token, 0, round(token.delta_ms), session_id, model, token.logprobs, energy
            )
            event.index, event.source, event.arrival_ns = token.index, Source.REPLAYED, token.t_ns
            self._composer.ingest(event)
        if meta.end_ns is not None and meta.end_frame == frame:
            self._mapper.end(meta.end_ns)
            self._composer.end(session_id, meta.end_ns)


def replay(*documents: dict[str, Any]) -> Replay:
    """The energies and frames of these sessions, once more.

    The frames are the recorded ones if every session that they showed is among the traces; sessions
    of the same instant go in the order in which they were opened. Raises ConfigError for what is not
    a trace.
    """
    try:
        traces = [msgspec.convert(each, Trace) for each in documents]
    except msgspec.ValidationError as error:
        raise ConfigError(f"this is not a trace: {error}") from error
    traces.sort(key=lambda trace: trace.meta.request_ns)
    composer = FrameComposer()
    if traces:
        composer = FrameComposer(total_energy=traces[0].meta.total_energy, tick=traces[0].meta.tick)
    players = [(_Player(trace, composer), trace) for trace in traces]
    ticks = {tick.tick: tick for trace in traces for tick in trace.meta.frames}
    frames: list[Frame] = []
    for number, tick in sorted(ticks.items()):
        for player, trace in players:
            if trace.meta.frames and trace.meta.frames[0].tick == number:
                player.open()
            player.play(number)
        frames.append(
            composer.compose(
                number,
                tick.now_ns,
                tick.epoch_ms,
                queue_depth=tick.queue_depth,
                processing_ns=tick.processing_ns,
            )
        )
    for player, _ in players:
        player.play(None)  # what no frame had shown yet
    return Replay({trace.session_id: player.energies for player, trace in players}, frames)
