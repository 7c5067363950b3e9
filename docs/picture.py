"""Makes docs/live.svg: the live view of a real answer, as it stands when its last token has come.

    python docs/picture.py [PROMPT [SEED [FILE]]]

The answer and its log probabilities are those of the bundled model on this machine; the colours and the
bar are drawn by what the command draws with.
"""

from __future__ import annotations

import asyncio
import io
import re
import sys
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import DEFAULT_TERMINAL_THEME, SVG_EXPORT_THEME
from rich.text import Text

from ollama_adapter import Frame, Orchestrator, TokenEvent
from ollama_adapter.cli.draw import Status, status_line, token_style

MODEL = "tinydoc"
WIDTH = 80
FONT_FROM_ELSEWHERE = re.compile(r"\s*@font-face \{\{.*?\}\}", re.DOTALL)
LEADING_SPACES = re.compile(r' x="([\d.]+)"([^>]*?) textLength="([\d.]+)"([^>]*)>((?:&#160;)+)')
CELL = 12.2  # the width of a character in the template
THEMES = {"dark": SVG_EXPORT_THEME, "light": DEFAULT_TERMINAL_THEME}


async def generate(prompt: str, seed: int) -> tuple[list[TokenEvent], list[Frame], float]:
    """The tokens of an answer, the frames that ran beside it, and its time to the first token."""
    frames: list[Frame] = []
    async with Orchestrator(on_frame=frames.append) as orchestrator:
        stream = orchestrator.adapter.generate_stream(
            MODEL, prompt, seed=seed, temperature=0.4, num_predict=90
        )
        events = [event async for event in stream]
    return events, frames, stream.statistics.ttft_ms or 0.0


def draw(prompt: str, events: list[TokenEvent], status: Status, theme: str) -> str:
    """The terminal's picture, which asks no other machine for a font."""
    console = Console(
        record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    console.print(Text(f'$ ollama-adapter run "{prompt}"', "bold"))
    answer = Text()
    for event in events:
        for part in re.split(r"(\s+)", event.token):
            answer.append(part, None if part.isspace() else token_style(event))
    console.print(answer)
    console.print()
    console.print(status_line(status, WIDTH - 1))
    template = FONT_FROM_ELSEWHERE.sub("", CONSOLE_SVG_FORMAT)
    svg = console.export_svg(title="ollama-adapter", theme=THEMES[theme], code_format=template)
    return LEADING_SPACES.sub(_indented, svg)


def _indented(text: re.Match[str]) -> str:
    """Some programs leave out spaces at the beginning of a text: it begins further right instead."""
    gap = text[5].count("&") * CELL
    x, length = float(text[1]) + gap, float(text[3]) - gap
    return f' x="{x:g}"{text[2]} textLength="{length:g}"{text[4]}>'


def main(
    prompt: str = "What does os.path.join do?", seed: str = "1", file: str = "", theme: str = "dark"
) -> None:
    events, frames, ttft_ms = asyncio.run(generate(prompt, int(seed)))
    shown = [each for frame in frames for each in frame.sessions.values() if frame.new_tokens]
    span_ns = events[-1].arrival_ns - events[0].arrival_ns
    status = Status(
        state=shown[-1].state,
        energy=events[-1].energy or 0.0,
        ttft_ms=ttft_ms,
        waiting=False,
        tps=(len(events) - 1) * 1e9 / span_ns if span_ns else None,
        tokens=len(events),
    )
    path = Path(file) if file else Path(__file__).with_name("live.svg")
    path.write_text(draw(prompt, events, status, theme), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
