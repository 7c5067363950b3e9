"""No process that sees a prompt leaves its memory behind when it crashes.

Said by the keeper before it starts anything, at every level, and by the embedded daemon for those who run
it themselves. The limit and the filter are inherited by all that is started, the runners too. The process
stays one that may be looked into (PR_SET_DUMPABLE): the guard has to.
"""

from __future__ import annotations

import sys

_FILTER = "/proc/self/coredump_filter"


def forbid() -> None:
    """For this process and what it starts. Raises OSError where that cannot be had.

    On Linux a limit of 0 still feeds a handler behind a pipe; a limit of 1 byte does not, nor does it make
    a file. Where somebody has set 0 for good, the filter keeps all memory out of what the handler gets.
    """
    if sys.platform == "win32":
        return
    import resource

    wanted = 1 if sys.platform == "linux" else 0
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))
    if sys.platform == "linux":
        try:
            with open(_FILTER, "w") as file:
                file.write("0")
        except FileNotFoundError:
            pass  # a kernel that cannot dump has no filter
