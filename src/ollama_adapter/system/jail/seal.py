"""The end of all opening, for a process that has what it needs and is about to be told secrets.

A runner closes everything (`close`). The front of the embedded daemon goes on reading models: it keeps to
their files (`keep_to_files`) and to the sockets it is given (`serve_only`). Each raises OSError where the
kernel cannot.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from ollama_adapter.system.jail import landlock, seccomp
from ollama_adapter.system.jail.linux import prctl

_SET_NO_NEW_PRIVS = 38


def close() -> None:
    """No thread of this process opens a file or a socket, connects, or starts a program any more."""
    prctl(_SET_NO_NEW_PRIVS, 1)
    seccomp.install_for_all_threads(seccomp.sealed_filter(seccomp.own_column()))


def keep_to_files(read: Iterable[str], write: Iterable[str]) -> None:
    """Nothing is opened but beneath these paths, as far as they exist, and nothing executed.

    Signals and traces do not reach out, either. For this thread and those it begins: before any other.
    """
    prctl(_SET_NO_NEW_PRIVS, 1)
    rules = landlock.Ruleset(landlock.abi())
    for paths, rights in ((read, landlock.READ), (write, landlock.READ | landlock.WRITE)):
        for path in paths:
            if os.path.exists(path):
                rules.allow(path, rights)
    rules.enforce()


def serve_only() -> None:
    """No thread of this process starts a program or a process, opens a socket, or connects one any more."""
    prctl(_SET_NO_NEW_PRIVS, 1)
    seccomp.install_for_all_threads(seccomp.serving_filter(seccomp.own_column(), os.getpid()))
