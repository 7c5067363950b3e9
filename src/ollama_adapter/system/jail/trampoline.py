"""Takes away, then becomes the daemon: run by the keeper as a script, with `-I -S`.

Its order (argv, environment, directory, policy) comes through standard input, which is a pipe; argv[1]
is a socket to the keeper, and what follows are the numbers of descriptors that the daemon is given. Through
the socket it tells why it failed, hands over the guard's descriptor, and closes it by becoming the daemon.
On the first error of any step it ends, and nothing runs. With `probe` instead of a socket it tells what can
be had here. It is started for every daemon: what costs time to import (json, typing, socket, signal) is not
used here.
"""

from __future__ import annotations

import _socket
import marshal
import os
import select
import sys


def find_siblings() -> None:
    """The package's own __init__ would load all of it: a package without one stands in."""
    package = type(sys)("ollama_adapter")
    here = os.path.abspath(__file__)
    package.__path__ = [os.path.dirname(os.path.dirname(os.path.dirname(here)))]
    sys.modules["ollama_adapter"] = package


if __name__ == "__main__":
    find_siblings()

from ollama_adapter.system.jail import confine, namespaces, view  # noqa: E402
from ollama_adapter.system.jail.linux import set_signal  # noqa: E402

TYPE_CHECKING = False  # as typing's, whose import would cost more than all of this
if TYPE_CHECKING:
    from typing import Any, NoReturn

_HANGUP, _INTERRUPT, _QUIT, _PIPE, _TERMINATE, _FILE_SIZE = 1, 2, 3, 13, 15, 25


class Trampoline:
    """One order, carried out."""

    def __init__(self, order: dict[str, Any], keeper: _socket.socket) -> None:
        self._order = order
        self._policy: dict[str, Any] = order["policy"]
        self._keeper = keeper

    def jump(self) -> NoReturn:
        """Become the daemon, or tell why not and end."""
        try:
            self._outlive_nobody()
            if self._policy["level"] == "namespaces":
                self._jump_inside()
            else:
                self._leave_root()
                self._become_daemon()
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._fail(error)

    def _outlive_nobody(self) -> None:
        confine.die_with_parent()
        if os.getppid() != self._order["keeper"]:
            os._exit(1)

    def _jump_inside(self) -> NoReturn:
        """We stay outside and wait; our child is process 1 of the namespaces, its child the daemon."""
        namespaces.enter()
        lifeline, ours = os.pipe()
        if os.fork() == 0:
            os.close(ours)
            confine.die_with_parent()
            if select.select([lifeline], [], [], 0)[0]:  # we have died before that was said
                os._exit(1)
            self._be_first()
        self._keeper.close()
        for each in self._order.get("given", ()):
            os.close(each)
        for each in (_HANGUP, _INTERRUPT, _QUIT, _TERMINATE):
            set_signal(each, ignored=True)
        os.wait()
        os._exit(0)

    def _be_first(self) -> NoReturn:
        try:
            namespaces.raise_loopback()
            view.build(self._policy)
            self._leave_root()
            started, starting = os.pipe()
            daemon = os.fork()
            if daemon == 0:
                confine.die_with_parent()
                self._become_daemon()
            os.close(starting)
            namespaces.become_first(self._policy, self._keeper, daemon, started)
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._fail(error)

    def _leave_root(self) -> None:
        confine.drop_bounding_set()
        confine.leave_root(self._policy["uid"], self._policy["own"])
        confine.die_with_parent()

    def _become_daemon(self) -> NoReturn:
        argv: list[str] = self._order["argv"]
        try:
            os.chdir(self._order["cwd"])
            confine.drop_capabilities()
            confine.check_executable(argv[0])
            confine.restrict_files(self._policy)
            confine.limit_resources(self._policy)
            namespaces.send(self._keeper, "starting")
            listener = confine.restrict_calls(self._policy)
            if listener is not None:
                namespaces.send(self._keeper, "guarded", listener)
                os.close(listener)
            for each in (_PIPE, _FILE_SIZE):  # Python ignores them, and that is inherited
                set_signal(each, ignored=False)
            os.execve(argv[0], argv, self._order["env"])
        except (OSError, ValueError) as error:
            self._fail(error)

    def _fail(self, error: Exception) -> NoReturn:
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, OSError) and error.strerror:
            reason = error.strerror + (f": {error.filename}" if error.filename else "")
        try:
            namespaces.send(self._keeper, f"failed {reason}")
        finally:
            os._exit(127)


def _read_order() -> dict[str, Any]:
    with os.fdopen(0, "rb") as pipe:
        order: dict[str, Any] = marshal.loads(pipe.read())
    if os.open(os.devnull, os.O_RDONLY) != 0:
        raise OSError(9, "standard input cannot be replaced")
    os.set_inheritable(0, True)
    return order


def main() -> None:
    if sys.argv[1] == "probe":
        import json

        from ollama_adapter.system.jail import probing

        sys.stdout.write(json.dumps(probing.probe()))
        return
    keeper = _socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(keeper.fileno(), False)
    confine.close_descriptors([keeper.fileno(), *map(int, sys.argv[2:])])
    Trampoline(_read_order(), keeper).jump()


if __name__ == "__main__":
    main()
