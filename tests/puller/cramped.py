"""A pull into a place that is too small; run as a script, in namespaces and under limits of its own.

argv: a directory, and which way it is too small: `small` is a file system that never had the room, `filled`
one that somebody else fills meanwhile, `limited` a limit on the size of a file. How the pull ended goes to
standard output as JSON.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

from ollama_adapter.config import PoolConfig
from ollama_adapter.core.backoff import BackoffPolicy
from ollama_adapter.errors import AdapterError
from ollama_adapter.events import PullProgress
from ollama_adapter.puller.flight import Patience
from ollama_adapter.puller.pull import Puller
from ollama_adapter.system.clock import SystemClock
from ollama_adapter.system.scope import TaskScope
from tests.embedded.ggufs import gguf
from tests.registry.serving import Fault, running

SIZE = 8 << 20
ROOM = SIZE + (72 << 20)
NEWNS, NEWUSER = 0x20000, 0x10000000
WEIGHTS = gguf({"general.architecture": "llama"}, {"w": ((SIZE // 4,), bytes(SIZE))})
libc = ctypes.CDLL(None, use_errno=True)


def mount(place: Path, size: int) -> None:
    """A file system of so many bytes, which nobody else sees."""
    uid, gid = os.geteuid(), os.getegid()
    check(libc.unshare(NEWNS | (NEWUSER if uid else 0)))
    if uid:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    check(libc.mount(b"none", b"/", None, ctypes.c_ulong(1 << 14 | 1 << 18), None))
    data = f"mode=0755,size={size}".encode()
    check(libc.mount(b"tmpfs", os.fsencode(place), b"tmpfs", ctypes.c_ulong(0), data))


def check(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def fill(place: Path) -> None:
    """All that is left."""
    with open(place / "ballast", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 20))
        except OSError:
            return


async def pull(place: Path, way: str) -> dict[str, Any]:
    scope = TaskScope()
    told: dict[str, Any] = {"error": "", "hint": "", "done": 0}

    def watch(progress: PullProgress) -> None:
        told["done"] = progress.done_bytes
        if (
            way == "filled"
            and progress.done_bytes >= SIZE // 2
            and not (place / "ballast").exists()
        ):
            fill(place)

    with running() as registry:
        name = registry.add("big", WEIGHTS)
        if way == "filled":
            registry.faults = [Fault("truncates", at=SIZE // 2 + (64 << 10))]
        config = PoolConfig(registries=(registry.host,))
        patience = Patience(backoff=BackoffPolicy(base_s=0.01, cap_s=0.02, tries=3))
        puller = Puller(place / "models", config, scope, SystemClock(), patience=patience)
        try:
            await puller.pull(name, watch)
        except AdapterError as error:
            told |= {"error": f"{type(error).__name__}: {error}", "hint": error.hint}
        told["blobs asked for"] = sum("/blobs/" in path for path, _ in registry.requests)
        if way == "filled":  # and when there is room again, it goes on
            (place / "ballast").unlink()
            reached = told["done"]
            before = len(registry.served)
            await puller.pull(name)
            told["lost"] = reached - registry.served[before].start
        await scope.aclose()
    told["models"] = len(list((place / "models" / "manifests").rglob("latest")))
    return told


def main() -> None:
    place, way = Path(sys.argv[1]), sys.argv[2]
    if way == "limited":
        resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE // 2, SIZE // 2))
    else:
        mount(place, ROOM if way == "filled" else ROOM // 2)
    print(json.dumps(asyncio.run(pull(place, way))))


if __name__ == "__main__":
    main()
