"""A home of its own for every test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.cli.command import ForkServer, Machine


@pytest.fixture(scope="session")
def server(pytestconfig: pytest.Config) -> Iterator[ForkServer | None]:
    """None in `make soak`, where every command is started."""
    with nullcontext() if pytestconfig.getoption("--soak") else ForkServer() as server:
        yield server


@pytest.fixture
def machine(tmp_path: Path, server: ForkServer | None) -> Machine:
    home = tmp_path / "home"
    home.mkdir()
    return Machine(home, server=server)
