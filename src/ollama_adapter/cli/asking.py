"""From arguments to a request: which model, which prompt, which keywords. Raises InvalidRequest."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import msgspec

from ollama_adapter.cli.output import complain
from ollama_adapter.config import Config, DaemonMode
from ollama_adapter.core import vocabulary
from ollama_adapter.core.names import is_tinydoc
from ollama_adapter.core.versions import EMBEDDED_SUFFIX
from ollama_adapter.errors import AdapterError, InvalidRequest
from ollama_adapter.system.dialing import dial_port
from ollama_adapter.system.probe import probe
from ollama_adapter.system.settings import has_embedded_engine

DEFAULT_MODEL: Final = "tinydoc"
STDIN: Final = "-"
QUOTE_HINT: Final = "put the prompt in quotes: ollama-adapter run MODEL 'your prompt'"
_WORDS: Final = {"true": True, "yes": True, "on": True, "1": True} | {
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


def model_and_prompt(words: Sequence[str], model: str, config: Config) -> tuple[str, str | None]:
    """Two words are MODEL and PROMPT; one is the PROMPT, for the default model; none: no prompt."""
    for word in words:
        check_text(word, "an argument")
    if len(words) > 2 or (model and len(words) > 1):
        raise InvalidRequest(f"{len(words)} arguments are too many", hint=QUOTE_HINT)
    if len(words) == 1 and not model and words[0].isidentifier() and _is_fed():
        complain(
            "note",
            f"the standard input is not read: {words[0]!r} is taken for the prompt",
            f"to ask that model what is piped in: ollama-adapter run {words[0]} -",
        )
    if len(words) == 2:
        model = words[0]
        if not model:
            raise InvalidRequest("the name of the model is empty", hint=QUOTE_HINT)
    return model or default_model(config), (words[-1] if words else None)


def _is_fed() -> bool:
    """Something was piped in, or redirected from a file."""
    try:
        mode = os.fstat(0).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def default_model(config: Config) -> str:
    """The one in the settings, or in OLLAMA_ADAPTER_MODEL; else the model of the package."""
    return config.model or DEFAULT_MODEL


async def with_daemon_for(model: str, config: Config) -> Config:
    """The model of the package is in a daemon of our own, which may run: a user's Ollama does not have it."""
    daemon = config.daemon
    if not (is_tinydoc(model) and daemon.mode is DaemonMode.AUTO and has_embedded_engine()):
        return config
    with contextlib.suppress(AdapterError, OSError):
        version = await probe(dial_port(daemon.port), daemon.port, daemon.probe_timeout_s)
        if version.endswith(EMBEDDED_SUFFIX):
            return config
    return replace(config, daemon=replace(daemon, mode=DaemonMode.EMBEDDED))


def read_prompt(prompt: str | None, *, strip: bool) -> str:
    """The prompt; from stdin, `strip`ped of its last newline, where it is `-` or absent."""
    if prompt is not None and prompt != STDIN:
        return prompt
    if sys.stdin is None or (prompt is None and sys.stdin.isatty()):
        raise InvalidRequest(
            "there is no prompt",
            hint="ollama-adapter run 'your prompt', or pipe one in, or --chat for a conversation",
        )
    text = decode(sys.stdin.buffer.read(), "the standard input")
    return text.removesuffix("\n") if strip else text


def user_message(text: str) -> dict[str, str]:
    """What the user says, in a conversation."""
    if not text:
        raise InvalidRequest("the prompt is empty", hint="pass some text")
    return {"role": "user", "content": text}


def system_message(text: str | None) -> list[dict[str, str]]:
    """The beginning of a conversation."""
    return [{"role": "system", "content": text}] if text else []


def decode(data: bytes, source: str) -> str:
    """`data` as text, or InvalidRequest that says where it is none."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"{source} is not UTF-8: byte 0x{data[error.start]:02x} at position {error.start}",
            hint="convert it, for example with: iconv -f latin1 -t utf-8",
        ) from None


def check_text(text: str, source: str) -> None:
    if any("\ud800" <= each <= "\udfff" for each in text):
        decode(text.encode("utf-8", "surrogateescape"), source)


def keywords(given: Mapping[str, Any], options: Sequence[str]) -> dict[str, Any]:
    """What was given, without the rest, and the `NAME=VALUE` options in their types."""
    fields = {name: value for name, value in given.items() if value is not None}
    for name, value in fields.items():
        if isinstance(value, str):
            check_text(value, f"--{name.replace('_', '-')}")
    named: dict[str, Any] = {}
    for option in options:
        check_text(option, "an option")
        name, equals, text = option.partition("=")
        if not equals or not name:
            raise InvalidRequest(f"{option!r} is no option", hint="write -o NAME=VALUE")
        value = parse_option(name, text)
        if isinstance(value, list) and isinstance(named.get(name), list):
            value = named[name] + value
        named[name] = value
    return fields | ({"options": named} if named else {})


def parse_option(name: str, text: str) -> Any:
    """`text` in the type that the option has in Ollama's vocabulary."""
    kind = vocabulary.OPTIONS.get(name)
    if kind is None:
        return text  # the request says what is wrong with it
    try:
        value = _PARSERS[kind.words](text)
        if kind.holds(value):
            return value
    except (ValueError, KeyError):
        pass
    raise InvalidRequest(
        f"{name} must be {kind.words}, not {text!r}",
        hint=f"for example: -o {name}={_EXAMPLES[kind.words]}",
    )


def _texts(text: str) -> list[Any]:
    """A JSON list, or one text; given several times they add up."""
    if text.startswith("["):
        return msgspec.json.decode(text, type=list[Any])
    return [text]


_PARSERS: Final[dict[str, Callable[[str], Any]]] = {
    vocabulary.INTEGER.words: int,
    vocabulary.SIZE.words: int,
    vocabulary.NUMBER.words: float,
    vocabulary.BOOLEAN.words: lambda text: _WORDS[text.lower()],
    vocabulary.TEXTS.words: _texts,
}
_EXAMPLES: Final = {
    vocabulary.INTEGER.words: "42",
    vocabulary.SIZE.words: "4096",
    vocabulary.NUMBER.words: "0.7",
    vocabulary.BOOLEAN.words: "true",
    vocabulary.TEXTS.words: "END",
}


def read_format(text: str | None) -> Any:
    """`json`, or the JSON schema in a file."""
    if text is None or text == "json":
        return text
    try:
        data = Path(text).read_bytes()
    except (OSError, ValueError) as error:
        raise InvalidRequest(
            f"the schema {text} cannot be read: {getattr(error, 'strerror', None) or error}",
            hint="--format takes json, or a file with a JSON schema",
        ) from error
    try:
        schema = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest(
            f"the schema {text} is not JSON", hint="it must be an object"
        ) from None
    if not isinstance(schema, dict):
        raise InvalidRequest(
            f"the schema {text} must be a JSON object", hint='the smallest is {"type": "object"}'
        )
    return schema
