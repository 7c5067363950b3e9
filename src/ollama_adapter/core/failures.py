"""From what the daemon says went wrong to an error of ours that says what to do about it.

The daemon's own words are shown only where they cannot hold a prompt or an answer: a text that comes
before the first token is stripped of everything it shares with the request; one that comes in the
middle of a stream is recognised, or only measured.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from ollama_adapter.core.names import is_tinydoc
from ollama_adapter.core.redaction import json_object, without_shared
from ollama_adapter.errors import (
    AdapterError,
    ContextOverflow,
    Interruption,
    InvalidModelFile,
    ModelLoadFailed,
    ModelNotFound,
    ProtocolError,
    RemoteModelRefused,
    ResponseError,
    ServerBusy,
    StreamInterrupted,
    UnsupportedCPU,
)

MAX_WORDS: Final = 300  # characters of the daemon's text that are shown
LOAD_FAILURES: Final = (
    "llama-server process has terminated",
    "timed out waiting for llama-server",
    "error loading model",
    "unable to load model",
    "requires more system memory",
)
DAMAGE: Final = ("exceeds file size", "unexpected EOF", "not in GGUF format")
OVERFLOWS: Final = (
    "exceeds the available context size",
    "longer than the context length",
    "exceeds the context length",
)
SHORTEN: Final = "shorten the prompt, or pass truncate=True (--truncate) to let the daemon cut it"
BUNDLED: Final = "is part of the package"  # what the embedded daemon says of tinydoc
ADVICE: Final = (  # by a sign in the daemon's words
    ("does not support thinking", "leave think out, or use another model"),
    ("does not support tools", "leave tools out, or use another model"),
    ("does not support generate", "use a model that writes; this one makes embeddings"),
    ("does not support chat", "use a model that writes; this one makes embeddings"),
    ("schema", "correct the schema in format"),
    ("invalid format", "correct the schema in format"),
    ("cannot hold the answer to this format", "use a simpler schema in format, or none"),
)
RUNNER_DIED: Final = "an error was encountered while running the model"
_TOKENS: Final = re.compile(r"\((\d{1,18}) tokens\)", re.ASCII)


def response_error(status: int, body: bytes, model: str, private: bytes = b"") -> AdapterError:
    """The error of a response with a status other than 200. `private` is the request's body."""
    words, detail = _words(body)
    if 300 <= status < 400:
        return ProtocolError(f"the daemon redirects (status {status}), and we do not follow")
    if any(each in words for each in OVERFLOWS):
        return _overflow(status, words, detail, model, _asked_ctx(private))
    for classify in (_not_found, _refused, _busy, _bundled, _no_embeddings):
        if (error := classify(status, words, model)) is not None:
            return error
    shown = _shown(words, private)
    if (error := _load_failure(status, words, shown, model)) is not None:
        return error
    return ResponseError(
        f"the daemon refused the request{f' for {model}' if model else ''} (status {status}): "
        + (shown or "no reason given"),
        status=status,
        model=model,
        hint=_advice(status, words),
    )


def stream_error(error: Any, model: str, session_id: str = "", tokens: int = 0) -> AdapterError:
    """The error of an `{"error": …}` line in a stream that had delivered `tokens` events."""
    words = error if isinstance(error, str) else ""
    if words.startswith(RUNNER_DIED):
        return StreamInterrupted(
            f"the process that ran {model} died in the middle of the answer, after {tokens} tokens",
            session_id=session_id,
            tokens=tokens,
            reason=Interruption.RUNNER_DIED,
            hint="ask again: the next request loads the model anew; look at the free memory",
        )
    length = len(words) if words else len(msgspec.json.encode(error))
    return StreamInterrupted(
        f"the daemon reported an error while {model} was answering, after {tokens} tokens"
        f" ({length} characters, not shown because they may hold parts of the answer)",
        session_id=session_id,
        tokens=tokens,
        reason=Interruption.DAEMON_ERROR,
        hint="the daemon's own log tells more",
    )


def _shown(words: str, private: bytes) -> str:
    """The first line, within limits, without what it shares with the request."""
    shown = without_shared(words.strip()[: 2 * MAX_WORDS], private)
    return shown.partition("\n")[0].strip()[:MAX_WORDS]


def _count(value: Any, otherwise: int) -> int:
    return value if isinstance(value, int) and value > 0 else otherwise


def _words(body: bytes) -> tuple[str, dict[str, Any]]:
    """The text of an error body, and the details of one that is wrapped in it as JSON."""
    outer = json_object(body)
    error = outer.get("error", "")
    inner = json_object(error.encode("utf-8", "replace")) if isinstance(error, str) else outer
    detail = inner.get("error", inner)
    if not isinstance(detail, dict):
        detail = {}
    words = detail.get("message", error)
    return (words if isinstance(words, str) else ""), detail


def _overflow(
    status: int, words: str, detail: dict[str, Any], model: str, asked: int
) -> ContextOverflow:
    numbers = [int(each) for each in _TOKENS.findall(words)] + [0, 0]
    sent = _count(detail.get("n_prompt_tokens"), numbers[0])
    fits = _count(detail.get("n_ctx"), numbers[1])
    return context_overflow(model, sent, fits, status, asked)


def context_overflow(
    model: str, sent: int, fits: int, status: int = 200, asked: int = 0
) -> ContextOverflow:
    """The error of a prompt of `sent` tokens where `fits` have room (0: the daemon did not say).

    `asked` is the request's num_ctx: a model that has less room than that goes no further.
    """
    figures = f": {sent} tokens, and {fits} fit" if sent and fits else ""
    return ContextOverflow(
        f"the prompt is longer than the context of {model}{figures}",
        prompt_tokens=sent,
        context_tokens=fits,
        status=status,
        model=model,
        hint=SHORTEN if 0 < fits < asked else f"raise num_ctx, {SHORTEN}",
    )


def _not_found(status: int, words: str, model: str) -> AdapterError | None:
    if status != 404 or "not found" not in words:
        return None
    return model_not_found(model)


def _asked_ctx(private: bytes) -> int:
    """The num_ctx of a request; 0 without one."""
    options = json_object(private).get("options")
    return _count(options.get("num_ctx"), 0) if isinstance(options, dict) else 0


def model_not_found(model: str) -> ModelNotFound:
    lists = "`ollama-adapter models` lists what is here; "
    if is_tinydoc(model):
        more = "the embedded daemon alone has tinydoc, and no tag of it but latest"
    else:
        more = (
            f"`ollama-adapter pull {model}` downloads it, with your consent; "
            "`ollama-adapter import FILE.gguf NAME` adds a file"
        )
    return ModelNotFound(
        f"there is no model {model} here", status=404, model=model, hint=lists + more
    )


def _refused(status: int, words: str, model: str) -> AdapterError | None:
    if "cloud is disabled" not in words and "remote model" not in words:
        return None
    return remote_refused(model, status)


def remote_refused(model: str, status: int = 403) -> RemoteModelRefused:
    return RemoteModelRefused(
        f"{model} runs on another machine, and prompts do not leave this one",
        status=status,
        model=model,
        hint="use a local model; `ollama-adapter models` lists them",
    )


def _busy(status: int, words: str, model: str) -> AdapterError | None:
    if status != 503:
        return None
    return ServerBusy(
        f"the daemon's queue is full (status 503, asked for {model})",
        status=status,
        model=model,
        hint="ask again in a moment, or with fewer requests at once",
    )


def _no_embeddings(status: int, words: str, model: str) -> AdapterError | None:
    """Its own words are llama.cpp's, and name a switch that nobody here has."""
    if status != 501:
        return None
    return ResponseError(
        f"{model} makes no embeddings", status=status, model=model, hint="use an embedding model"
    )


def _bundled(status: int, words: str, model: str) -> AdapterError | None:
    if status != 400 or BUNDLED not in words:
        return None
    return ResponseError(
        f"{model} {BUNDLED}, and cannot be changed or removed",
        status=status,
        model=model,
        hint="leave it: it takes no place among the models",
    )


def _advice(status: int, words: str) -> str:
    """What to do about a refusal; "" where nothing of ours helps."""
    known = next((advice for sign, advice in ADVICE if sign in words), "")
    return known or ("correct the request, or use another model" if status < 500 else "")


def _load_failure(status: int, words: str, shown: str, model: str) -> AdapterError | None:
    if words.startswith(RUNNER_DIED):
        return stream_error(words, model)
    if status >= 500 and any(each in words for each in DAMAGE):
        return InvalidModelFile(
            f"the files of {model} are damaged: {shown}",
            hint="remove it with `ollama-adapter rm`, and bring it anew",
        )
    if status < 500 or not any(each in words for each in LOAD_FAILURES):
        return None
    if "illegal instruction" in words.lower() or "no engine for this CPU" in words:
        return UnsupportedCPU(f"no inference engine runs on this processor (asked for {model})")
    return ModelLoadFailed(
        f"{model} could not be loaded: {shown}",
        hint="the file may be damaged or too large for the memory: "
        "`ollama-adapter rm` removes it, `ollama-adapter import` brings it anew",
    )
