"""An application that pulls one model and prints its progress; run as a script, to be killed.

argv: the store, the model, the host of its registry.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from ollama_adapter.config import PoolConfig
from ollama_adapter.events import PullProgress
from ollama_adapter.puller.pull import Puller
from ollama_adapter.system.clock import SystemClock
from ollama_adapter.system.scope import TaskScope


def tell(progress: PullProgress) -> None:
    print(progress.stage.name, progress.done_bytes, progress.total_bytes, flush=True)


async def main() -> None:
    store, model, host = sys.argv[1:]
    scope = TaskScope()
    try:
        config = PoolConfig(registries=(host,))
        receipt = await Puller(Path(store), config, scope, SystemClock()).pull(model, tell)
        print("PULLED", receipt.fetched_bytes, receipt.total_bytes, flush=True)
    finally:
        await scope.aclose()


if __name__ == "__main__":
    asyncio.run(main())
