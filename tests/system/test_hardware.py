"""What a machine has, read from files that say so; what cannot be read is unknown, and no error."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from ollama_adapter.config import PoolConfig
from ollama_adapter.core.tiers import GIB, Hardware, judge_tier
from ollama_adapter.system.hardware import EXTRA, cores, detect, hardware

Machine = Callable[[dict[str, str]], Path]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine that consists of some files."""

    def make(files: dict[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return make


def test_this_machine() -> None:
    found = hardware()
    assert found is hardware()
    assert 0 < found.ram_bytes <= psutil.virtual_memory().total
    assert 1 <= found.cores <= (os.cpu_count() or 1)
    assert judge_tier(found, PoolConfig()).reason


def test_a_machine_without_any_file(tmp_path: Path) -> None:
    assert detect(tmp_path, total=5) == Hardware(5, 0, cores(tmp_path), ())


SECOND = "0::/user/app\n"
FIRST = "4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n1:name=systemd:/\n0::/\n"


@pytest.mark.parametrize(
    ("files", "ram"),
    [
        ({}, 64 * GIB),
        ({"proc/self/cgroup": SECOND}, 64 * GIB),
        (
            {
                "proc/self/cgroup": SECOND,
                "sys/fs/cgroup/user/app/memory.max": "max\n",
                "sys/fs/cgroup/user/memory.max": f"{8 * GIB}\n",
            },
            8 * GIB,
        ),
        (
            {
                "proc/self/cgroup": SECOND,
                "sys/fs/cgroup/user/app/memory.max": f"{4 * GIB}\n",
                "sys/fs/cgroup/user/memory.max": f"{8 * GIB}\n",
            },
            4 * GIB,
        ),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{2 * GIB}\n"}, 2 * GIB),
        # inside a container, which does not see the directories around its own
        ({"proc/self/cgroup": SECOND, "sys/fs/cgroup/memory.max": f"{3 * GIB}\n"}, 3 * GIB),
        ({"proc/self/cgroup": "0::/../x\n", "sys/fs/cgroup/memory.max": f"{GIB}\n"}, GIB),
        (
            {
                "proc/self/cgroup": FIRST,
                "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": f"{6 * GIB}\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{(1 << 63) - 4096}\n",
            },
            6 * GIB,
        ),
        (
            {
                "proc/self/cgroup": FIRST,
                "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{(1 << 63) - 4096}\n",
            },
            64 * GIB,
        ),
        ({"proc/self/cgroup": SECOND, "sys/fs/cgroup/memory.max": "128 MB?\n"}, 128),
        ({"proc/self/cgroup": SECOND, "sys/fs/cgroup/memory.max": "\0\xff"}, 64 * GIB),
        ({"proc/self/cgroup": "nonsense\n::\n"}, 64 * GIB),
        ({"proc/self/cgroup": SECOND, "sys/fs/cgroup/memory.max/x": ""}, 64 * GIB),
    ],
)
def test_a_containers_memory(machine: Machine, files: dict[str, str], ram: int) -> None:
    assert detect(machine(files), total=64 * GIB).ram_bytes == ram


def test_a_container_on_a_machine_of_unknown_memory(machine: Machine) -> None:
    files = {"proc/self/cgroup": SECOND, "sys/fs/cgroup/memory.max": f"{GIB}\n"}
    assert detect(machine(files), total=0).ram_bytes == GIB


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"proc/self/cgroup": SECOND, "sys/fs/cgroup/user/cpu.max": "100000 100000\n"}, 1),
        ({"proc/self/cgroup": SECOND, "sys/fs/cgroup/user/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": SECOND, "sys/fs/cgroup/user/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": SECOND, "sys/fs/cgroup/user/cpu.max": "100000 0\n"}, None),
        (
            {
                "proc/self/cgroup": FIRST,
                "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "100000\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000\n",
            },
            1,
        ),
        (
            {
                "proc/self/cgroup": FIRST,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
    ],
)
def test_a_containers_processors(
    machine: Machine, files: dict[str, str], expected: int | None, tmp_path: Path
) -> None:
    assert cores(machine(files)) == (expected or cores(tmp_path / "nothing"))


def test_an_amd_card(machine: Machine) -> None:
    files = {
        "sys/class/drm/card0/device/mem_info_vram_total": f"{512 << 20}\n",  # in the processor
        "sys/class/drm/card0-DP-1/device/mem_info_vram_total": f"{24 * GIB}\n",  # a connector
        "sys/class/drm/card1/device/mem_info_vram_total": f"{24 * GIB}\n",
        "sys/class/drm/card1/device/product_name": "Radeon X\n",
        "sys/class/drm/card2/device/mem_info_vram_total": f"{8 * GIB}\n",
        "sys/class/drm/card3/device/mem_info_vram_total": "what?\n",
    }
    found = detect(machine(files), total=64 * GIB)
    assert (found.vram_bytes, found.gpus) == (32 * GIB, ("Radeon X", "AMD GPU"))
    assert not found.unified


class NVMLError(Exception):
    pass


class NotSupported(NVMLError):
    pass


class Nvml:
    """NVIDIA's library with some cards; one of no size works in RAM, and one that is an error is ill."""

    NVMLError = NVMLError
    NVMLError_NotSupported = NotSupported

    def __init__(self, *cards: int | Exception | None, broken: bool = False) -> None:
        self._cards = cards
        self._broken = broken
        self.open = 0

    def nvmlInit(self) -> None:
        if self._broken:
            raise NVMLError
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1
        raise NVMLError  # it does not matter any more

    def nvmlDeviceGetCount(self) -> int:
        return len(self._cards)

    def nvmlDeviceGetHandleByIndex(self, number: int) -> int:
        return number

    def nvmlDeviceGetName(self, number: int) -> str | bytes:
        return f"RTX {number}" if number else b"RTX 0"

    def nvmlDeviceGetMemoryInfo(self, number: int) -> Any:
        card = self._cards[number]
        if isinstance(card, Exception):
            raise card
        if card is None:
            raise NotSupported
        return SimpleNamespace(total=card)


def test_nvidias_cards(tmp_path: Path) -> None:
    nvml = Nvml(24 * GIB, 12 * GIB)
    found = detect(tmp_path, total=64 * GIB, nvml=nvml)
    assert (found.vram_bytes, found.gpus) == (36 * GIB, ("RTX 0", "RTX 1"))
    assert nvml.open == 0


def test_a_card_that_works_in_ram(tmp_path: Path) -> None:
    found = detect(tmp_path, total=128 * GIB, nvml=Nvml(None))
    assert found == Hardware(128 * GIB, 128 * GIB, cores(tmp_path), ("RTX 0",), unified=True)


def test_a_card_that_has_fallen_off_its_bus(tmp_path: Path) -> None:
    found = detect(tmp_path, total=64 * GIB, nvml=Nvml(24 * GIB, NVMLError()))
    assert (found.vram_bytes, found.gpus) == (24 * GIB, ("RTX 0",))


def test_no_driver(tmp_path: Path) -> None:
    assert detect(tmp_path, total=GIB, nvml=Nvml(broken=True)).gpus == ()


NVIDIA = {"proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t RTX 9\nIRQ: 1\n"}


def test_a_card_that_nobody_can_be_asked_about(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    found = detect(machine(NVIDIA), total=64 * GIB)
    assert (found.vram_bytes, found.gpus, found.unified) == (0, (f"RTX 9 ({EXTRA})",), False)
    assert "an unknown amount on RTX 9" in judge_tier(found, PoolConfig()).reason


def test_where_no_driver_is_loaded_its_library_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported: list[str] = []

    class Watch:
        def find_spec(self, name: str, *_: Any) -> None:
            imported.append(name)

    monkeypatch.setattr("sys.meta_path", [Watch(), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    detect(tmp_path, total=GIB)
    assert "pynvml" not in imported


def test_apples_machines(tmp_path: Path) -> None:
    found = detect(tmp_path, total=32 * GIB, apple=True)
    assert (found.ram_bytes, found.vram_bytes, found.unified) == (32 * GIB, 32 * GIB, True)


def test_the_kernels_own_figure(machine: Machine) -> None:
    files = {"proc/meminfo": "MemTotal:        1024 kB\nMemFree:          512 kB\n"}
    assert detect(machine(files)).ram_bytes == 1 << 20


def test_memory_without_the_kernels_figure(tmp_path: Path) -> None:
    assert detect(tmp_path).ram_bytes == psutil.virtual_memory().total


def test_memory_that_cannot_be_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise psutil.Error

    monkeypatch.setattr(psutil, "virtual_memory", refuse)
    assert detect(tmp_path).ram_bytes == 0
