"""A daemon that pretends: Ollama's API over real TCP, a model that knows nothing, faults on demand.

    async with PretendOllama(faults="rst@12*1") as daemon, OllamaAdapter(daemon.config) as adapter:
        ...

It counts what it sees, so that a test can tell that an abort has really stopped an answer. Not here:
/api/create, /api/push, blobs, /v1, templates and images.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, Self

from ollama_adapter.config import LOOPBACK, Config, DaemonConfig, DaemonMode
from ollama_adapter.core.names import parse_name
from ollama_adapter.embedded.values import ApiError
from ollama_adapter.errors import ConfigError, PortTaken
from ollama_adapter.system.clock import Clock, SystemClock
from ollama_adapter.system.scope import TaskScope
from ollama_adapter.testing.connection import Connection
from ollama_adapter.testing.faults import Armed, Fault, FaultKind, Faults
from ollama_adapter.testing.generating import Generation, Means, Pace, Phase
from ollama_adapter.testing.memory import Machine, Memory, Move
from ollama_adapter.testing.model import PretendModel
from ollama_adapter.testing.routes import Desk
from ollama_adapter.testing.scripted import ScriptedRequest
from ollama_adapter.testing.shelf import Shelf

MODELS: Final = (
    PretendModel("pretend"),
    PretendModel("pretend-thinker", capabilities=("completion", "tools", "thinking")),
    PretendModel("pretend-embed", capabilities=("embedding",)),
)

BACKLOG: Final = 4096  # a thousand clients may come at once
HISTORY: Final = 10_000
"""How much it remembers, so that a test of a million answers does not fill the memory."""


class PretendOllama:
    """Use it as a context manager. Names of models, or PretendModels, replace the three it has.

    `load_s`, `prompt_s` and `token_s` are how long a load, the evaluation of a prompt and a token take;
    `num_parallel` is how many answers of one model are written at once; `machine` how much memory there is.
    """

    def __init__(
        self,
        *models: PretendModel | str,
        faults: str | Faults = "",
        load_s: float = 0.0,
        prompt_s: float = 0.0,
        token_s: float = 0.0,
        num_parallel: int = 1,
        version: str = "0.32.15",
        clock: Clock | None = None,
        send_buffer_bytes: int = 0,
        machine: Machine | None = None,
    ) -> None:
        if num_parallel < 1 or min(load_s, prompt_s, token_s, send_buffer_bytes) < 0:
            raise ConfigError("a pretended daemon has one place or more, and no negative times")
        self.version = version
        self.port = 0
        self.dropped = 0
        """How many requests the client has left before their answer was over."""
        self._requests: deque[ScriptedRequest] = deque(maxlen=HISTORY)
        self._generations: deque[Generation] = deque(maxlen=HISTORY)
        self._clock = clock or SystemClock()
        self._shelf = Shelf(models or MODELS)
        self._memory = Memory(self._clock, num_parallel, machine or Machine())
        pace = Pace(int(load_s * 1e9), int(prompt_s * 1e9), int(token_s * 1e9))
        self._means = Means(
            self._clock, self._memory, pace, Armed(Faults()), self.changed, self._die
        )
        self._send_buffer_bytes = send_buffer_bytes
        self._desk = Desk(self._means, self._shelf, version)
        self._server: asyncio.Server | None = None
        self._connections: set[Connection] = set()
        self._scope = TaskScope()
        self._returning: asyncio.Task[None] | None = None
        self._waiting: list[asyncio.Future[None]] = []
        self.faults = faults

    def __repr__(self) -> str:
        running = sum(each.running for each in self._generations)
        where = f"127.0.0.1:{self.port}" if self.alive else "away"
        return f"<PretendOllama {where}, {running} running, {self.dropped} dropped>"

    async def __aenter__(self) -> Self:
        await self.revive()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End for good. Idempotent. Raises what went wrong in the daemon itself."""
        await self.die()
        await self._scope.aclose()

    # What a test asks of it

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def config(self) -> Config:
        """The Config with which an adapter uses this daemon, and no other."""
        return Config(daemon=DaemonConfig(port=self.port, mode=DaemonMode.ADOPT))

    @property
    def faults(self) -> Faults:
        """What goes wrong from now on; set it to a Faults, or to text in the fault language."""
        return self._faults

    @faults.setter
    def faults(self, faults: str | Faults) -> None:
        self._faults = Faults.parse(faults) if isinstance(faults, str) else faults
        self._means.armed = Armed(self._faults)

    @property
    def struck(self) -> list[Fault]:
        """The faults that have happened since they were set."""
        return list(self._means.armed.struck)

    @property
    def alive(self) -> bool:
        return self._server is not None

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._connections)

    @property
    def held(self) -> int:
        """How many connections stand still because their client does not read."""
        return sum(each.held for each in self._connections)

    @property
    def residents(self) -> list[str]:
        """The models in memory."""
        return list(self._memory.residents())

    @property
    def moves(self) -> list[tuple[Move, str]]:
        """What happened in memory, in order."""
        self._memory.residents()  # what has gone unseen is found out now
        return list(self._memory.moves)

    @property
    def taken_bytes(self) -> tuple[int, int]:
        """Of RAM and of VRAM, by its models."""
        return self._memory.taken()

    @property
    def most_bytes(self) -> tuple[int, int]:
        """The most of RAM and of VRAM that was ever taken."""
        return self._memory.most

    def grow(self, model: str, size_bytes: int) -> None:
        """A model in memory takes so many bytes more."""
        self._memory.change(parse_name(model).key, grows_bytes=size_bytes)

    def fall_back(self, model: str) -> None:
        """A model in memory is not on the GPU any more."""
        self._memory.change(parse_name(model).key, to_cpu=True)

    def unload(self, model: str) -> None:
        """Somebody else has unloaded a model; it goes when its last answer has ended."""
        self._memory.unload(parse_name(model).key)

    @property
    def requests(self) -> list[ScriptedRequest]:
        """What came, in order: the last HISTORY of them."""
        return list(self._requests)

    def generations(self) -> list[Generation]:
        """The requests for text, each with how far it came: the last HISTORY of them."""
        return list(self._generations)

    async def until(self, condition: Callable[[], object], timeout_s: float = 30.0) -> None:
        """Wait for a condition on this daemon; it is tried whenever something has happened here.

        TimeoutError when it does not come true in time.
        """
        async with asyncio.timeout(timeout_s):
            while not condition():
                changed = asyncio.get_running_loop().create_future()
                self._waiting.append(changed)
                await changed

    async def die(self) -> None:
        """Go away as a killed daemon does: connections end, the port is closed. Idempotent."""
        if self._returning is not None:
            self._returning.cancel()
        services = [each.service for each in self._connections if each.service is not None]
        self._leave()
        if services:
            await asyncio.wait(services)
        await self.until(lambda: not self._connections)

    async def revive(self) -> None:
        """Come back on the same port, with nothing in memory. Idempotent. Raises PortTaken."""
        if self._server is not None:
            return
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                lambda: Connection(self, self._scope), LOOPBACK, self.port, backlog=BACKLOG
            )
        except OSError as error:
            raise PortTaken(f"port {self.port} cannot be had: {error.strerror}") from error
        self.port = self._server.sockets[0].getsockname()[1]
        self.changed()

    # What its connections tell it

    def opened(self, connection: Connection) -> None:
        self._connections.add(connection)
        if not self.alive:  # it had been accepted, and nobody is there any more
            connection.drop()
        elif self._send_buffer_bytes:
            connection.limit(self._send_buffer_bytes)
        self.changed()

    def closed(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self.changed()

    async def serve(self, connection: Connection, request: ScriptedRequest) -> None:
        self._requests.append(request)
        generation = self._desk.generation(request)
        if generation is not None and not generation.renders:
            self._generations.append(generation)
        self.changed()
        try:
            for fault in self._means.armed.of(FaultKind.DEAF):
                self._means.strike(fault)
                await connection.gone()
            await self._desk.answer(connection, request, generation)
        except asyncio.CancelledError:
            if connection.left and not connection.ended:
                self.dropped += 1
            self._end(generation, Phase.BROKEN if connection.ended else Phase.DROPPED)
            raise
        except ApiError as error:
            self._end(generation, Phase.REFUSED)
            connection.value(error.status, {"error": error.message})

    def _end(self, generation: Generation | None, phase: Phase) -> None:
        if generation is not None:
            generation.phase = phase
        self.changed()

    def _die(self, fault: Fault) -> None:
        """The fault of that name."""
        self._leave()
        if fault.for_ns:
            self._returning = self._scope.spawn(self._return(fault.for_ns), name="pretended return")

    async def _return(self, after_ns: int) -> None:
        await self._clock.sleep_until_ns(self._clock.now_ns() + after_ns)
        await self.revive()

    def _leave(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self._connections):
            connection.drop()
        self._memory.clear()
        self.changed()

    def changed(self) -> None:
        """Something has happened here: whoever waits for a condition tries it again."""
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            if not each.done():
                each.set_result(None)
