"""Stop a generation from elsewhere: its connection is closed at once, and the iterator ends."""

import asyncio

from ollama_adapter import OllamaAdapter


async def main() -> None:
    async with OllamaAdapter() as adapter:
        tokens = adapter.generate_stream("tinydoc", "What does os.walk do?", session_id="mine")
        async for event in tokens:
            print(event.token, end="", flush=True)
            if event.index == 9:
                await adapter.stop_generation("mine")
        print(f"\n{tokens.statistics.finish} after {tokens.statistics.tokens} tokens")


asyncio.run(main())
