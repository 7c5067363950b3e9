"""What every test gets: asyncio in debug mode, one hypothesis profile, and nothing left behind.

A test may use what a fixture started before it. What it starts itself, it must end: a task or a child
process that outlives it fails it. Sockets and files left open fail it too, as ResourceWarnings.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import inspect
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, settings

from tests.soak import Report

GRACE_S = 5.0
"""How long what is on its way out may take; nothing waits this long unless something is left behind."""

# The same examples everywhere and every time: a failure is a fault of the change, never of the day.
settings.register_profile("test", derandomize=True, deadline=None, max_examples=100)
settings.register_profile(
    "soak", deadline=None, max_examples=10_000, suppress_health_check=[HealthCheck.too_slow]
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="full counts instead of a hundredth")
    parser.addoption(
        "--soak-report", type=Path, metavar="FILE", help="write what was measured there"
    )


REPORT = pytest.StashKey[Report]()


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a shell's background, and inherited
        signal.signal(signal.SIGINT, signal.default_int_handler)
    settings.load_profile("soak" if config.getoption("--soak") else "test")
    config.stash[REPORT] = Report(config.getoption("--soak-report"))
    config.pluginmanager.register(config.stash[REPORT], "soak-report")


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"debug": True}


@pytest.fixture(scope="session")
def scaled(pytestconfig: pytest.Config) -> Callable[[int], int]:
    """A full count, as an issue names it, to what this run does of it."""
    soak = bool(pytestconfig.getoption("--soak"))
    return lambda full: full if soak else max(1, full // 100)


@pytest.fixture(scope="session")
def measured(pytestconfig: pytest.Config) -> Callable[..., None]:
    """Report a number: `measured("kill to gone", seconds, "≤ 0.5", "s")`; see tests/soak.py."""
    return pytestconfig.stash[REPORT].measured


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    """Fails an asynchronous test that leaves tasks behind."""
    function = pyfuncitem.obj
    if inspect.iscoroutinefunction(function) and not hasattr(function, "hypothesis"):
        pyfuncitem.obj = _without_leftover_tasks(function)
    return (yield)


def _without_leftover_tasks(function: Callable[..., object]) -> Callable[..., object]:
    @functools.wraps(function)
    async def guarded(*args: object, **kwargs: object) -> None:
        before = asyncio.all_tasks()
        await function(*args, **kwargs)  # type: ignore[misc]
        if left := asyncio.all_tasks() - before:
            _, left = await asyncio.wait(left, timeout=GRACE_S)
        assert not left, f"the test leaves tasks behind: {left}"

    return guarded


@pytest.fixture(autouse=True, scope="module")
def _what_is_there_is_no_garbage() -> None:
    """What a module finds is searched once, not after each of its tests, which takes longer than most of them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaves children behind, and lets what it forgot to close say so now."""
    if "core" in request.path.relative_to(request.config.rootpath).parts:
        yield  # nothing is ever started there
        return
    before = _children() | _children()  # twice: one is left out when its neighbour ends meanwhile
    yield
    gc.collect()
    left: list[psutil.Process] = []
    if more := _children() - before:
        mine = psutil.Process().children()
        _, left = psutil.wait_procs([each for each in mine if each.pid in more], timeout=GRACE_S)
    left = [each for each in left if not _is_a_helper_of_multiprocessing(each)]
    assert not left, f"the test leaves processes behind: {left}"


def _children() -> set[int]:
    """Of this process. psutil reads all processes of the machine for it, which each test would wait for."""
    threads = list(Path("/proc/self/task").glob("*/children"))
    if not threads:  # another system, or a kernel that keeps no such list
        return {each.pid for each in psutil.Process().children()}
    found: set[int] = set()
    for each in threads:
        with contextlib.suppress(OSError):  # the thread has just ended
            found.update(map(int, each.read_text().split()))
    return found


def _is_a_helper_of_multiprocessing(process: psutil.Process) -> bool:
    try:
        return "multiprocessing" in " ".join(process.cmdline())
    except psutil.Error:
        return True  # gone, or not ours to look at
