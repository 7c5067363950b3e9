"""How a session goes on after an interruption: core says which ways are open, here they are tried.

A way needs a daemon (the supervisor starts one meanwhile), the model in memory, for text the rendered
prompt, and a look at what the model predicts for the last token: that is the seam's fidelity. All of it
is bounded, in number by `stream.resume_tries` and in time by `stream.resume_s`; tokens that are computed once
more may take as long as they took before.
"""

from __future__ import annotations

import asyncio
from functools import cached_property
from typing import Final

import msgspec

from ollama_adapter.backing import Backing, Hold
from ollama_adapter.config import StreamConfig
from ollama_adapter.core.joint import Joint
from ollama_adapter.core.records import ChatRecord, GenerateRecord
from ollama_adapter.core.requests import Request
from ollama_adapter.core.resuming import (
    FAITHFUL,
    Asked,
    continue_text,
    continue_tokens,
    one_token,
    plan_ways,
    render_request,
)
from ollama_adapter.core.transcript import Replay, Transcript, overlap
from ollama_adapter.errors import (
    AdapterError,
    DaemonNotFound,
    DaemonStartTimeout,
    Interruption,
    ResponseError,
    ServerBusy,
    StreamInterrupted,
)
from ollama_adapter.events import Candidate, Channel, TokenEvent, Way
from ollama_adapter.system.clock import Clock

FIRST_PAUSE_NS: Final = 100_000_000
"""Between two looks for a daemon that is nobody's to start; doubled each time."""
LAST_PAUSE_NS: Final = 2_000_000_000


class WayOn(msgspec.Struct, frozen=True):
    """The request to send, and how its answer joins what was delivered."""

    request: Request
    joint: Joint
    limit_s: float
    """For its first token."""


class Recovery:
    """One session's. `way_on` is asked after every interruption, and raises when there is no way on."""

    def __init__(
        self,
        hold: Hold,
        backing: Backing,
        limits: StreamConfig,
        clock: Clock,
    ) -> None:
        self._hold = hold
        self._backing = backing
        self._limits = limits
        self._clock = clock
        self._rendered: str | None = None
        self._spent: set[Way] = set()
        self._refusals: list[str] = []
        self._tries = 0
        self._tokens = -1  # delivered at the latest interruption
        self._since_ns = 0
        self._way: Way | None = None
        self._interruption: StreamInterrupted | None = None

    def __repr__(self) -> str:
        return f"<Recovery {self._tries} of {self._limits.resume_tries} tries>"

    @cached_property
    def _asked(self) -> Asked:
        return Asked.of(self._hold.request)

    def standing(self, tokens: int) -> Interruption | None:
        """Why there are no more than `tokens`; None while they flow."""
        return self._reason if tokens == self._tokens else None

    async def way_on(self, cut: AdapterError, transcript: Transcript) -> WayOn:
        """A way to go on after `cut`. Raises StreamInterrupted, and what an unbegun answer failed with.

        Cancelling is safe.
        """
        self._note(cut, len(transcript))
        while self._tries < self._limits.resume_tries:
            self._tries += 1
            if (over := self._over(transcript)) is not None:
                return over
            try:
                async with asyncio.timeout(self._remaining_s()):
                    await self._until_loaded(begun=len(transcript) > 0)
                    found = await self._choose(transcript)
            except AdapterError as error:  # first: a ReadTimeout of one step is a TimeoutError, too
                if not len(transcript):
                    raise
                self._refuse(f"on the way: {error}")
                self._spend(error)
                continue
            except TimeoutError:
                why = f"no daemon and model within stream.resume_s ({self._limits.resume_s:g} s)"
                if not len(transcript) and not self._backing.ready:
                    raise DaemonStartTimeout(why) from cut
                self._refuse(why)
                break
            if found is None:
                break
            return found
        raise self._ended(cut, transcript)

    async def _until_loaded(self, *, begun: bool) -> None:
        """A daemon with the model; an answer that has begun waits for one that somebody restarts."""
        await self._backing.check()
        pause_ns = FIRST_PAUSE_NS
        while True:
            try:
                await self._backing.load(self._hold)
                return
            except DaemonNotFound as error:
                if not begun:
                    raise
                self._refuse(f"on the way: {error}")
            await self._clock.sleep_until_ns(self._clock.now_ns() + pause_ns)
            pause_ns = min(2 * pause_ns, LAST_PAUSE_NS)

    # Deciding

    def _note(self, cut: AdapterError, tokens: int) -> None:
        if tokens > self._tokens:  # it has got on since the last time
            self._tokens, self._since_ns = tokens, self._clock.now_ns()
            self._interruption = cut if isinstance(cut, StreamInterrupted) else None
            self._way = None
        elif self._way is not None:
            self._refuse(f"{self._way}: {_name(cut)}")
            self._spend(cut)

    def _spend(self, error: AdapterError) -> None:
        """A way that was refused, or gave another answer, would do so once more."""
        refused = isinstance(error, ResponseError) and not isinstance(error, ServerBusy)
        diverged = isinstance(error, StreamInterrupted) and error.reason is Interruption.DIVERGED
        if self._way is not None and (refused or diverged):
            self._spent.add(self._way)

    def _remaining_s(self) -> float:
        spent_s = (self._clock.now_ns() - self._since_ns) / 1e9
        return max(0.0, self._limits.resume_s - spent_s)

    def _over(self, transcript: Transcript) -> WayOn | None:
        """Where as many tokens came as were asked for, nothing is missing but the last record."""
        if self._remaining(transcript) != 0:
            return None
        exact = transcript.ids is not None
        way = Way.TOKENS if exact else Way.TEXT
        return WayOn(
            self._hold.request, Joint(way, self._reason.value, exact=exact, over=True), 0.0
        )

    def _remaining(self, transcript: Transcript) -> int | None:
        """How many tokens may still come, as well as it is known; None: no limit was asked for."""
        ids = transcript.ids
        return self._asked.remaining(len(transcript) if ids is None else len(ids))

    async def _choose(self, transcript: Transcript) -> WayOn | None:
        plan = plan_ways(
            self._asked,
            transcript,
            embedded=self._backing.embedded,
            renders=self._backing.renders,
            rerun_tokens=self._limits.resume_tokens,
        )
        for refusal in plan.refusals:
            self._refuse(refusal)
        for way in plan.ways:
            if way not in self._spent and (found := await self._try(way, transcript)):
                return found
        return None

    async def _try(self, way: Way, transcript: Transcript) -> WayOn | None:
        self._way = way
        joint = Joint(way, self._reason.value)
        if way is Way.ANEW:
            return WayOn(self._hold.request, joint, self._limits.first_token_s)
        if way is Way.RERUN:
            joint.replay = Replay.of(transcript)
            return WayOn(self._hold.request, joint, self._remaining_s())
        ids = transcript.ids
        joint.exact = ids is not None
        if way is Way.TOKENS and self._asked.greedy and transcript.last is not None and ids:
            return self._same_again(transcript, transcript.last, list(ids), joint)
        joint.fidelity = await self._fidelity(way, transcript)
        if way is Way.TEXT and joint.fidelity is not None and joint.fidelity < FAITHFUL:
            self._spent.add(way)
            self._refuse(f"{way}: read as other tokens (fidelity {joint.fidelity:.2f})")
            return None
        request = await self._continued(way, transcript)
        return WayOn(request, joint, self._remaining_s())

    def _same_again(
        self, transcript: Transcript, last: TokenEvent, ids: list[int], joint: Joint
    ) -> WayOn:
        """From before the last token, which must come again."""
        back, remaining = len(last.token_ids or ()), self._remaining(transcript)
        joint.replay = Replay.of_last(last) if back else None
        request = continue_tokens(
            self._asked,
            ids[: len(ids) - back],
            None if remaining is None else remaining + back,
            stepwise=len(ids) <= self._limits.resume_tokens,
        )
        # They are read one by one, which takes as long as it took to write them.
        return WayOn(request, joint, max(self._remaining_s(), 2 * transcript.written_s))

    # Carrying it out

    async def _continued(self, way: Way, transcript: Transcript) -> Request:
        remaining = self._remaining(transcript)
        if way is Way.TOKENS:
            return continue_tokens(self._asked, list(transcript.ids or ()), remaining)
        text = transcript.text(Channel.TEXT)
        return continue_text(self._asked, await self._prompt(), text, remaining)

    async def _prompt(self) -> str:
        """As the model gets it."""
        if self._rendered is None:
            if self._asked.body.get("raw"):
                self._rendered = str(self._asked.body.get("prompt", ""))
            else:
                answer = await self._answer(render_request(self._asked))
                if answer.debug_info is None:
                    raise ResponseError("the daemon did not show the rendered prompt")
                self._rendered = answer.debug_info.rendered_template
        return self._rendered

    async def _fidelity(self, way: Way, transcript: Transcript) -> float | None:
        """What the model predicts for the last token now, beside what it predicted then."""
        last = transcript.last
        if last is None or not last.candidates:
            return None
        if way is Way.TOKENS:
            ids = list(transcript.ids or ())
            ids = ids[: len(ids) - len(last.token_ids or ())]
            looked = continue_tokens(self._asked, ids, None)
        else:
            text = transcript.text(Channel.TEXT).removesuffix(last.token)
            looked = continue_text(self._asked, await self._prompt(), text, None)
        return overlap(last.candidates, _candidates(await self._answer(one_token(looked))))

    async def _answer(self, request: Request) -> GenerateRecord | ChatRecord:
        return await self._backing.answer(request, self._limits.first_token_s)

    # The end

    def _refuse(self, why: str) -> None:
        if why not in self._refusals:
            self._refusals.append(why)

    @property
    def _reason(self) -> Interruption:
        return self._interruption.reason if self._interruption is not None else Interruption.CUT

    def _ended(self, cut: AdapterError, transcript: Transcript) -> AdapterError:
        """Nothing is left to try."""
        cause = self._interruption or cut
        if not isinstance(cause, StreamInterrupted) and not len(transcript):
            return cause
        could_not = ", and could not go on" if self._limits.resume_tries else ""
        return StreamInterrupted(
            f"{cause}{could_not}",
            session_id=self._hold.statistics.session_id,
            tokens=len(transcript),
            reason=self._reason,
            refusals=tuple(self._refusals),
            hint=cause.hint,
        )


def _name(error: AdapterError) -> str:
    return error.reason.value if isinstance(error, StreamInterrupted) else type(error).__name__


def _candidates(record: GenerateRecord | ChatRecord) -> list[Candidate] | None:
    return record.logprobs[0].top_logprobs if record.logprobs else None
