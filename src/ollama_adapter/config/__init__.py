"""Settings: frozen, nested, checked when they are built.

A part of the program gets its own slice, never the whole. `Config.parse` is pure: it turns a TOML text
and a mapping of environment variables into a Config; `system.settings` alone reads those from the
machine, and only where no Config was given. A later source wins: defaults, file, environment.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ollama_adapter.config.daemon import (
    DEFAULT_PORT,
    HTTP_PORT,
    LOOPBACK,
    DaemonConfig,
    DaemonMode,
    Sandbox,
    parse_host,
)
from ollama_adapter.config.pool import (
    PoolConfig,
    Pulling,
    Reloading,
    Tier,
)
from ollama_adapter.config.stream import Rung, StreamConfig
from ollama_adapter.conversion import build, positive, put, typed
from ollama_adapter.errors import ConfigError

__all__ = [
    "Config",
    "DEFAULT_PORT",
    "DaemonConfig",
    "DaemonMode",
    "ENV_PREFIX",
    "EnergyConfig",
    "FrameConfig",
    "HTTP_PORT",
    "LOOPBACK",
    "PoolConfig",
    "Pulling",
    "Reloading",
    "Rung",
    "Sandbox",
    "StreamConfig",
    "Tier",
    "parse_host",
]

ENV_PREFIX: Final = "OLLAMA_ADAPTER_"


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
            raise ConfigError(f"frames.rate_hz is {self.rate_hz}, and must be from 1 to 1000")


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
    def parse(
        cls, toml: str = "", env: Mapping[str, str] | None = None, *, file: str = ""
    ) -> Config:
        """A Config from the text of a settings file and from environment variables; pure.

        OLLAMA_HOST, OLLAMA_MODELS and OLLAMA_KEEP_ALIVE mean what they mean to Ollama. Ours are
        OLLAMA_ADAPTER_SLICE_FIELD, for example OLLAMA_ADAPTER_ENERGY_TIER=low. `file` is where the text is
        from, for the error if it is not TOML.
        """
        tree = _from_toml(toml, file) if toml else {}
        for path, text in _from_environment(env or {}):
            put(tree, path, text)
        return typing.cast("Config", build(cls, tree, ()))


def _from_toml(text: str, file: str) -> dict[str, Any]:
    import tomllib  # here and not above: nothing is imported before it is needed

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        why = str(error)
    except ValueError:
        why = "a number in it is too long"
    except RecursionError:
        why = "it is nested too deep"
    name = f"the settings file {file}" if file else "the settings file"
    raise ConfigError(
        f"{name} is not TOML: {why}", hint='text in it needs quotes: model = "llama3.2:1b"'
    )


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
