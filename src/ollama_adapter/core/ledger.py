"""What is in memory, as far as we know: written by our own steps, corrected by what the daemon lists; pure.

A number counts from when it was read back; until then the planned one does. What we did not load is somebody
else's, and stays theirs. A model in use that is not listed any more keeps its place, since the request that
uses it may bring it back; any other is gone. One of ours that is listed again soon, as it was, is ours again.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from ollama_adapter.core.durations import FOREVER_NS
from ollama_adapter.core.listing import NOTHING, Listed
from ollama_adapter.core.planning import Resident
from ollama_adapter.events import Change, Footprint, ResidencyChange

MARGIN_NS: Final = 500_000_000  # before its keep-alive ends a model no longer counts as warm
LAPSE_NS: Final = 10_000_000_000  # for how long a model that is not listed may be ours again
REMEMBERED: Final = 256


class Entry(msgspec.Struct, eq=False):
    """A model in memory, or on its way there (`loading`).

    `listed`: the daemon has said so. `missing`: it does not say so any more, though the model is in use.
    `doubtful`: it may be gone, and the next request has to make sure.
    `foreign`: somebody else has loaded it. `stuck`: the daemon does not unload it, though we asked.
    `keep_ns`: how long it stays after its last use, as the daemon was last told by us. `held`: somebody else
    has told it to keep the model for good, and so do our requests.
    """

    name: str
    key: str
    digest: str = ""
    reloading: Mapping[str, Any] = msgspec.field(default_factory=dict)
    footprint: Footprint = NOTHING
    num_ctx: int = 0
    until_ns: int = 0
    keep_ns: int = 0
    last_used_ns: int = 0
    users: int = 0
    foreign: bool = False
    held: bool = False
    listed: bool = False
    loading: bool = False
    missing: bool = False
    doubtful: bool = False
    stuck: bool = False
    load_s: float | None = None

    def is_warm(self, now_ns: int) -> bool:
        """It can be used at once."""
        if self.loading or self.doubtful or self.missing:
            return False
        return self.users > 0 or self.until_ns - MARGIN_NS >= now_ns

    @property
    def vram_share(self) -> float | None:
        """How much of it is on GPUs, in [0, 1]; None where the daemon has not said."""
        total = self.footprint.total
        return self.footprint.vram / total if self.listed and total else None

    def use(self, now_ns: int, keep_ns: int | None = None) -> None:
        """It stays for so long from now on; where nothing is said, for as long as the daemon was told."""
        keep_ns = self.keep_ns if keep_ns is None else keep_ns
        self.last_used_ns, self.keep_ns = now_ns, keep_ns
        self.until_ns = FOREVER_NS if keep_ns == FOREVER_NS else now_ns + keep_ns
        self.held = self.held and keep_ns == FOREVER_NS


class Ledger:
    """The entries, by the keys of the models."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self._lapsed: dict[str, tuple[int, Entry]] = {}  # and since when

    def __repr__(self) -> str:
        return f"<Ledger of {len(self.entries)} models>"

    def clear(self) -> list[Entry]:
        """Nothing is in memory, and nothing comes back; what there was."""
        entries = list(self.entries.values())
        self.entries.clear()
        self._lapsed.clear()
        return entries

    def find(self, key: str) -> Entry | None:
        return self.entries.get(key)

    def at_work(self) -> set[str]:
        """The models that somebody uses."""
        return {key for key, each in self.entries.items() if each.users}

    def users(self) -> Counter[str]:
        """How many use each model."""
        return Counter({key: each.users for key, each in self.entries.items() if each.users})

    def taken(self) -> Footprint:
        """Of all of them."""
        return sum((each.footprint for each in self.entries.values()), Footprint())

    def residents(self, pinned: Iterable[str]) -> list[Resident]:
        """As a plan sees them; `pinned` are keys."""
        kept = set(pinned)
        return [
            Resident(
                each.name,
                each.footprint,
                each.last_used_ns,
                busy=each.users > 0 or each.loading,
                pinned=each.key in kept or each.held,
                foreign=each.foreign or each.stuck,
                load_s=each.load_s,
            )
            for each in self.entries.values()
        ]

    def reconcile(self, listed: Sequence[Listed], now_ns: int) -> list[ResidencyChange]:
        """Believe the daemon; what has changed since it was last asked."""
        by_key = {each.key: each for each in listed}
        aliases = {
            each.digest: each for each in listed if each.digest and each.key not in self.entries
        }
        changes: list[ResidencyChange] = []
        for entry in list(self.entries.values()):
            found = by_key.pop(entry.key, None)
            if found is None and entry.digest in aliases:  # one runner serves all names of a model
                found = aliases[entry.digest]
                by_key.pop(found.key, None)
            if found is not None:
                changes += _compare(entry, found, now_ns)
            elif not entry.loading:
                changes += self._missing(entry, now_ns)
        for found in by_key.values():
            changes.append(self._appeared(found, now_ns))
        return changes

    def _missing(self, entry: Entry, now_ns: int) -> list[ResidencyChange]:
        known, entry.missing = entry.listed and not entry.missing, True
        if not entry.users:
            del self.entries[entry.key]
        if not known:
            return []
        if not entry.users and not entry.foreign:
            if entry.until_ns - MARGIN_NS <= now_ns:
                return [_change(entry, Change.EXPIRED, "its keep-alive ended", now_ns, gone=True)]
            self._lapsed[entry.key] = now_ns, entry
        why = "the daemon does not list it any more, and this adapter has not unloaded it"
        return [_change(entry, Change.UNLOADED_ELSEWHERE, why, now_ns, gone=True)]

    def _appeared(self, found: Listed, now_ns: int) -> ResidencyChange:
        if (entry := self._returned(found, now_ns)) is not None:
            why = "the daemon lists it again, as this adapter has loaded it"
            return _change(entry, Change.LOADED, why, now_ns)
        entry = Entry(
            found.name,
            found.key,
            found.digest,
            {"num_ctx": found.num_ctx} if found.num_ctx else {},
            found.footprint,
            found.num_ctx,
            last_used_ns=now_ns,
            foreign=True,
            held=found.for_ever,
            listed=True,
        )
        self.entries[found.key] = entry
        why = "the daemon lists it, and this adapter has not loaded it"
        return _change(entry, Change.LOADED_ELSEWHERE, why, now_ns)

    def _returned(self, found: Listed, now_ns: int) -> Entry | None:
        """The same model, of the same size: the next request makes sure how long it stays."""
        since_ns, entry = self._lapsed.pop(found.key, (0, None))
        if entry is None or now_ns - since_ns > LAPSE_NS:
            return None
        seen = found.digest, found.num_ctx, found.footprint.total
        if seen != (entry.digest, entry.num_ctx, entry.footprint.total):
            return None
        entry.footprint, entry.missing, entry.doubtful = found.footprint, False, True
        self.entries[entry.key] = entry
        return entry


def _compare(entry: Entry, found: Listed, now_ns: int) -> list[ResidencyChange]:
    before, known = entry.footprint, entry.listed and not (entry.loading or entry.missing)
    after = found.footprint if found.footprint.total else before  # a size that nobody said is no 0
    entry.footprint, entry.num_ctx = after, found.num_ctx
    entry.listed, entry.missing = True, False
    entry.digest = found.digest or entry.digest
    if not found.for_ever:
        entry.held = False
    elif not entry.users and entry.keep_ns != FOREVER_NS:  # in use its time may be an old one
        entry.held = True
    changes = []
    if known and after.vram < before.vram:
        why = (
            f"{after.vram >> 20} MiB of it are on the GPU, and {before.vram >> 20} MiB were before"
        )
        changes.append(_change(entry, Change.FELL_BACK_TO_CPU, why, now_ns))
    if known and after.total > before.total:
        why = f"it takes {after.total >> 20} MiB, and took {before.total >> 20} MiB before"
        changes.append(_change(entry, Change.GREW, why, now_ns))
    return changes


def _change(
    entry: Entry, change: Change, reason: str, now_ns: int, *, gone: bool = False
) -> ResidencyChange:
    footprint = Footprint() if gone else entry.footprint
    return ResidencyChange(entry.name, change, footprint, reason, now_ns)


class Lessons:
    """What loads have taught: of each model and its options the bytes and the time, and how fast it goes."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, frozenset[tuple[str, Any]]], tuple[int, float]] = (
            OrderedDict()
        )
        self._bytes_per_s = 0.0

    def __repr__(self) -> str:
        return f"<Lessons of {len(self._known)} loads>"

    def learn(
        self, digest: str, reloading: Mapping[str, Any], size_bytes: int, load_s: float
    ) -> None:
        """A load has succeeded."""
        key = (digest, frozenset(reloading.items()))
        self._known[key] = size_bytes, load_s
        self._known.move_to_end(key)
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        if load_s > 0 and size_bytes:
            rate = size_bytes / load_s
            self._bytes_per_s = (self._bytes_per_s + rate) / 2 if self._bytes_per_s else rate

    def size(self, digest: str, reloading: Mapping[str, Any]) -> int:
        """What it took the last time; 0 where that is not known."""
        return self._known.get((digest, frozenset(reloading.items())), (0, 0.0))[0]

    def expected_s(
        self, digest: str, reloading: Mapping[str, Any], size_bytes: int
    ) -> float | None:
        """How long a load of so many bytes is likely to take; None where nothing is known."""
        found = self._known.get((digest, frozenset(reloading.items())))
        if found is not None:
            return found[1]
        return size_bytes / self._bytes_per_s if self._bytes_per_s else None
