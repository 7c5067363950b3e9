"""Rogue servers: what else may listen where a daemon is expected, and what it may send."""

from tests.rogues import bodies, heads
from tests.rogues.wire import ENDS, ROGUES, WAITING, WELL, WITH_PROMPT, Stage, Wire

__all__ = ["ENDS", "ROGUES", "WAITING", "WELL", "WITH_PROMPT", "Stage", "Wire", "bodies", "heads"]
