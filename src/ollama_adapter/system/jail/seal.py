"""The end of all opening, for a process that has what it needs and is about to be told secrets."""

from __future__ import annotations

from ollama_adapter.system.jail import seccomp
from ollama_adapter.system.jail.linux import prctl

_SET_NO_NEW_PRIVS = 38


def close() -> None:
    """No thread of this process opens a file or a socket, connects, or starts a program any more."""
    prctl(_SET_NO_NEW_PRIVS, 1)
    seccomp.install_for_all_threads(seccomp.sealed_filter(seccomp.own_column()))
