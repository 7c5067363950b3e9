"""What we raise: its tree, its fields, its hint, and that it survives a trip to another process."""

from __future__ import annotations

import copy
import pickle

import pytest

from ollama_adapter import errors
from ollama_adapter.errors import (
    AdapterError,
    ContextOverflow,
    DaemonExited,
    GenerationError,
    ResponseError,
    StreamInterrupted,
)

KINDS = [
    each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, Exception)
]
TREE = """
ConfigError InvalidRequest
DaemonError DaemonNotFound DaemonStartTimeout DaemonExited PortTaken NotOllama UntrustedDaemon
DaemonError NotSandboxed UnsupportedCPU
TransportError NotLoopback ConnectFailed ConnectionLost ReadTimeout ProtocolError
ResponseError ModelNotFound RemoteModelRefused ServerBusy ContextOverflow
PoolError ModelLoadFailed BudgetExceeded InvalidModelFile PullRefused PullFailed
GenerationError StreamInterrupted ReaderGone SessionNotFound
"""


def test_the_tree_is_the_one_that_is_drawn() -> None:
    found = {each.__name__: each for each in KINDS}
    named = {"AdapterError"}
    for family, *children in (line.split() for line in TREE.strip().splitlines()):
        assert found[family].__base__ is AdapterError or AdapterError in found[family].__bases__
        for child in children:
            assert found[family] in found[child].__bases__
        named |= {family, *children}
    assert named == set(found)
    assert errors.__doc__ is not None
    assert all(name in errors.__doc__ for name in named)


@pytest.mark.parametrize(
    ("name", "builtin"),
    [
        ("ConfigError", ValueError),
        ("InvalidRequest", ValueError),
        ("DaemonStartTimeout", TimeoutError),
        ("ReadTimeout", TimeoutError),
    ],
)
def test_who_catches_a_builtin_catches_ours(name: str, builtin: type[Exception]) -> None:
    assert issubclass(getattr(errors, name), builtin)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_shows_its_message_and_keeps_its_hint(kind: type[AdapterError]) -> None:
    error = kind("what happened", hint="what to do")
    assert str(error) == "what happened"
    assert repr(error) == f"{kind.__name__}('what happened')"
    assert error.hint == "what to do"
    assert kind("what happened").hint == kind.usual_hint
    assert isinstance(error, AdapterError)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_survives_copy_and_pickle(kind: type[AdapterError]) -> None:
    error = kind("what happened", hint="what to do")
    for name, value in vars(error).items():
        if name != "hint":
            setattr(error, name, "x" if isinstance(value, str) else 7)
    for again in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(again) is kind
        assert (str(again), vars(again)) == (str(error), vars(error))


def test_the_fields_of_an_error() -> None:
    exited = DaemonExited("m", returncode=-9, tail="last words")
    assert (exited.returncode, exited.tail) == (-9, "last words")
    assert "last words" not in f"{exited} {exited!r}"
    answered = ResponseError("m", status=404, model="tiny")
    assert (answered.status, answered.model) == (404, "tiny")
    overflow = ContextOverflow("m", prompt_tokens=822, context_tokens=256, status=400, model="tiny")
    assert (overflow.prompt_tokens, overflow.context_tokens) == (822, 256)
    assert (overflow.status, overflow.model) == (400, "tiny")
    assert GenerationError("m", session_id="s").session_id == "s"
    interrupted = StreamInterrupted("m", session_id="s", tokens=5)
    assert (interrupted.session_id, interrupted.tokens) == ("s", 5)
