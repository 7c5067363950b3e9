"""Which daemon, where, and how it is kept: DaemonConfig, and what an OLLAMA_HOST means."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from ollama_adapter.conversion import positive, typed
from ollama_adapter.errors import ConfigError, NotLoopback

LOOPBACK: Final = "127.0.0.1"
DEFAULT_PORT: Final = 11434
HTTP_PORT: Final = 80  # what Ollama takes, too, for an OLLAMA_HOST that begins with http://


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
            raise ConfigError(
                f"daemon.port: {self.port} is not a port", hint="use a number from 1 to 65535"
            )
        seconds = [each.name for each in dataclasses.fields(self) if each.name.endswith("_s")]
        positive(self, *seconds, "restart_tries")
