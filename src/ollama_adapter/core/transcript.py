"""What one generation has delivered so far: enough to go on from, and to compare a second run with.

`Transcript` keeps the text of each channel, the ids of the tokens where the daemon tells them, and the
last event. `Replay` holds a second run of the same request against it and lets through only what is
new. `overlap` says how alike two predictions for the same place are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp, fsum
from typing import Any, Final

from ollama_adapter.events import Candidate, Channel, TokenEvent

_TEXT: Final = Channel.TEXT  # looked up once: a member of an enum takes Python 0.1 µs to find


class Transcript:
    """The account of what was delivered. `add` is on the token path, and keeps no event but the last."""

    __slots__ = ("_ids", "_text", "_thinking", "_tokens", "began_ns", "last", "tool_calls")

    def __init__(self) -> None:
        self._text: list[str] = []
        self._thinking: list[str] = []
        self._ids: list[int] | None = []
        self._tokens = 0
        self.began_ns = 0  # when the first event arrived; 0 before
        self.last: TokenEvent | None = None
        self.tool_calls: list[Any] = []

    def __repr__(self) -> str:
        return f"<Transcript of {len(self)} tokens>"

    def __len__(self) -> int:
        return self._tokens

    def add(self, events: Sequence[TokenEvent]) -> None:
        """Account for the events of one read, in order."""
        count = len(events)
        self.last = last = events[-1]
        if count == 1 and last.channel is _TEXT:
            self._text.append(last.token)
        else:
            self._add_read(events)
        if self._ids is not None:
            self._add_ids(self._ids, events)
        if not self._tokens:
            self.began_ns = events[0].arrival_ns
        self._tokens += count

    def text(self, channel: Channel) -> str:
        """All that was delivered of a channel: TEXT or THINKING."""
        pieces = self._text if channel is _TEXT else self._thinking
        pieces[:] = ["".join(pieces)]
        return pieces[0]

    @property
    def written_s(self) -> float:
        """How long it took from the first event to the last."""
        return (self.last.arrival_ns - self.began_ns) / 1e9 if self.last is not None else 0.0

    @property
    def ids(self) -> Sequence[int] | None:
        """The ids of all tokens; None where the daemon did not tell every one."""
        return self._ids

    def _add_read(self, events: Sequence[TokenEvent]) -> None:
        texts = [each.token for each in events if each.channel is _TEXT]
        self._text.append("".join(texts))
        if len(texts) != len(events):
            thinking = [each.token for each in events if each.channel is Channel.THINKING]
            self._thinking.append("".join(thinking))
            self.tool_calls += [_functions(each.tool_calls) for each in events if each.tool_calls]

    def _add_ids(self, ids: list[int], events: Sequence[TokenEvent]) -> None:
        for event in events:
            if event.token_ids is None:
                self._ids = None
                return
            ids += event.token_ids


class Replay:
    """A second run of a request whose transcript is known.

    `admit` gives of each piece what is new. `diverged` is set, for good, by the first piece that differs;
    from then on nothing is let through. The two runs may be cut into pieces differently.
    """

    __slots__ = ("_calls", "_left", "_texts", "_witness", "diverged", "fidelity")

    def __init__(
        self,
        texts: Mapping[Channel, str],
        calls: Sequence[Any] = (),
        witness: Sequence[Candidate] | None = None,
    ) -> None:
        """`witness`: the candidates of the last token, for the fidelity."""
        self._texts = dict(texts)
        self._calls = list(calls)
        self._witness = witness
        self._left = sum(map(len, self._texts.values())) + len(self._calls)
        self.diverged = False
        self.fidelity: float | None = None

    def __repr__(self) -> str:
        return f"<Replay {'diverged' if self.diverged else f'{self._left} left'}>"

    @classmethod
    def of(cls, transcript: Transcript) -> Replay:
        """A run from the beginning."""
        last = transcript.last
        return cls(
            {each: transcript.text(each) for each in (Channel.THINKING, Channel.TEXT)},
            transcript.tool_calls,
            last.candidates if last is not None else None,
        )

    @classmethod
    def of_last(cls, last: TokenEvent) -> Replay:
        """A run that begins with the last token."""
        return cls({last.channel: last.token}, witness=last.candidates)

    @property
    def complete(self) -> bool:
        """Everything that had been delivered has come again."""
        return not self._left and not self.diverged

    def admit(self, token: str, channel: Channel, candidates: list[Candidate] | None) -> str:
        """The part of a piece that had not been delivered ("" for none)."""
        if not self._left:
            return "" if self.diverged else token
        known = self._texts.get(channel, "")
        if not (known.startswith(token) or (known and token.startswith(known))):
            return self._diverge()
        common = min(len(known), len(token))
        self._texts[channel] = known[common:]
        self._left -= common
        if not self._left:
            self.fidelity = overlap(self._witness, candidates)
        elif common < len(token):  # this channel goes on, and another one had more
            return self._diverge()
        return token[common:]

    def admit_calls(self, calls: list[Any]) -> bool:
        """Whether these tool calls had not been delivered."""
        if not self._left:
            return not self.diverged
        if not self._calls or self._calls.pop(0) != _functions(calls):
            self._diverge()
        else:
            self._left -= 1
        return False

    def _diverge(self) -> str:
        self.diverged = True
        self._left = 0
        return ""


def _functions(calls: list[Any]) -> list[Any]:
    """The calls without their ids, which the daemon draws anew each time."""
    return [each.get("function", each) for each in calls]


def overlap(before: Sequence[Candidate] | None, after: Sequence[Candidate] | None) -> float | None:
    """How alike two lists of the most probable tokens for one place are, in [0, 1]; 1: equal.

    The probability that both give to the same tokens, as a share of what the smaller list covers:
    sum of min(p, q) over the tokens in both, divided by min(sum p, sum q). None where one has none.
    """
    if not before or not after:
        return None
    p = {each.token: exp(min(each.logprob, 0.0)) for each in before}
    q = {each.token: exp(min(each.logprob, 0.0)) for each in after}
    covered = min(fsum(p.values()), fsum(q.values()))
    if covered <= 0.0:
        return None
    shared = fsum(min(p[token], q[token]) for token in p.keys() & q.keys())
    return min(1.0, shared / covered)
