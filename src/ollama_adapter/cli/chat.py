"""A conversation in a terminal: it remembers what was said until it ends.

Ctrl-C ends an answer and keeps what came of it; at the prompt, like Ctrl-D and /bye, it ends the
conversation.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any, Final

from ollama_adapter.cli import asking
from ollama_adapter.cli.ending import Interrupted, interruption
from ollama_adapter.cli.live import quiet_keyboard
from ollama_adapter.cli.output import notices, stdout
from ollama_adapter.cli.run import answer
from ollama_adapter.cli.showing import Way
from ollama_adapter.cli.wording import tell
from ollama_adapter.config import Config
from ollama_adapter.errors import AdapterError, DaemonError
from ollama_adapter.orchestrator import Orchestrator

PROMPT: Final = ">>> "
GREETING: Final = "A conversation with {}. /bye or Ctrl-D ends it, Ctrl-C ends an answer.\n"
LINE_BYTES: Final = 1 << 16


async def converse(
    config: Config, model: str, messages: list[dict[str, str]], fields: dict[str, Any], way: Way
) -> None:
    """Turn by turn, until the user ends it. A failed turn is told and taken back."""
    output = stdout()
    orchestrator = Orchestrator(config, on_frame=way.on_frame)
    async with orchestrator:
        output.write_now(GREETING.format(model))
        while True:
            output.write_now(PROMPT)
            line = await read_line()
            if line is None or line.strip() == "/bye":
                output.write_now("" if line else "\n")
                return
            if line.strip():
                await _turn(orchestrator, model, messages, line.rstrip("\n"), fields, way)


async def _turn(
    orchestrator: Orchestrator,
    model: str,
    messages: list[dict[str, str]],
    text: str,
    fields: dict[str, Any],
    way: Way,
) -> None:
    messages.append(asking.user_message(text))
    try:
        with quiet_keyboard(), notices.held(), interruption():
            way.begin()
            stream = orchestrator.adapter.chat_stream(model, messages, **fields)
            await answer(stream, way)
    except Interrupted:
        pass
    except DaemonError:
        raise
    except AdapterError as error:
        messages.pop()
        tell(error)
        return
    messages.append({"role": "assistant", "content": way.text})


async def read_line() -> str | None:
    """A line from the terminal, with its newline; None at its end. Cancelling is safe."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    fd = sys.stdin.fileno()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    except asyncio.CancelledError:
        stdout().write_now("\n")  # the terminal has shown ^C behind the prompt
        raise
    finally:
        loop.remove_reader(fd)
    data = os.read(fd, LINE_BYTES)
    return data.decode("utf-8", "replace") if data else None
