"""The contract in five lines: a daemon that is there, and an answer token by token."""

import asyncio

from ollama_adapter import OllamaAdapter


async def main() -> None:
    async with OllamaAdapter() as adapter:
        async for event in adapter.generate_stream("tinydoc", "What does len do?"):
            print(event.token, end="", flush=True)


asyncio.run(main())
