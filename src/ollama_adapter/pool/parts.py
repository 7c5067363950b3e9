"""What those who work in a pool have in common: made once, and handed to each of them."""

from __future__ import annotations

import msgspec

from ollama_adapter.client import OllamaClient
from ollama_adapter.config import PoolConfig
from ollama_adapter.core.ledger import Ledger
from ollama_adapter.pool.catalogue import Catalogue
from ollama_adapter.pool.herald import Herald
from ollama_adapter.pool.surroundings import Surroundings
from ollama_adapter.system.clock import Clock
from ollama_adapter.system.scope import TaskScope


class Parts(msgspec.Struct, frozen=True):
    """Of one pool: what it was given, and what it knows."""

    config: PoolConfig
    client: OllamaClient
    scope: TaskScope
    clock: Clock
    surroundings: Surroundings
    catalogue: Catalogue
    ledger: Ledger
    herald: Herald
