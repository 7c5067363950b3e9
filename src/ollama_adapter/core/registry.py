"""The registry's side of a model: where its parts are, what a manifest may say, how far a download is.

Nothing that a registry sends is believed before it is checked: sizes, digests and counts are bounded, a
digest is a digest before it becomes a name of a file. Hosts are allowed by name, never by what they say.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from ollama_adapter.core.failures import remote_refused
from ollama_adapter.core.names import DEFAULT_HOST, ModelName, local_name
from ollama_adapter.errors import InvalidRequest, PullFailed

MANIFEST_TYPE: Final = "application/vnd.docker.distribution.manifest.v2+json"
MODEL_LAYER: Final = "application/vnd.ollama.image.model"
MAX_MANIFEST_BYTES: Final = 1 << 20
MAX_CONFIG_BYTES: Final = 4 << 20
MAX_LAYERS: Final = 256
MAX_BLOB_BYTES: Final = 1 << 42
LEAST_STEP: Final = 64 << 10
STEPS: Final = 200
MARGIN_BYTES: Final = 64 << 20
HTTPS_PORT, HTTP_PORT = 443, 80

STORAGE: Final[Mapping[str, tuple[str, ...]]] = {
    # Where a registry keeps its blobs: it sends us there with a redirect, and consent to it is for both.
    DEFAULT_HOST: ("dd20bb891979d25aebc8bec07b2b3bbc.r2.cloudflarestorage.com",),
}
_LOOPBACK: Final = ("127.0.0.1", "localhost")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_JOURNAL: Final = re.compile(rb"(\d{15})\n")


class Address(msgspec.Struct, frozen=True):
    """A host and a port to dial, by name. `port` 0 in a list of what is allowed: the usual ones."""

    host: str
    port: int

    def __str__(self) -> str:
        return self.host if self.port in (0, HTTPS_PORT) else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        return self.host in _LOOPBACK


def parse_address(text: str, port: int) -> Address:
    """`host` or `host:port`, in lower case; InvalidRequest for what is neither."""
    host, colon, digits = text.lower().partition(":")
    usable = not colon or (digits.isascii() and digits.isdigit() and len(digits) < 6)
    if not host or not usable or not 0 <= int(digits or port) < 65536:
        raise InvalidRequest(
            f"{text[:80]!r} is no registry's host",
            hint="write host or host:port, without https://, for example registry.example.com:5000",
        )
    return Address(host, int(digits or port))


class Source(msgspec.Struct, frozen=True):
    """Where a model is pulled from. Without `tls` only on this machine."""

    address: Address
    tls: bool
    path: str
    tag: str

    @property
    def manifest_path(self) -> str:
        return f"{self.path}/manifests/{self.tag}"

    def blob_path(self, digest: str) -> str:
        return f"{self.path}/blobs/{digest}"


def source_of(name: ModelName, *, tls_on_loopback: bool = False) -> Source:
    """Raises RemoteModelRefused for a cloud's name, InvalidRequest for a host that cannot be."""
    local_name(str(name))
    host = parse_address(name.host, HTTPS_PORT)
    tls = tls_on_loopback or not host.is_loopback
    address = parse_address(name.host, HTTPS_PORT if tls else HTTP_PORT)
    return Source(address, tls, f"/v2/{name.namespace}/{name.model}", name.tag)


def allowed_hosts(source: Source, registries: Iterable[str]) -> tuple[Address, ...]:
    """What may be dialled for one pull: the registry, its storage, and what the user lists."""
    storage = (Address(each, HTTPS_PORT) for each in STORAGE.get(source.address.host, ()))
    listed = (parse_address(each, 0) for each in registries)
    return (source.address, *storage, *listed)


def may_dial(wanted: Address, allowed: Iterable[Address]) -> bool:
    """By its very name: neither a suffix nor an address is enough."""
    usual = (HTTPS_PORT, HTTP_PORT) if wanted.is_loopback else (HTTPS_PORT,)
    return any(
        wanted.host == each.host
        and (wanted.port == each.port or (not each.port and wanted.port in usual))
        for each in allowed
    )


def is_consented(source: Source, registries: Iterable[str]) -> bool:
    """The registry is Ollama's own, or one that the user lists."""
    ours = (Address(DEFAULT_HOST, HTTPS_PORT), *(parse_address(each, 0) for each in registries))
    return may_dial(source.address, ours)


def may_reach(wanted: Address, address: str, *, listed: bool) -> bool:
    """Whether a name may mean this address: none may mean this machine but by its own name.

    What the user lists may be in a private network; a public registry's name that leads there is a trap.
    """
    found = ipaddress.ip_address(address.partition("%")[0])
    if wanted.is_loopback:
        return found.is_loopback
    if found.is_loopback or found.is_unspecified or found.is_link_local or found.is_multicast:
        return False
    return found.is_global or listed


# Manifests


class Blob(msgspec.Struct, frozen=True):
    """One part of a model."""

    kind: str
    digest: str
    size: int

    @property
    def file(self) -> str:
        """Its name in a directory."""
        return self.digest.replace(":", "-", 1)


class Manifest(msgspec.Struct, frozen=True):
    """A checked one. Every blob is in it once; the config is the last."""

    blobs: tuple[Blob, ...]
    config: Blob

    @property
    def total(self) -> int:
        return sum(each.size for each in self.blobs)

    @property
    def models(self) -> tuple[Blob, ...]:
        return tuple(each for each in self.blobs if each.kind == MODEL_LAYER)


def parse_manifest(raw: bytes, model: str) -> Manifest:
    """Raises PullFailed for what is none, RemoteModelRefused for one that names another machine."""
    if len(raw) > MAX_MANIFEST_BYTES:
        raise _bad_manifest(model, f"it has over {MAX_MANIFEST_BYTES >> 10} KiB")
    tree = _tree(raw)
    if not isinstance(tree, dict) or not isinstance(tree.get("layers"), list):
        raise _bad_manifest(model, "it is no JSON with a list of layers")
    check_local(tree, model)
    if len(tree["layers"]) > MAX_LAYERS:
        raise _bad_manifest(model, f"it has over {MAX_LAYERS} layers")
    config = _blob(tree.get("config"), model)
    blobs: dict[str, Blob] = {}
    for each in (*(_blob(layer, model) for layer in tree["layers"]), config):
        if blobs.setdefault(each.digest, each).size != each.size:
            raise _bad_manifest(model, "it gives one digest two sizes")
    if config.size > MAX_CONFIG_BYTES:
        raise _bad_manifest(model, f"its config has over {MAX_CONFIG_BYTES >> 20} MiB")
    found = Manifest(tuple(blobs.values()), config)
    if not found.models:
        raise _bad_manifest(model, "it names no model file")
    return found


def check_config(raw: bytes, model: str) -> None:
    """Raises PullFailed for a config that is none, RemoteModelRefused for one that names another machine."""
    tree = _tree(raw)
    if not isinstance(tree, dict):
        raise _bad_manifest(model, "its config is no JSON object")
    check_local(tree, model)


def check_local(tree: Mapping[str, Any], model: str) -> None:
    """Ollama would send prompts for such a model away, whatever its name."""
    if tree.get("remote_host") or tree.get("remote_model"):
        raise remote_refused(model)


def _tree(raw: bytes) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _blob(entry: object, model: str) -> Blob:
    if not isinstance(entry, dict):
        raise _bad_manifest(model, "an entry of it is no object")
    digest, size, kind = entry.get("digest"), entry.get("size"), entry.get("mediaType")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise _bad_manifest(model, "a digest in it is none")
    if type(size) is not int or not 0 <= size <= MAX_BLOB_BYTES:
        raise _bad_manifest(model, "a size in it cannot be")
    return Blob(kind if isinstance(kind, str) else "", digest, size)


def _bad_manifest(model: str, reason: str) -> PullFailed:
    return PullFailed(
        f"the registry's description of {model} cannot be used: {reason}",
        hint="nothing was downloaded; the registry is at fault, or something between it and you",
    )


# How far it is


def step_bytes(total: int) -> int:
    """How much may be lost when a pull is killed: half of a percent, or 64 KiB of a small one."""
    return max(LEAST_STEP, total // STEPS)


def decode_journal(raw: bytes, written: int, size: int) -> int:
    """Of `written` bytes of a staged file, how many can be built on; 0 where its journal is none.

    It is written by puller/fetching.py.
    """
    found = _JOURNAL.fullmatch(raw)
    done = int(found[1]) if found else 0
    return done if done <= min(written, size) else 0


def check_space(needed: int, free: int, place: str) -> None:
    """Raises PullFailed where the disk is too small."""
    if needed and free < needed + MARGIN_BYTES:
        raise PullFailed(
            f"{needed:,} bytes are to be downloaded to {place}, and {free:,} are free there "
            f"({MARGIN_BYTES >> 20} MiB of them stay so)",
            hint="free some space, or set OLLAMA_MODELS to a directory on another disk",
        )


class Meter:
    """The speed of a download, smoothed over some seconds, and how long the rest takes."""

    HALF_NS: Final = 3_000_000_000

    def __init__(self, now_ns: int, done: int, total: int) -> None:
        self.total = total
        self.done = done
        self.bytes_per_s = 0.0
        self._begun_ns = self._at_ns = now_ns
        self._counted = done

    def advance(self, now_ns: int, done: int) -> None:
        """So many bytes are here. It never goes back: what is fetched again was counted."""
        self.done = min(self.total, max(self.done, done))
        passed_ns = now_ns - self._at_ns
        if passed_ns < 100_000_000:  # too short a time to divide by
            return
        speed = (self.done - self._counted) / passed_ns * 1e9
        keep = 0.5 ** (passed_ns / self.HALF_NS) if self.bytes_per_s else 0.0
        self.bytes_per_s = keep * self.bytes_per_s + (1 - keep) * speed
        self._at_ns, self._counted = now_ns, self.done

    def elapsed_s(self, now_ns: int) -> float:
        return (now_ns - self._begun_ns) / 1e9

    @property
    def remaining_s(self) -> float | None:
        """None while nothing is known."""
        return (self.total - self.done) / self.bytes_per_s if self.bytes_per_s > 0 else None
