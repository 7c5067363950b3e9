"""What an error says to somebody at a terminal: in the words of the command, not of the Python interface.

Settings are named as the variables that set them, keywords as the options that pass them on.
"""

from __future__ import annotations

import re
from typing import Any, Final

from ollama_adapter.cli.draw import WAYS
from ollama_adapter.cli.output import complain, print_json
from ollama_adapter.errors import AdapterError, InvalidRequest, StreamInterrupted

REWORDED: Final = (
    (InvalidRequest.usual_hint, "the command's --help tells; -o takes any option of Ollama"),
    ("leave think out", "leave --think out"),
    ("the schema in format", "the schema in the file of --format"),
    ("as a keyword or in options, once", "as an option of its own or with -o, once"),
    ("; to only load a model, use ensure_loaded", ""),
    ("use `async with` for streams; ", "what reads the output has to go on; "),
    ("allow it once with also_from", "allow it once with --also-from"),
    ("pass truncate=True (--truncate)", "pass --truncate"),
    ("raise num_ctx", "raise --num-ctx"),
)
_SETTING: Final = re.compile(r"\b(daemon|pool|stream|energy|frames)\.([a-z_]+)\b(?! = )")
_SANDBOX: Final = re.compile(r'sandbox="(\w+)"')
_RERUN: Final = "rerun: without temperature 0"


def in_the_commands_words(text: str) -> str:
    """The same advice, for somebody who types."""
    for ours, theirs in REWORDED:
        text = text.replace(ours, theirs)
    text = _SANDBOX.sub(r"OLLAMA_ADAPTER_DAEMON_SANDBOX=\1", text)
    return _SETTING.sub(lambda it: f"OLLAMA_ADAPTER_{it[1]}_{it[2]}".upper(), text)


def tell(error: AdapterError | OSError) -> None:
    """The error on stderr: what happened, why it could not be mended, what to do."""
    complain("error", *_message_and_hint(error), _refusals(error))


def tell_json(error: AdapterError | OSError) -> None:
    """The error as a line on stdout, with the fields that a program may want."""
    message, hint = _message_and_hint(error)
    line: dict[str, Any] = {
        "type": "error",
        "error": type(error).__name__,
        "message": message.encode("utf-8", "replace").decode(),
        "hint": hint,
    }
    if isinstance(error, StreamInterrupted):
        line |= {"reason": error.reason, "tokens": error.tokens, "refusals": error.refusals}
    print_json(line)


def _message_and_hint(error: AdapterError | OSError) -> tuple[str, str]:
    if not isinstance(error, AdapterError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or type(error).__name__}", ""
    hint = error.hint
    if isinstance(error, StreamInterrupted) and any(map(_wants_rerun, error.refusals)):
        hint = "with --temperature 0 or a --seed it could have gone on"
    return str(error), in_the_commands_words(hint)


def _refusals(error: AdapterError | OSError) -> list[str]:
    """Of every way to go on, why it was not taken."""
    if not isinstance(error, StreamInterrupted):
        return []
    told = []
    for refusal in error.refusals:
        name, colon, why = refusal.partition(": ")
        words = next((words for way, words in WAYS.items() if way == name), name)
        told.append(in_the_commands_words(f"{words}{colon}{why}"))
    return told


def _wants_rerun(refusal: str) -> bool:
    return refusal.startswith(_RERUN)
