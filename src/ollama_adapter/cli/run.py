"""`ollama-adapter run`: one prompt, one answer."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec

from ollama_adapter.adapter import OllamaAdapter
from ollama_adapter.cli import asking, showing
from ollama_adapter.cli.live import quiet_keyboard
from ollama_adapter.cli.output import is_terminal, notices
from ollama_adapter.config import Config
from ollama_adapter.errors import InvalidRequest, ModelNotFound
from ollama_adapter.orchestrator import Orchestrator
from ollama_adapter.stream import TokenStream
from ollama_adapter.system import settings

Start = Callable[[OllamaAdapter], TokenStream]


class Command(msgspec.Struct, frozen=True):
    """The arguments of `run`, as given."""

    words: Sequence[str]
    model: str
    chat: bool
    as_json: bool
    statistics: bool
    system: str | None
    format: str | None
    fields: dict[str, Any]
    options: Sequence[str]

    def prepare(self) -> Coroutine[Any, Any, None]:
        """The work. Raises InvalidRequest, ConfigError."""
        config = settings.load_config()
        model, prompt = asking.model_and_prompt(self.words, self.model, config)
        given = {**self.fields, "format": asking.read_format(self.format)}
        if not self.chat:
            given["system"] = self.system
        elif given.pop("raw", None):
            raise InvalidRequest(
                "--raw cannot be combined with --chat", hint="leave one of them out"
            )
        fields = asking.keywords(given, self.options)
        messages = asking.system_message(self.system)
        if self.chat and prompt is None and sys.stdin.isatty() and is_terminal():
            return self._converse(config, model, messages, fields)
        text = asking.read_prompt(prompt, strip=not fields.get("raw"))
        if self.chat:
            messages.append(asking.user_message(text))
            return self._answer(config, model, lambda it: it.chat_stream(model, messages, **fields))
        return self._answer(config, model, lambda it: it.generate_stream(model, text, **fields))

    def _way(self) -> showing.Way:
        return showing.choose(as_json=self.as_json, statistics=self.statistics)

    async def _converse(
        self, config: Config, model: str, messages: list[dict[str, str]], fields: dict[str, Any]
    ) -> None:
        from ollama_adapter.cli.chat import converse

        config = await asking.with_daemon_for(model, config)
        await converse(config, model, messages, fields, self._way())

    async def _answer(self, config: Config, model: str, start: Start) -> None:
        way = self._way()
        config = await asking.with_daemon_for(model, config)
        orchestrator = Orchestrator(config, on_frame=way.on_frame)
        stream = start(orchestrator.adapter)  # what is wrong with it is said before a daemon starts
        with quiet_keyboard(), notices.held():
            try:
                way.begin()
                async with orchestrator:
                    await answer(stream, way)
            except ModelNotFound as error:
                if not self.model and len(self.words) < 2:
                    error.hint = (
                        "that is the default; name another: ollama-adapter run MODEL 'your prompt' "
                        "(`ollama-adapter models` lists them)"
                    )
                raise
            finally:
                way.end()


async def answer(stream: TokenStream, way: showing.Way) -> None:
    """Show a stream and then its account, in whatever way it ends, unless nobody looks any more."""
    gone = False
    try:
        async with stream:
            await way.show(stream)
    except BrokenPipeError:
        gone = True
        raise
    finally:
        if not gone:
            way.end()
            way.account(stream.statistics)
