"""Sixty frames a second beside the tokens: what a window or a page would draw."""

import asyncio

from ollama_adapter import Frame, Orchestrator


def draw(frame: Frame) -> None:
    bar = "█" * round(frame.energy * 40)
    print(f"frame {frame.frame_id:4} {frame.state:9} {frame.new_tokens:3} tokens |{bar:40}|")


async def main() -> None:
    async with Orchestrator(on_frame=draw) as orchestrator:
        answer = await orchestrator.adapter.generate("tinydoc", "What does os.walk do?")
        async with orchestrator.subscribe() as frames:
            async for frame in frames:
                if frame.energy == 0.0:  # the energy of what was said has drained
                    break
    print(answer.text)


asyncio.run(main())
