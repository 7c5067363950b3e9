"""Native integration of the Ollama runtime for Python applications that run AI models locally.

    async with OllamaAdapter() as adapter:
        async for event in adapter.generate_stream("tinydoc", "What does len do?"):
            print(event.token, end="")

Errors are in `ollama_adapter.errors`, doubles for tests in `ollama_adapter.testing`.
"""

from ollama_adapter.adapter import OllamaAdapter
from ollama_adapter.blocking import BlockingAdapter
from ollama_adapter.config import (
    Config,
    DaemonConfig,
    DaemonMode,
    EnergyConfig,
    FrameConfig,
    PoolConfig,
    StreamConfig,
    Tier,
)
from ollama_adapter.core.energy import EUMapper
from ollama_adapter.decipher import Decipher
from ollama_adapter.events import (
    Answer,
    Channel,
    Finish,
    Frame,
    Guarantee,
    Health,
    Source,
    State,
    Statistics,
    TokenEvent,
)
from ollama_adapter.orchestrator import Orchestrator
from ollama_adapter.pool import ModelPool
from ollama_adapter.stream import TokenStream

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "BlockingAdapter",
    "Channel",
    "Config",
    "DaemonConfig",
    "DaemonMode",
    "Decipher",
    "EUMapper",
    "EnergyConfig",
    "Finish",
    "Frame",
    "FrameConfig",
    "Guarantee",
    "Health",
    "ModelPool",
    "OllamaAdapter",
    "Orchestrator",
    "PoolConfig",
    "Source",
    "State",
    "Statistics",
    "StreamConfig",
    "Tier",
    "TokenEvent",
    "TokenStream",
]
