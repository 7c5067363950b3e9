"""How sure was the model? Every token with its energy and its best candidates."""

import asyncio
import math

from ollama_adapter import OllamaAdapter


async def main() -> None:
    async with (
        OllamaAdapter() as adapter,
        adapter.generate_stream("tinydoc", "What does len do?", num_predict=20) as tokens,
    ):
        async for event in tokens:
            candidates = event.candidates or []
            others = ", ".join(f"{c.token!r} {math.exp(c.logprob):.0%}" for c in candidates[:3])
            print(f"{event.index:3} +{event.delta_ms:4} ms  E {event.energy:.2f}  {others}")
    print(tokens.statistics)


asyncio.run(main())
