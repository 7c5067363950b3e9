"""What your application does when a daemon is killed in the middle of an answer; no model is needed."""

import asyncio

from ollama_adapter import OllamaAdapter
from ollama_adapter.errors import AdapterError
from ollama_adapter.testing import PretendOllama


async def main() -> None:
    async with PretendOllama(faults="eof@12*1") as daemon, OllamaAdapter(daemon.config) as adapter:
        for _ in range(2):
            try:
                answer = await adapter.generate("pretend", "hello")
                print(f"an answer of {answer.statistics.tokens} tokens")
            except AdapterError as error:
                print(f"{type(error).__name__}: {error}")


asyncio.run(main())
