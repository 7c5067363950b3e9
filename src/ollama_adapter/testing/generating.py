"""One generation of the pretended daemon: load, wait for a place, evaluate, write, or go wrong.

`Generation` is what a test looks at: how far it came, and how it ended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

import msgspec

from ollama_adapter.embedded.records import timestamp
from ollama_adapter.embedded.requests import Asked
from ollama_adapter.embedded.values import ApiError
from ollama_adapter.system.clock import Clock
from ollama_adapter.testing.answering import Answer, Piece, Records, joined
from ollama_adapter.testing.breaking import RUNNER_DIED, Cut
from ollama_adapter.testing.connection import Connection
from ollama_adapter.testing.faults import CUTS, Armed, Fault, FaultKind, reason
from ollama_adapter.testing.framing import chunked, record_line
from ollama_adapter.testing.memory import Load, Memory
from ollama_adapter.testing.model import PretendModel
from ollama_adapter.testing.scripted import ScriptedRequest
from ollama_adapter.testing.shelf import CLOUD_OFF

_BUSY: Final = "server busy, please try again.  maximum pending requests exceeded"


class Phase(StrEnum):
    """How far a generation has come, and in the end how it ended."""

    LOADING = "loading"
    QUEUED = "queued"
    EVALUATING = "evaluating"
    WRITING = "writing"
    DONE = "done"
    BROKEN = "broken"
    """A fault has ended it."""
    DROPPED = "dropped"
    """The client has left."""
    REFUSED = "refused"
    """It was answered with an error before it began."""


RUNNING: Final = frozenset({Phase.LOADING, Phase.QUEUED, Phase.EVALUATING, Phase.WRITING})


@dataclass(slots=True, eq=False)
class Generation:
    """One request for text. `sent` counts the pieces of its answer that were written to the socket."""

    request: ScriptedRequest
    model: str
    renders: bool = False
    """It asks for the rendered prompt only."""
    phase: Phase = Phase.LOADING
    sent: int = 0
    faults: list[Fault] = field(default_factory=list)
    """What went wrong with it on purpose."""

    @property
    def running(self) -> bool:
        return self.phase in RUNNING


@dataclass(slots=True)
class Pace:
    """How long things take, in nanoseconds."""

    load: int = 0
    prompt: int = 0
    token: int = 0


@dataclass(slots=True)
class Means:
    """What a generation uses of its daemon."""

    clock: Clock
    memory: Memory
    pace: Pace
    armed: Armed
    changed: Callable[[], None]
    die: Callable[[Fault], None]

    def strike(self, fault: Fault) -> None:
        self.armed.strike(fault)
        self.changed()

    def load(self, model: PretendModel, strike: Callable[[Fault], None]) -> Load:
        """How the next load goes, and whether there has to be one."""
        load = Load(self.pace.load if model.load_s is None else int(model.load_s * 1e9))
        for fault in self.armed.of(FaultKind.COLD_LOAD, FaultKind.LOAD_FAIL):
            strike(fault)
            load.anew = True
            load.fails = load.fails or fault.kind is FaultKind.LOAD_FAIL
            load.takes_ns = fault.for_ns or load.takes_ns
        return load


class Service:
    """Carries one generation out."""

    def __init__(
        self,
        means: Means,
        generation: Generation,
        connection: Connection,
        asked: Asked,
        options: Mapping[str, Any],
    ) -> None:
        self._means = means
        self._clock = means.clock
        self._generation = generation
        self._connection = connection
        self._asked = asked
        self._options = options
        self._records = Records(asked)
        self._cut = Cut(connection, self._make, self._stall, means.die, stream=asked.stream)
        self._pieces: list[Piece] = []
        self._struck: list[Fault] = []
        self._began_ns = means.clock.now_ns()
        self._loaded_ns = self._evaluated_ns = self._began_ns

    async def run(self, name: str, model: PretendModel) -> None:
        """From the request to its end. Raises ApiError for an answer that is an error."""
        if not self._generation.renders:
            self._refuse()
        spec = dict(self._options)
        if "shift" in self._asked.body:
            spec["shift"] = self._asked.body["shift"]
        load = self._means.load(model, self._strike)
        resident = await self._means.memory.ensure(name, model, spec, load)
        async with self._means.memory.use(resident, self._asked.keep_alive):
            self._loaded_ns = self._clock.now_ns()
            answer = Answer(model, self._asked, self._options)
            if self._generation.renders:
                self._connection.value(200, self._records.rendered(answer.prompt, self._stamp()))
                return self._advance(Phase.DONE)
            self._fit(answer, model)
            self._advance(Phase.QUEUED)
            async with self._means.memory.place(name):
                await self._evaluate()
                whole = await self._write(answer) and await self._finish(answer)
                self._advance(Phase.DONE if whole else Phase.BROKEN)

    # Before the first token

    def _refuse(self) -> None:
        for fault in self._means.armed.of(FaultKind.CLOUD, FaultKind.STATUS):
            self._strike(fault)
            if fault.kind is FaultKind.CLOUD:
                raise ApiError(403, CLOUD_OFF)
            raise ApiError(fault.status, _words(fault.status, self._asked.model))

    def _fit(self, answer: Answer, model: PretendModel) -> None:
        """Refuse a prompt that is too long, where it must not be cut; else nobody hears that it was."""
        room, needed = model.context(self._options.get("num_ctx")), answer.prompt_count
        if self._asked.body.get("truncate") is False and needed > room:
            words = f"request ({needed} tokens) exceeds the available context size ({room} tokens)"
            error = {
                "code": 400,
                "message": f"{words}, try increasing it",
                "type": "exceed_context_size_error",
                "n_prompt_tokens": needed,
                "n_ctx": room,
            }
            raise ApiError(400, msgspec.json.encode({"error": error}).decode())

    async def _evaluate(self) -> None:
        self._advance(Phase.EVALUATING)
        takes_ns = self._means.pace.prompt
        for fault in self._means.armed.of(FaultKind.PROMPT_EVAL):
            self._strike(fault)
            takes_ns = fault.for_ns
        await self._sleep(takes_ns)
        self._evaluated_ns = self._clock.now_ns()

    # The answer

    async def _write(self, answer: Answer) -> bool:
        """The pieces of the answer, to its last; False when a fault has ended it."""
        self._advance(Phase.WRITING)
        takes_ns = self._means.pace.token
        for fault in self._means.armed.of(FaultKind.SLOW):
            self._strike(fault)
            takes_ns = fault.for_ns
        for piece in answer:
            line = record_line(self._records.piece(piece, self._stamp()))
            if not await self._survives(line):
                return False
            await self._sleep(takes_ns)
            self._pieces.append(piece)
            if self._asked.stream:
                self._connection.open_stream()
                await self._connection.send(chunked(line))
                self._generation.sent += 1
                self._means.changed()
        return True

    async def _finish(self, answer: Answer) -> bool:
        """The last record; False when a fault comes before it."""
        whole = joined(() if self._asked.stream else self._pieces)
        now = self._clock.now_ns()
        figures: dict[str, Any] = {
            "total_duration": now - self._began_ns,
            "load_duration": self._loaded_ns - self._began_ns,
            "prompt_eval_count": answer.prompt_count,
            "prompt_eval_duration": self._evaluated_ns - self._loaded_ns,
            "eval_count": answer.count,
            "eval_duration": now - self._evaluated_ns,
        }
        if not self._asked.chat and not self._asked.body.get("raw"):
            figures = {"context": answer.context(joined(self._pieces).text)} | figures
        last = self._records.last(whole, self._stamp(), answer.reason, figures)
        if not await self._survives(record_line(last), at_the_end=True):
            return False
        if self._asked.stream:
            self._connection.open_stream()
            self._connection.write(chunked(record_line(last)))
            self._connection.end_stream()
        else:
            self._generation.sent = len(self._pieces)
            self._connection.value(200, last)
        return True

    # Faults

    async def _survives(self, line: bytes, *, at_the_end: bool = False) -> bool:
        """Let the faults strike that belong before `line`; False when one has ended the answer."""
        for fault in list(self._means.armed.of(*CUTS)):
            here = at_the_end if fault.at is None else fault.at == len(self._pieces)
            if not here or fault in self._struck:
                continue
            self._strike(fault)
            last = self._pieces[-1].text if self._pieces else ""
            if not await self._cut.strike(fault, last, line):
                return False
        return True

    def _strike(self, fault: Fault) -> None:
        self._struck.append(fault)
        self._generation.faults.append(fault)
        self._means.strike(fault)

    def _make(self, text: str) -> dict[str, Any]:
        before = joined(() if self._asked.stream else self._pieces)
        before.text += text
        return self._records.piece(before, self._stamp())

    async def _stall(self, fault: Fault) -> None:
        if fault.for_ns:
            await self._sleep(fault.for_ns)
        else:
            await self._connection.gone()

    # Time

    def _advance(self, phase: Phase) -> None:
        self._generation.phase = phase
        self._means.changed()

    async def _sleep(self, takes_ns: int) -> None:
        if takes_ns:
            await self._clock.sleep_until_ns(self._clock.now_ns() + takes_ns)

    def _stamp(self) -> str:
        return timestamp(self._clock.now_ns() + self._clock.epoch_offset_ns)


def _words(status: int, model: str) -> str:
    """What the daemon says with a status."""
    words = {404: f"model '{model}' not found", 500: RUNNER_DIED, 503: _BUSY}
    return words.get(status, reason(status).lower())
