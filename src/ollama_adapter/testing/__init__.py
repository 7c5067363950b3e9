"""Doubles for tests of applications that use this package, and of the package itself.

`PretendOllama` is a daemon over real TCP whose model knows nothing and whose answers go wrong as you ask,
`BackgroundOllama` the same without await; `ScriptedDaemon` one that says exactly what a script tells it
to; `ManualClock` is time that moves when it is told to.
"""

from ollama_adapter.testing.background import BackgroundOllama
from ollama_adapter.testing.clock import ManualClock
from ollama_adapter.testing.faults import Fault, FaultKind, Faults
from ollama_adapter.testing.generating import Generation, Phase
from ollama_adapter.testing.memory import Machine, Move
from ollama_adapter.testing.model import PretendModel
from ollama_adapter.testing.pretend import PretendOllama
from ollama_adapter.testing.scripted import (
    STREAM_END,
    STREAM_HEAD,
    Piece,
    Script,
    ScriptedDaemon,
    ScriptedRequest,
    answer,
    chunk,
    json_response,
    response,
    stream,
)

__all__ = [
    "BackgroundOllama",
    "Fault",
    "FaultKind",
    "Faults",
    "Generation",
    "Machine",
    "Move",
    "Phase",
    "PretendModel",
    "PretendOllama",
    "ManualClock",
    "Piece",
    "STREAM_END",
    "STREAM_HEAD",
    "Script",
    "ScriptedDaemon",
    "ScriptedRequest",
    "answer",
    "chunk",
    "json_response",
    "response",
    "stream",
]
