"""An application that is to be killed: it says how far it has come, goes as far as it is told, and stays.

argv: the level of its daemon, and the moment to stay at. It leaves in good order when its input ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sys
from dataclasses import replace

from ollama_adapter import Config, DaemonConfig, DaemonMode, OllamaAdapter
from ollama_adapter.config import Sandbox
from ollama_adapter.errors import AdapterError
from ollama_adapter.system.jail import levels
from ollama_adapter.system.jail.policy import Level

MOMENTS = ("starting", "loading", "generating", "idle")
ENDLESS = {"type": "array", "items": {"type": "integer"}, "minItems": 4000}
SANDBOXES = {Level.NONE: Sandbox.NONE, Level.PARTIAL: Sandbox.PARTIAL}


def say(what: str) -> None:
    print(what, flush=True)


def without_what_is_better(facts: levels.Facts, level: Level) -> levels.Facts:
    """As on a machine that has not got it."""
    if level in (Level.GUARD, Level.PARTIAL):
        facts = replace(facts, namespaces="left out")
    if level is Level.PARTIAL:
        facts = replace(facts, notify="left out")
    return facts


async def come_to(moment: str, adapter: OllamaAdapter) -> None:
    say("starting")
    try:
        await adapter.ensure_running()
    except AdapterError as error:
        say(f"sandbox refused: {type(error).__name__}")
        raise
    say(f"sandbox {(await adapter.health()).sandbox}")
    if moment == "starting":
        return
    say("loading")
    stream = adapter.generate_stream("tinydoc", "x", format=ENDLESS, num_predict=100_000)
    await anext(stream)
    say("generating")
    if moment == "idle":
        await stream.stop()
        say("idle")
    async for _ in stream:
        pass


def config_for(level: Level) -> Config:
    """What is killed is not replaced: then whatever is left is left behind."""
    sandbox = SANDBOXES.get(level, Sandbox.ENFORCED)
    return Config(daemon=DaemonConfig(mode=DaemonMode.EMBEDDED, sandbox=sandbox, restart_tries=1))


async def main() -> None:
    level = Level(sys.argv[1])
    facts = without_what_is_better(levels.probe(), level)
    levels.probe = functools.cache(lambda: facts)
    adapter = OllamaAdapter(config_for(level))
    try:
        with contextlib.suppress(AdapterError):
            await come_to(sys.argv[2], adapter)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    finally:
        await adapter.aclose()


if __name__ == "__main__":
    asyncio.run(main())
