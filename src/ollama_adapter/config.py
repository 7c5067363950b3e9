"""Settings: frozen, nested, checked when they are built.

A part of the program gets its own slice, never the whole. `Config.parse` is pure: it turns a TOML text
and a mapping of environment variables into a Config; `system.settings` alone reads those from the
machine, and only where no Config was given. A later source wins: defaults, file, environment.
"""

from __future__ import annotations

import dataclasses
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from ollama_adapter.conversion import build, not_negative, positive, put, typed
from ollama_adapter.errors import ConfigError, NotLoopback

LOOPBACK: Final = "127.0.0.1"
DEFAULT_PORT: Final = 11434
HTTP_PORT: Final = 80  # what Ollama takes, too, for an OLLAMA_HOST that begins with http://
ENV_PREFIX: Final = "OLLAMA_ADAPTER_"


class Tier(StrEnum):
    """A class of machine: what throughput to expect and how much memory to use."""

    LOW = "low"
    MID = "mid"
    HIGH = "high"


class Sandbox(StrEnum):
    """What must stand between a spawned daemon and the machine (docs/jail.md).

    ENFORCED takes the best level that the kernel offers, or refuses to start; PARTIAL goes on without an
    enforced network; NONE without a sandbox.
    """

    ENFORCED = "enforced"
    PARTIAL = "partial"
    NONE = "none"


class DaemonMode(StrEnum):
    """Which daemons may be used. AUTO tries to adopt, then the installed Ollama, then the embedded one."""

    AUTO = "auto"
    ADOPT = "adopt"
    OLLAMA = "ollama"
    EMBEDDED = "embedded"


class Rung(StrEnum):
    """What may be done to a runner that does not come to rest after an abort (docs/streams.md).

    UNLOAD asks the daemon to unload the model; RESTART ends the process that runs it, which a daemon of
    ours starts anew for the next request.
    """

    UNLOAD = "unload"
    RESTART = "restart"


def parse_host(value: str) -> tuple[str, int]:
    """An OLLAMA_HOST value as (127.0.0.1, port).

    A bind address such as 0.0.0.0, and `localhost`, mean 127.0.0.1. Anything else is refused with
    NotLoopback: nothing is ever resolved.
    """
    text = value.strip().strip("\"'").strip()
    scheme, separator, rest = text.partition("://")
    if separator and scheme.lower() != "http":
        raise ConfigError(
            f"the scheme {scheme!r} cannot be used for a local daemon",
            hint="write host:port, for example 127.0.0.1:11434",
        )
    authority = (rest if separator else text).split("/", 1)[0]
    host, port = _split_port(authority, HTTP_PORT if separator else DEFAULT_PORT)
    if host.lower() not in ("", LOOPBACK, "0.0.0.0", "localhost", "::", "::1"):
        raise NotLoopback(
            f"the daemon's address {host} is not on this machine",
            hint="prompts never leave this machine: set OLLAMA_HOST to 127.0.0.1:PORT or unset it",
        )
    return LOOPBACK, port


def _split_port(authority: str, default: int) -> tuple[str, int]:
    if authority.startswith("["):
        host, _, tail = authority[1:].partition("]")
        text = tail.removeprefix(":")
    elif authority.count(":") > 1:
        host, text = authority, ""
    else:
        host, _, text = authority.partition(":")
    if not text:
        return host, default
    if not (text.isascii() and text.isdigit() and len(text) < 6 and 0 < int(text) < 65536):
        raise ConfigError(f"{text[:20]!r} is not a port", hint="use a number from 1 to 65535")
    return host, int(text)


@dataclass(frozen=True, slots=True)
class DaemonConfig:
    host: str = LOOPBACK
    """Where a daemon to adopt is looked for: always 127.0.0.1."""
    port: int = DEFAULT_PORT
    """Its port."""
    mode: DaemonMode = DaemonMode.AUTO
    """Which daemons may be used."""
    models_dir: str = ""
    """The model store; "" means OLLAMA_MODELS, else ~/.ollama/models if it exists, else ours."""
    ollama_path: str = ""
    """The `ollama` program to spawn; "" looks on PATH."""
    adopt_uids: tuple[int, ...] = ()
    """Users, besides us, root and `ollama`, whose daemon may be adopted, by their numbers."""
    sandbox: Sandbox = Sandbox.ENFORCED
    """What must stand between a spawned daemon and the machine."""
    probe_timeout_s: float = 2.0
    """How long one health request may take."""
    start_timeout_s: float = 60.0
    """How long a spawned daemon may take to become ready."""
    stop_grace_s: float = 5.0
    """How long a spawned daemon may take to end before it is killed."""
    probe_every_s: float = 5.0
    """How often a daemon is asked whether it lives, while no tokens prove it."""
    restart_base_s: float = 0.25
    """The bound of the first delay before a restart; it doubles with each failure in a row."""
    restart_cap_s: float = 30.0
    """The largest bound."""
    restart_tries: int = 5
    """How many failures in a row before giving up."""
    stable_s: float = 30.0
    """How long a daemon must have run for earlier failures to be forgotten."""

    def __post_init__(self) -> None:
        typed(self)
        if self.host != LOOPBACK:
            raise NotLoopback(f"the daemon's address {self.host} is not {LOOPBACK}")
        if not 0 < self.port < 65536:
            raise ConfigError(f"{self.port} is not a port", hint="use a number from 1 to 65535")
        seconds = [each.name for each in dataclasses.fields(self) if each.name.endswith("_s")]
        positive(self, *seconds, "restart_tries")


@dataclass(frozen=True, slots=True)
class PoolConfig:
    keep_alive: str | float = "5m"
    """How long a model stays in memory after its last use; sent with every request."""
    load_s: float = 600.0
    """How long a model may take to be loaded."""

    def __post_init__(self) -> None:
        typed(self)
        positive(self, "load_s")


@dataclass(frozen=True, slots=True)
class StreamConfig:
    connect_s: float = 5.0
    """Limit for the connection."""
    first_token_s: float = 600.0
    """Limit from the request to its first token: load and prompt evaluation send no bytes."""
    next_token_s: float = 120.0
    """Limit between two tokens."""
    buffer_tokens: int = 256
    """How many tokens may wait for a slow reader before the daemon is made to wait."""
    buffer_bytes: int = 1 << 20
    """The same, in characters of text."""
    reader_s: float = 300.0
    """How long the daemon is made to wait for a reader that has stopped reading; 0: for ever."""
    abort_s: float = 10.0
    """How long an abort, and each rung of its ladder, waits for the runner to come to rest."""
    abort_ladder: tuple[Rung, ...] = ()
    """What is done, in this order, while the runner does not come to rest."""
    resume_tries: int = 3
    """How often one answer may go on after an interruption; 0: it ends at the first one."""
    resume_s: float = 60.0
    """Limit from an interruption until it goes on: a daemon and a model may have to start meanwhile."""
    resume_tokens: int = 2048
    """The longest part of an answer that is computed once more in order to go on."""
    cache_bytes: int = 16 << 20
    """Memory for whole answers, given again when no daemon can be had; 0: none is kept."""
    cache_s: float = 3600.0
    """How old such an answer may be."""

    def __post_init__(self) -> None:
        typed(self)
        may_be_zero = ("reader_s", "resume_tries", "resume_tokens", "cache_bytes")
        names = [each.name for each in dataclasses.fields(self) if each.name != "abort_ladder"]
        positive(self, *(each for each in names if each not in may_be_zero))
        not_negative(self, *may_be_zero)


@dataclass(frozen=True, slots=True)
class EnergyConfig:
    profile: str = "fnd-002/2"
    """Which set of parameters maps tokens to energy."""
    tier: Tier = Tier.MID
    """Which class of machine the velocity is measured against."""

    def __post_init__(self) -> None:
        typed(self)


@dataclass(frozen=True, slots=True)
class FrameConfig:
    rate_hz: int = 60
    """Frames per second."""

    def __post_init__(self) -> None:
        typed(self)
        if not 1 <= self.rate_hz <= 1000:
            raise ConfigError(f"rate_hz is {self.rate_hz}, and must be from 1 to 1000")


@dataclass(frozen=True, slots=True)
class Config:
    daemon: DaemonConfig = field(default_factory=DaemonConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)
    energy: EnergyConfig = field(default_factory=EnergyConfig)
    frames: FrameConfig = field(default_factory=FrameConfig)
    shutdown_s: float = 10.0
    """How long closing everything may take."""
    model: str = ""
    """The model of the command where none is named; "" means the one that comes with the package."""

    def __post_init__(self) -> None:
        typed(self)
        positive(self, "shutdown_s")

    @classmethod
    def parse(cls, toml: str = "", env: Mapping[str, str] | None = None) -> Config:
        """A Config from the text of a settings file and from environment variables; pure.

        OLLAMA_HOST, OLLAMA_MODELS and OLLAMA_KEEP_ALIVE mean what they mean to Ollama. Ours are
        OLLAMA_ADAPTER_SLICE_FIELD, for example OLLAMA_ADAPTER_ENERGY_TIER=low.
        """
        try:
            tree: dict[str, Any] = tomllib.loads(toml)
        except (
            ValueError,
            RecursionError,
        ) as error:  # a number of 5,000 digits is no TOMLDecodeError
            raise ConfigError(f"the settings file is not TOML: {error}") from error
        for path, text in _from_environment(env or {}):
            put(tree, path, text)
        return typing.cast("Config", build(cls, tree, ()))


def _from_environment(env: Mapping[str, str]) -> list[tuple[tuple[str, ...], Any]]:
    found: list[tuple[tuple[str, ...], Any]] = []
    if env.get("OLLAMA_HOST", "").strip():
        host, port = parse_host(env["OLLAMA_HOST"])
        found += [(("daemon", "host"), host), (("daemon", "port"), port)]
    if env.get("OLLAMA_MODELS", "").strip():
        found.append((("daemon", "models_dir"), env["OLLAMA_MODELS"].strip().strip("\"'")))
    if env.get("OLLAMA_KEEP_ALIVE", "").strip():
        found.append((("pool", "keep_alive"), env["OLLAMA_KEEP_ALIVE"].strip()))
    slices = {each.name: each for each in dataclasses.fields(Config)}
    for name, text in env.items():
        if not name.startswith(ENV_PREFIX):
            continue
        path = name.removeprefix(ENV_PREFIX).lower()
        head, _, rest = path.partition("_")
        found.append((((head, rest) if rest and head in slices else (path,)), text))
    return found
