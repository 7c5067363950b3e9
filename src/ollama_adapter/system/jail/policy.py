"""What a daemon may have: a frozen value that goes to the trampoline as JSON, through a pipe.

A path that is listed must exist; what is not listed is refused. `ports` are the loopback ports it may
listen on by name (the first is where the application dials); a runner's port is chosen by the kernel.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any, Self


class Level(StrEnum):
    """How much stands between the daemon and the machine, best first."""

    NAMESPACES = "namespaces"
    GUARD = "guard"
    PARTIAL = "partial"
    NONE = "none"

    @property
    def words(self) -> str:
        """How `status` and `doctor` say it."""
        return _WORDS[self]


_WORDS = {
    Level.NAMESPACES: "namespaces",
    Level.GUARD: "guard",
    Level.PARTIAL: "partial: network not enforced",
    Level.NONE: "none",
}


@dataclass(frozen=True, slots=True)
class Policy:
    """The whole of it. Zero means no limit of ours."""

    level: Level
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    execute: tuple[str, ...] = ()
    devices: tuple[str, ...] = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
    ports: tuple[int, ...] = ()
    own: tuple[str, ...] = ()  # directories of ours that are given to `uid`: the private home
    uid: int = 0  # who it becomes when we are root
    max_data_bytes: int = 0
    max_file_bytes: int = 1 << 40
    max_processes: int = 0  # counted per user
    max_files: int = 65536
    sockets: bool = True  # it may open some; else it has those that it is handed, at every level
    landlock: int = 99  # at most this version of it, to behave as on an older kernel

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises ValueError for what is no policy."""
        told: Any = json.loads(text)
        names = {each.name for each in fields(cls)}
        if not isinstance(told, dict) or set(told) - names or "level" not in told:
            raise ValueError("this is not a policy")
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in told.items()
        }
        values["level"] = Level(told["level"])
        return cls(**values)
