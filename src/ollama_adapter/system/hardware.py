"""What this machine has: memory, processors, GPUs. Looked at when asked, and never an error.

Memory and processors are those that we may use: a container's limits (cgroups, both versions, at every
level) count before what the machine has. Of GPUs, NVIDIA's are asked through nvidia-ml-py where that is
installed; AMD's driver writes into files what they have. One that is part of the processor counts as none:
Ollama leaves it alone. Where a GPU works in the machine's own RAM (Apple's, some of NVIDIA's), there is no
other memory to share out: it is `unified`. What cannot be read is 0: `core.tiers` says that it is unknown.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

from ollama_adapter.core.tiers import GIB, Hardware

ROOT: Final = Path("/")
UNLIMITED: Final = 1 << 60  # what the first version of cgroups says where there is no limit
GPU_BYTES: Final = GIB  # with less it is part of a processor, and the rest of its memory is RAM
APPLE: Final = sys.platform == "darwin" and os.uname().machine == "arm64"
EXTRA: Final = "memory unknown without: pip install 'ollama-adapter[gpu]'"


@cache
def hardware() -> Hardware:
    """This machine, looked at once."""
    return detect()


def detect(
    root: Path = ROOT, *, total: int | None = None, nvml: Any = None, apple: bool = APPLE
) -> Hardware:
    """The machine whose files are below `root`, with `total` bytes of RAM, and NVIDIA's library `nvml`."""
    ram = _ram(root, total)
    if apple:
        return Hardware(ram, ram, cores(root), ("Apple GPU",), unified=True)
    cards = [*_nvidia(root, nvml), *_amd(root)]
    unified = bool(cards) and all(size is None for _, size in cards)
    gpus = tuple(name for name, _ in cards)
    vram = sum(size or 0 for _, size in cards)
    return Hardware(ram, ram if unified else vram, cores(root), gpus, unified)


def cores(root: Path = ROOT) -> int:
    """How many processors we may use at a time: by affinity, and by a container's quota."""
    usable = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        usable = len(os.sched_getaffinity(0))
    limits = [usable]
    for directory in _cgroups(root, "cpu"):
        quota, period = _words(directory / "cpu.max", 2)
        if not quota:
            (quota,) = _words(directory / "cpu.cfs_quota_us", 1)
            (period,) = _words(directory / "cpu.cfs_period_us", 1)
        if quota.isdigit() and period.isdigit() and int(period):
            limits.append(max(1, int(quota) // int(period)))
    return min(limits)


def _ram(root: Path, total: int | None) -> int:
    if total is None:
        total = _physical(root)
    for directory in _cgroups(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            (limit,) = _words(directory / name, 1)
            if limit.isdigit() and 0 < int(limit) < UNLIMITED:
                total = min(total or UNLIMITED, int(limit))
    return total


def _physical(root: Path) -> int:
    if match := re.search(r"^MemTotal: +(\d+) kB$", _read(root / "proc/meminfo"), re.MULTILINE):
        return int(match[1]) * 1024
    try:
        import psutil  # here and not above: on Linux it is not needed for this
    except (ImportError, OSError):  # there may be no file left to open
        return 0
    with contextlib.suppress(psutil.Error, OSError, RuntimeError):
        return int(psutil.virtual_memory().total)
    return 0


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """The directories of the groups that we are in, from our own to the outermost.

    Inside a container our own path may not be there: its outermost directory is then ours.
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if number != "0" and controller not in names.split(","):
            continue
        mount = root / "sys/fs/cgroup"
        if number != "0":
            mount /= names if (mount / names).is_dir() else controller
        own = mount / path.lstrip("/")
        if ".." in own.parts:  # of a process outside of its own container
            own = mount
        for directory in (own, *own.parents):
            if directory.is_relative_to(mount):
                yield directory


def _nvidia(root: Path, nvml: Any) -> list[tuple[str, int | None]]:
    """Each card and its memory: None where it works in RAM, 0 where that is unknown."""
    seen = [
        match[1].strip()
        for path in sorted(root.glob("proc/driver/nvidia/gpus/*/information"))
        if (match := re.search(r"^Model:(.*)$", _read(path), re.MULTILINE))
    ]
    if not seen and nvml is None and os.name != "nt":  # not even a driver: nothing is imported
        return []
    unknown: list[tuple[str, int | None]] = [(f"{each} ({EXTRA})", 0) for each in seen]
    if nvml is None:
        try:
            import pynvml as nvml
        except ImportError:
            return unknown
    return _ask_nvml(nvml) or unknown


def _ask_nvml(nvml: Any) -> list[tuple[str, int | None]]:
    cards: list[tuple[str, int | None]] = []
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:  # no library, or no driver
        return cards
    try:
        for number in range(nvml.nvmlDeviceGetCount()):
            card = nvml.nvmlDeviceGetHandleByIndex(number)
            name = nvml.nvmlDeviceGetName(card)
            size: int | None = None
            with contextlib.suppress(nvml.NVMLError_NotSupported):
                size = int(nvml.nvmlDeviceGetMemoryInfo(card).total)
            cards.append((name.decode() if isinstance(name, bytes) else str(name), size))
    except nvml.NVMLError:  # one that has fallen off its bus
        pass
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()
    return cards


def _amd(root: Path) -> list[tuple[str, int | None]]:
    cards: list[tuple[str, int | None]] = []
    for directory in sorted(root.glob("sys/class/drm/card*")):
        if not re.fullmatch(r"card\d+", directory.name):  # else a connector of one
            continue
        (size,) = _words(directory / "device/mem_info_vram_total", 1)
        if size.isdigit() and int(size) >= GPU_BYTES:
            name = _read(directory / "device/product_name").strip()
            cards.append((name or "AMD GPU", int(size)))
    return cards


def _words(path: Path, count: int) -> list[str]:
    """The first words of a file; "" for each that is not there."""
    return [*_read(path).split(), *("",) * count][:count]


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""
