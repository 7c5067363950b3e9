"""Which models are in memory, within which budget: ModelPool brings them there, a Lease keeps one busy."""

from ollama_adapter.pool.keeper import ModelPool
from ollama_adapter.pool.lease import Lease
from ollama_adapter.pool.surroundings import Surroundings

__all__ = ["Lease", "ModelPool", "Surroundings"]
