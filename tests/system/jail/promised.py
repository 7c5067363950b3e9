"""An application that believes in namespaces where there may be none; it says which level its daemon is at."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from ollama_adapter import Config, DaemonConfig, DaemonMode, OllamaAdapter
from ollama_adapter.system.jail import levels


async def main() -> None:
    facts = replace(levels.probe(), namespaces="")
    levels.probe = lambda: facts  # type: ignore[assignment]
    async with OllamaAdapter(Config(daemon=DaemonConfig(mode=DaemonMode.EMBEDDED))) as adapter:
        print((await adapter.health()).sandbox)


if __name__ == "__main__":
    asyncio.run(main())
