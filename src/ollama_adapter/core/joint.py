"""Where a stream was interrupted and another answer joins it.

A joint waits for the first new token. Until then a second run of the same request is held against what
was delivered, and nothing of it counts.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ollama_adapter.core.transcript import Replay
from ollama_adapter.events import Candidate, Channel, Seam, Source, Way


class Joint(msgspec.Struct):
    """How the stream goes on, and what is known of the seam before its first token."""

    way: Way
    reason: str
    replay: Replay | None = None
    fidelity: float | None = None
    exact: bool = True
    over: bool = False
    """Nothing is missing but the last record: as many tokens came as were asked for."""

    @property
    def source(self) -> Source:
        """Of the events that follow."""
        if self.way is Way.ANEW:
            return Source.LIVE
        return Source.REPLAYED if self.way is Way.RERUN else Source.RESUMED

    @property
    def diverged(self) -> bool:
        """The second run is not the first one's."""
        return self.replay is not None and self.replay.diverged

    @property
    def open(self) -> bool:
        """The second run has not come as far as the first one."""
        return self.replay is not None and not self.replay.complete

    def admit(
        self,
        token: str,
        channel: Channel,
        candidates: list[Candidate] | None,
        tool_calls: list[dict[str, Any]] | None,
    ) -> str | None:
        """What is new of a piece; None for one that was delivered before."""
        if self.replay is None:
            return token
        if tool_calls is not None:
            return token if self.replay.admit_calls(tool_calls) else None
        return self.replay.admit(token, channel, candidates) or None

    def seam(self, index: int, gap_ns: int) -> Seam:
        """As it is told, at the first token after it."""
        fidelity = self.fidelity if self.replay is None else self.replay.fidelity
        return Seam(index, self.way, self.reason, gap_ns / 1e6, fidelity, self.exact)
