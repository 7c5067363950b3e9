from ollama_adapter import errors as errors
from ollama_adapter import testing as testing
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

__version__: str

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
