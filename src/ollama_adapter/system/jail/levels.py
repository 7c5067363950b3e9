"""Which level of the jail is taken: a pure decision, and the one probe that it is made from."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ollama_adapter.errors import DaemonExited, DaemonStartTimeout, NotSandboxed
from ollama_adapter.system.jail.policy import Level

TRAMPOLINE: Final = Path(__file__).with_name("trampoline.py")
PROBE_S: Final = 10.0
WISHES: Final = ("enforced", "partial", "none")


@dataclass(frozen=True, slots=True)
class Facts:
    """What holds here. A reason is why something cannot be had, and empty where it can."""

    landlock: int = 0
    seccomp: str = ""
    notify: str = ""
    namespaces: str = ""
    elsewhere: str = ""  # not Linux, or a processor we have no table for


@dataclass(frozen=True, slots=True)
class Decision:
    """The level to use, and why not a better one."""

    level: Level
    reasons: tuple[str, ...] = ()


def decide(
    facts: Facts,
    wish: str = "enforced",
    *,
    without: tuple[Level, ...] = (),
    sockets: bool = True,
) -> Decision:
    """The best level that holds here. Raises NotSandboxed where none does and none was asked for.

    `wish`: "enforced" takes `namespaces` or `guard`, "partial" also less than that (the network is then
    not enforced), "none" no jail at all. `without` leaves levels out: they have been tried in vain. For a
    program without `sockets` there is nothing to guard: `partial` enforces all of it.
    """
    if wish not in WISHES:
        raise NotSandboxed(f"sandbox is one of {', '.join(WISHES)}, not {wish!r}")
    if wish == "none":
        return Decision(Level.NONE, ("switched off by the user",))
    reasons: list[str] = []
    for level, missing in _needs(facts):
        if level is Level.PARTIAL and wish != "partial" and sockets:
            break
        if level is Level.GUARD and not sockets:
            continue
        if not missing and level not in without:
            return Decision(level, tuple(reasons))
        reasons.append(f"{level}: {missing or 'it failed'}")
    if wish == "partial" and facts.elsewhere:
        return Decision(Level.NONE, tuple(reasons))
    raise NotSandboxed(
        f"no sandbox can be enforced here ({'; '.join(reasons)})",
        hint='sandbox="partial" goes on without an enforced network, sandbox="none" without a sandbox',
    )


def _needs(facts: Facts) -> list[tuple[Level, str]]:
    """Each level, best first, and what it lacks here."""
    common = facts.elsewhere or facts.seccomp or ("" if facts.landlock else "no Landlock")
    return [
        (Level.NAMESPACES, common or facts.namespaces),
        (Level.GUARD, common or facts.notify),
        (Level.PARTIAL, common),
    ]


@functools.cache
def probe() -> Facts:
    """Ask the machine, until it has answered once. Blocks for some 40 ms the first time.

    Raises DaemonExited and DaemonStartTimeout where it did not answer and may, NotSandboxed where it cannot
    be asked: that no jail is known to hold is no reason to go without one.
    """
    if sys.platform != "linux":
        return Facts(elsewhere=f"not kernel-enforced on {sys.platform}")
    unknown = "it is not known which sandbox can be enforced here"
    try:
        told = subprocess.run(
            [sys.executable, "-I", "-S", str(TRAMPOLINE), "probe"],
            env={},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PROBE_S,
            check=True,
        )
        return Facts(**json.loads(told.stdout))
    except subprocess.TimeoutExpired:
        raise DaemonStartTimeout(
            f"{unknown}: the process that tries it took over {PROBE_S:g} s", hint="try again"
        ) from None
    except subprocess.CalledProcessError as error:
        if error.returncode > 0:
            raise NotSandboxed(f"{unknown}: the process that tries it broke") from None
        raise DaemonExited(
            f"{unknown}: the process that tries it was ended by signal {-error.returncode}",
            returncode=error.returncode,
            hint="try again",
        ) from None
    except (OSError, ValueError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else type(error).__name__
        raise NotSandboxed(f"{unknown}: {reason}", hint="try again with memory to spare") from None
