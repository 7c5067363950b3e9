"""Bytes and times, in words for people."""

from __future__ import annotations

from ollama_adapter.events import Footprint


def gib(number: int) -> str:
    """Bytes for people."""
    return f"{number / (1 << 30):.1f} GiB" if abs(number) >= 1 << 29 else f"{number >> 20} MiB"


def budget(room: Footprint) -> str:
    """A budget, or a part of it, for people."""
    ram = f"{gib(max(0, room.ram))} of RAM"
    return f"{ram} and {gib(max(0, room.vram))} of VRAM" if room.vram > 0 else ram


def duration(ns: int) -> str:
    """A time for people."""
    seconds = ns / 1e9
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
