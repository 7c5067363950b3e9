"""What this package raises on purpose.

AdapterError                    .hint: what the user can do about it
├── ConfigError (ValueError) ─ InvalidRequest
├── DaemonError ─ DaemonNotFound · DaemonStartTimeout · DaemonExited · PortTaken · NotOllama
│                 UntrustedDaemon · NotSandboxed · UnsupportedCPU
├── TransportError ─ NotLoopback · ConnectFailed · ConnectionLost · ReadTimeout · ProtocolError
├── ResponseError ─ ModelNotFound · RemoteModelRefused · ServerBusy · ContextOverflow
├── PoolError ─ ModelLoadFailed · BudgetExceeded · InvalidModelFile · PullRefused · PullFailed
└── GenerationError ─ StreamInterrupted · ReaderGone · SessionNotFound

A message says what happened and why; `hint` says what to do. Both are made of codes, counts and
names, never of a prompt or an answer.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any


class Interruption(StrEnum):
    """Why a stream ended before its last record."""

    CUT = "the connection was cut"
    NO_LAST_RECORD = "the answer ended without its last record"
    RUNNER_DIED = "the process that ran the model died"
    DAEMON_ERROR = "the daemon reported an error"
    STALLED = "no token came within the limit"
    DIVERGED = "the answer that should have gone on was another one"


class AdapterError(Exception):
    """The root of everything we raise. `hint` tells the user what to do next ("" when nothing helps)."""

    usual_hint = ""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint or self.usual_hint


class ConfigError(AdapterError, ValueError):
    """A setting that cannot be used."""


class InvalidRequest(ConfigError):
    """A keyword of a request that is unknown, ill-typed or out of range; nothing was sent."""

    usual_hint = "keywords are Ollama's request fields and options, by their names and types there"


class DaemonError(AdapterError):
    """The daemon cannot be had, or is not what it should be."""


class DaemonNotFound(DaemonError):
    """Nothing to adopt and nothing to spawn."""

    usual_hint = "`ollama-adapter doctor` tells what is installed here"


class DaemonStartTimeout(DaemonError, TimeoutError):
    """A spawned daemon did not become ready in time."""


class DaemonExited(DaemonError):
    """A spawned daemon ended by itself: `returncode` (negative: by that signal), and its last words."""

    usual_hint = "its last words say why; `ollama-adapter status` tells which program it is"

    def __init__(
        self, message: str, *, returncode: int | None = None, tail: str = "", hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.returncode = returncode
        self.tail = tail


class PortTaken(DaemonError):
    """Another program holds the port."""


class NotOllama(DaemonError):
    """Something answers on the port, and it does not speak Ollama's API."""


class UntrustedDaemon(DaemonError):
    """A daemon found running that belongs to a user we do not trust."""


class NotSandboxed(DaemonError):
    """The sandbox asked for cannot be set up here."""


class UnsupportedCPU(DaemonError):
    """No inference engine for this processor."""


class TransportError(AdapterError):
    """The conversation with the daemon broke."""


class NotLoopback(TransportError):
    """An address outside this machine; we never talk to one."""

    usual_hint = "set OLLAMA_HOST to 127.0.0.1, or to 127.0.0.1:PORT"


class ConnectFailed(TransportError):
    """No connection could be made."""

    usual_hint = "`ollama-adapter status` tells whether a daemon runs, and where"


class ConnectionLost(TransportError):
    """The connection ended before the answer did."""

    usual_hint = "the daemon may have been stopped: ask again"


class ReadTimeout(TransportError, TimeoutError):
    """No bytes within the limit named in the message."""

    usual_hint = (
        "the daemon may be busy or stuck: `ollama-adapter status` asks it; the limit can be raised"
    )


class ProtocolError(TransportError):
    """The daemon sent what is not HTTP, not JSON, not UTF-8, or beyond our limits."""

    usual_hint = "something else may listen on the daemon's port: `ollama-adapter status` tells"


class ResponseError(AdapterError):
    """The daemon answered with an error: its HTTP `status` and the `model` asked for."""

    usual_hint = "where the daemon keeps a log, it tells more"

    def __init__(self, message: str, *, status: int = 0, model: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.model = model


class ModelNotFound(ResponseError):
    """The daemon has no such model."""


class RemoteModelRefused(ResponseError):
    """The model runs on another machine; prompts do not leave this one."""


class ServerBusy(ResponseError):
    """The daemon's queue is full."""


class ContextOverflow(ResponseError):
    """The prompt does not fit: `prompt_tokens` were sent, `context_tokens` fit (0: not known)."""

    def __init__(
        self,
        message: str,
        *,
        prompt_tokens: int = 0,
        context_tokens: int = 0,
        status: int = 0,
        model: str = "",
        hint: str = "",
    ) -> None:
        super().__init__(message, status=status, model=model, hint=hint)
        self.prompt_tokens = prompt_tokens
        self.context_tokens = context_tokens


class PoolError(AdapterError):
    """A model cannot be brought into memory or onto the disk."""


class ModelLoadFailed(PoolError):
    """The daemon could not load the model."""


class BudgetExceeded(PoolError):
    """The model does not fit into the memory budget."""


class InvalidModelFile(PoolError):
    """Not a usable GGUF file."""


class PullRefused(PoolError):
    """A download without the user's consent."""


class PullFailed(PoolError):
    """A download that did not complete."""


class GenerationError(AdapterError):
    """One generation went wrong; `session_id` tells which."""

    def __init__(self, message: str, *, session_id: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.session_id = session_id


class StreamInterrupted(GenerationError):
    """The stream ended without its last record, and could not go on; `tokens` events came before.

    `reason` is why it was cut; `refusals` say of every way to go on why it was not taken, or how it failed;
    `statistics` is the session's account (ollama_adapter.Statistics; None outside of a session).
    """

    def __init__(
        self,
        message: str,
        *,
        session_id: str = "",
        tokens: int = 0,
        reason: Interruption = Interruption.CUT,
        refusals: tuple[str, ...] = (),
        statistics: Any = None,
        hint: str = "",
    ) -> None:
        super().__init__(message, session_id=session_id, hint=hint)
        self.tokens = tokens
        self.reason = reason
        self.refusals = refusals
        self.statistics = statistics


class ReaderGone(GenerationError):
    """The daemon was made to wait for a reader that does not read; what it has not read is still there."""


class SessionNotFound(GenerationError):
    """No session has this id."""
