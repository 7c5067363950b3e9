"""One pull: ask, plan, fetch with patience, check, move in. It tells how far it is, and ends well or not.

The process that talks to the registry has ended before anything that it wrote is looked at.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, NoReturn

import msgspec

from ollama_adapter.config import Sandbox
from ollama_adapter.core.backoff import Backoff, BackoffPolicy
from ollama_adapter.core.names import ModelName
from ollama_adapter.core.pull_errors import pull_error
from ollama_adapter.core.registry import (
    Blob,
    Manifest,
    Meter,
    Source,
    allowed_hosts,
    check_space,
    parse_address,
    parse_manifest,
    step_bytes,
)
from ollama_adapter.errors import AdapterError, PullFailed, PullRefused
from ollama_adapter.events import (
    HostTraffic,
    LoadPhase,
    PullOffer,
    PullProgress,
    PullReceipt,
    PullStage,
)
from ollama_adapter.puller.errand import MANIFEST_FILE, Errand, FetchFailed, Terms
from ollama_adapter.puller.proxy import Proxy
from ollama_adapter.puller.staging import Staging
from ollama_adapter.system.certificates import authorities
from ollama_adapter.system.clock import Clock
from ollama_adapter.system.scope import TaskScope
from ollama_adapter.system.store import Layout

AGENT: Final = "ollama-adapter"


def _usual_backoff() -> BackoffPolicy:
    return BackoffPolicy(base_s=0.5, cap_s=15.0, tries=6)


class Patience(msgspec.Struct, frozen=True):
    """How long silence may be, and how often in a row a pull may fail without a byte of progress."""

    stall_s: float = 30.0
    backoff: BackoffPolicy = msgspec.field(default_factory=_usual_backoff)
    look_s: float = 0.5
    """How often another process that has the model is looked at."""


class Surroundings(msgspec.Struct, frozen=True):
    """What every flight of a puller shares."""

    layout: Layout
    ours: Path | None
    scope: TaskScope
    clock: Clock
    sandbox: Sandbox
    cafile: str
    patience: Patience
    chance: Callable[[], float]
    script: Path


class Flight:
    """Runs once."""

    def __init__(
        self,
        around: Surroundings,
        name: ModelName,
        source: Source,
        registries: tuple[str, ...],
        confirm: Callable[[PullOffer], Awaitable[bool]] | None,
    ) -> None:
        self._around = around
        self._name = name
        self._source = source
        self._confirm = confirm
        listed = [parse_address(each, 0) for each in registries]
        self._proxy = Proxy(allowed_hosts(source, registries), listed, around.scope)
        self._staging = Staging(around.layout, name, around.ours)
        self._errand: Errand | None = None
        self._meter = Meter(around.clock.now_ns(), 0, 0)
        self._missing: list[Blob] = []
        self._sandbox = ""
        self._stage = PullStage.ASKING
        self.tell: Callable[[PullProgress], None] = lambda _: None

    async def run(self) -> PullReceipt:
        await self._until_ours()
        try:
            self._report(PullStage.ASKING)
            raw, manifest = await self._ask()
            missing = [each for each in manifest.blobs if not self._staging.is_in_store(each)]
            self._missing = missing
            fetched = await self._fetch(manifest, missing)
            await self._end_errand()
            await self._check(raw, manifest, missing)
            self._staging.remove()
        finally:
            try:
                await self._end_errand()
            finally:
                await self._proxy.aclose()
                self._staging.tidy()
                self._staging.release()
        self._report(PullStage.DONE)
        return self._receipt(manifest.total, fetched)

    # The steps

    async def _until_ours(self) -> None:
        """Another process may be at it."""
        clock, look_ns = self._around.clock, int(self._around.patience.look_s * 1e9)
        while not self._staging.acquire():
            self._report(PullStage.WAITING)
            await clock.sleep_until_ns(clock.now_ns() + look_ns)

    async def _ask(self) -> tuple[bytes, Manifest]:
        await self._with_patience(lambda errand: errand.fetch_manifest(), lambda: 0)
        raw = self._staging.manifest(MANIFEST_FILE)
        return raw, parse_manifest(raw, str(self._name))

    async def _fetch(self, manifest: Manifest, missing: list[Blob]) -> int:
        """All of them; how many bytes that were."""
        begun = {each.digest: self._staging.begun(each) for each in missing}
        needed = sum(each.size for each in missing) - sum(begun.values())
        await self._have_consent(manifest, needed)
        check_space(needed, self._staging.free_bytes(), str(self._around.layout.root))
        here = manifest.total - sum(each.size for each in missing)
        self._meter = Meter(self._around.clock.now_ns(), here + sum(begun.values()), manifest.total)
        step = step_bytes(manifest.total)
        for blob in missing:
            others = here + sum(begun[each.digest] for each in missing if each is not blob)

            def on_done(done: int, others: int = others) -> None:
                self._meter.advance(self._around.clock.now_ns(), others + done)
                self._report(PullStage.FETCHING)

            await self._fetch_one(blob, step, on_done)
            begun[blob.digest] = blob.size
        return needed

    async def _fetch_one(self, blob: Blob, step: int, on_done: Callable[[int], None]) -> None:
        def progress() -> int:
            return self._staging.begun(blob)

        await self._with_patience(
            lambda errand: errand.fetch(blob, progress(), step, on_done), progress
        )

    async def _have_consent(self, manifest: Manifest, needed: int) -> None:
        if self._confirm is None or not needed:
            return
        offer = PullOffer(
            str(self._name),
            str(self._source.address),
            manifest.total,
            needed,
            str(self._around.layout.root),
        )
        if not await self._confirm(offer):
            raise PullRefused("nothing was downloaded: you said no", hint="ask again at any time")

    async def _check(self, raw: bytes, manifest: Manifest, missing: list[Blob]) -> None:
        """All of them, so that nothing that is wrong is built on later; the first error is raised.

        In a thread: it takes as long as the disk does. One that is cancelled is waited for.
        """
        loop = asyncio.get_running_loop()
        wrong: list[AdapterError] = []
        for blob in missing:
            self._report(PullStage.CHECKING)
            work = loop.run_in_executor(None, self._staging.settle, manifest, blob)
            try:
                await asyncio.shield(work)
            except AdapterError as error:
                wrong.append(error)
            except asyncio.CancelledError:
                await asyncio.wait([work])
                work.exception()  # seen: we are leaving
                raise
        if wrong:
            raise wrong[0]
        self._staging.publish(raw)

    # Trying again

    async def _with_patience(
        self, attempt: Callable[[Errand], Awaitable[None]], progress: Callable[[], int]
    ) -> None:
        """Until it succeeds, or has failed too often in a row without a byte of progress."""
        backoff = Backoff(self._around.patience.backoff)
        while True:
            before = progress()
            try:
                await attempt(await self._ready_errand())
                return
            except FetchFailed as failure:
                if not failure.again:
                    self._give_up(failure)
                if failure.kind == "ended":
                    await self._end_errand()
                if progress() > before:
                    backoff.reset()
                backoff.failed()
                if backoff.exhausted:
                    self._give_up(failure)
                self._report(self._stage, note=str(failure))
                wait_ns = int(backoff.delay_s(self._around.chance()) * 1e9)
                await self._around.clock.sleep_until_ns(self._around.clock.now_ns() + wait_ns)

    async def _ready_errand(self) -> Errand:
        if self._errand is None:
            around = self._around
            cafile = around.cafile or authorities()
            if self._source.tls and not cafile:
                raise PullFailed(
                    "no certificate authorities are found on this machine",
                    hint="install the package ca-certificates, or set SSL_CERT_FILE",
                )
            directory, stall_s = self._staging.directory, around.patience.stall_s
            terms = Terms(
                self._source, directory, cafile, stall_s, AGENT, around.sandbox, around.script
            )
            self._errand = await Errand.begin(terms, self._proxy, around.scope)
            self._sandbox = self._errand.sandbox
        return self._errand

    async def _end_errand(self) -> None:
        errand, self._errand = self._errand, None
        if errand is not None:
            await errand.aclose()

    def _give_up(self, failure: FetchFailed) -> NoReturn:
        host, refused = str(self._source.address), next(iter(self._proxy.refused), "")
        model, reason = str(self._name), str(failure)
        begun = any(self._staging.begun(each) for each in self._missing)
        raise pull_error(
            failure.kind, reason, host=host, model=model, refused=refused, begun=begun
        ) from failure

    # Telling

    def _report(self, stage: PullStage, note: str = "") -> None:
        self._stage = stage
        meter, now_ns = self._meter, self._around.clock.now_ns()
        elapsed_s, remaining_s = meter.elapsed_s(now_ns), meter.remaining_s
        self.tell(
            PullProgress(
                model=str(self._name),
                phase=LoadPhase.PULLING,
                done_bytes=meter.done,
                total_bytes=meter.total,
                elapsed_s=elapsed_s,
                expected_s=None if remaining_s is None else elapsed_s + remaining_s,
                stage=stage,
                bytes_per_s=meter.bytes_per_s,
                remaining_s=remaining_s,
                received_bytes=sum(each.received for each in self._proxy.traffic.values()),
                host=self._proxy.host,
                note=note,
            )
        )

    def _receipt(self, total: int, fetched: int) -> PullReceipt:
        hosts = tuple(
            HostTraffic(host, each.sent, each.received)
            for host, each in self._proxy.traffic.items()
        )
        return PullReceipt(
            str(self._name),
            AGENT,
            total,
            fetched,
            self._meter.elapsed_s(self._around.clock.now_ns()),
            hosts,
            tuple(self._proxy.refused),
            self._sandbox,
        )
