"""What things look like: text by certainty, the energy bar, the account of a session. Pure.

Colours are of middle lightness, to be read on dark and on light; what is certain has the terminal's own
colour. Every field has a fixed width, so that nothing jumps at 60 frames a second.
"""

from __future__ import annotations

from math import sqrt
from typing import Final

import msgspec
from rich.style import Style
from rich.table import Table
from rich.text import Text

from ollama_adapter.core.energy import certainty
from ollama_adapter.core.names import is_tinydoc
from ollama_adapter.events import (
    Channel,
    Finish,
    Guarantee,
    Seam,
    Standing,
    State,
    Statistics,
    Substitution,
    TokenEvent,
    Way,
)

CERTAINTIES: Final = tuple(
    Style.parse(each)
    for each in ("#d7005f", "#d75f00", "#c8783c", "#a8875a", "#8a8a8a", "none", "none", "none")
)
"""From a guess to what is sure, in equal steps of the root of the certainty.

The root, because certainty is strict: one candidate at a half and four at a tenth make 0.2 of it.
"""
THINKING: Final = Style.parse("italic #8a8a8a")
LABEL: Final = Style.parse("#8a8a8a")
GOOD: Final = Style.parse("#00875f")
BAD: Final = Style.parse("#d7005f")
STATES: Final = {
    State.IDLE: "#8a8a8a",
    State.CHARGING: "#5f87d7",
    State.FLOWING: "#00a078",
    State.SATURATED: "#b48c00",
    State.STALLING: "#d75f5f",
    State.DRAINED: "#8a8a8a",
}
TRACK: Final = "#585858"
QUEUED_MS: Final = 100.0  # a wait worth a word
EIGHTHS: Final = " ▏▎▍▌▋▊▉"
STATE_WIDTH: Final = max(len(state) for state in State)
BAR_MIN: Final = 8
BAR_MAX: Final = 32
FINISHES: Final = {
    Finish.STOP: "finished",
    Finish.LENGTH: "cut at the limit of tokens",
    Finish.REPEAT: "stopped: it repeated itself",
    Finish.ABORTED: "aborted",
    Finish.FAILED: "failed",
}
WAYS: Final = {
    Way.TOKENS: "by token ids",
    Way.RERUN: "by a second run",
    Way.TEXT: "from its text",
    Way.ANEW: "asked anew",
}
DEMONSTRATION: Final = (
    "tinydoc is a demonstration model that knows nothing: do not believe what it says"
)


def token_style(event: TokenEvent) -> Style:
    """The colour of a token by how sure the model was of it; the terminal's own where that is unknown."""
    if event.channel is Channel.THINKING:
        return THINKING
    sure = certainty(event.logprobs)
    return CERTAINTIES[-1 if sure is None else min(int(sqrt(sure) * len(CERTAINTIES)), 7)]


class Status(msgspec.Struct):
    """What the bottom line tells."""

    state: State = State.IDLE
    energy: float = 0.0
    ttft_ms: float = 0.0
    waiting: bool = True
    """No token has come: `ttft_ms` still counts."""
    tps: float | None = None
    tokens: int = 0
    notice: str = ""
    """Why no token comes, where none does."""


def status_line(status: Status, width: int, *, ascii_only: bool = False) -> Text:
    """One line of at most `width` cells; on a narrow terminal the rear fields are left out."""
    if status.notice:
        return _notice_line(status, width, ascii_only=ascii_only)
    rate = "–" if status.tps is None else f"{status.tps:.0f}" if status.tps < 99_999.5 else ">99k"
    fields = [
        f" {status.energy:4.2f}",
        f"  ttft {_brief(status.ttft_ms):>7}{'…' if status.waiting else ' '}",
        f" {rate:>5} tok/s",
        f" {status.tokens:>5} tokens",
    ]
    room = width - STATE_WIDTH - 1
    while fields and room - sum(map(len, fields)) < BAR_MIN:
        fields.pop()
    bar_width = max(0, min(room - sum(map(len, fields)), BAR_MAX))
    line = energy_bar(status.energy, bar_width, status.state, ascii_only=ascii_only)
    line.append(fields[0] if fields else "")
    line.append(f" {status.state.value.upper():<{STATE_WIDTH}}", f"bold {STATES[status.state]}")
    line.append("".join(fields[1:]), LABEL)
    if ascii_only:
        line.plain = line.plain.replace("…", ".").replace("–", "-")
    line.truncate(max(0, width))
    return line


def _notice_line(status: Status, width: int, *, ascii_only: bool) -> Text:
    """The notice takes the place of a rate that is none any more, and if need be that of the bar."""
    words = f"  {status.notice}"
    bar_width = max(0, min(width - STATE_WIDTH - 6 - len(words), BAR_MAX))
    line = energy_bar(status.energy, bar_width, status.state, ascii_only=ascii_only)
    line.append(f" {status.energy:4.2f}" if width >= STATE_WIDTH + 6 else "")
    line.append(f" {status.state.value.upper():<{STATE_WIDTH}}", f"bold {STATES[status.state]}")
    line.append(words, LABEL)
    line.truncate(max(1, width), overflow="crop" if ascii_only else "ellipsis")
    return line if width > 0 else Text()


def energy_bar(energy: float, width: int, state: State, *, ascii_only: bool = False) -> Text:
    """`energy` of `width` cells, in eighths of a cell."""
    filled, eighth = divmod(round(energy * width * 8), 8)
    if ascii_only:
        return Text("#" * filled + "-" * (width - filled))
    cells = "█" * filled
    if filled < width:
        cells += EIGHTHS[eighth]
    return Text().append(f"{cells:<{width}}", f"{STATES[state]} on {TRACK}")


def summary(statistics: Statistics) -> Table:
    """The account of a session: how it ended, how fast it was, and which promises were kept."""
    table = Table.grid(padding=(0, 1))
    table.add_column(style=LABEL, no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("answer", _outcome(statistics))
    if statistics.substitution is not None:
        table.add_row("instead", stood_in(statistics.substitution))
    if statistics.notes:
        table.add_row("changed", "\n".join(statistics.notes))
    if remembered(statistics):
        table.add_row("cached", remembered(statistics))
    if statistics.seams:
        table.add_row("resumed", "\n".join(map(joined, statistics.seams)))
    if statistics.eval_count:
        table.add_row("daemon", _daemon(statistics))
    for label, met, style in (("kept", True, GOOD), ("missed", False, BAD)):
        held = [each for each in statistics.guarantees if each.met is met]
        if held:
            text = "\n".join(map(_missed, held)) if not met else " · ".join(map(_kept, held))
            table.add_row(Text(label, style), text)
    if is_tinydoc(statistics.served_by):
        table.add_row("note", Text(DEMONSTRATION, LABEL))
    return table


def _outcome(statistics: Statistics) -> str:
    parts = [FINISHES.get(statistics.finish or Finish.STOP, str(statistics.finish))]
    parts.append(_count(statistics.tokens))
    if statistics.ttft_ms is not None:
        start = {True: " (warm)", False: " (cold)", None: ""}[statistics.warm]
        parts.append(f"first after {_brief(statistics.ttft_ms)}{start}")
    if statistics.queued_ms >= QUEUED_MS:
        parts.append(f"queued for {_brief(statistics.queued_ms)}")
    if statistics.tps is not None:
        parts.append(f"{statistics.tps:.0f} tokens/s")
    if statistics.mean_energy is not None:
        parts.append(f"mean energy {statistics.mean_energy:.2f}")
    return " · ".join([*parts, statistics.served_by])


def _daemon(statistics: Statistics) -> str:
    parts = [
        f"prompt of {statistics.prompt_eval_count} tokens in "
        f"{_brief(statistics.prompt_eval_duration_ns / 1e6)}",
        f"{statistics.eval_count} generated in {_brief(statistics.eval_duration_ns / 1e6)}",
    ]
    if statistics.load_duration_ns:
        parts.append(f"load {_brief(statistics.load_duration_ns / 1e6)}")
    return " · ".join(parts)


def joined(seam: Seam) -> str:
    """Where and why a stream was interrupted, and how it went on."""
    before = f"after {_count(seam.index)}" if seam.index else "before the first token"
    parts = [f"{before} ({seam.reason})", WAYS[seam.way]]
    if seam.fidelity is not None:
        parts.append(f"fidelity {seam.fidelity:.2f}")
    if seam.gap_ms:
        parts.append(f"gap {_brief(seam.gap_ms)}")
    if not seam.exact:
        parts.append("its length is not exact")
    return " · ".join(parts)


def stood_in(substitution: Substitution) -> str:
    """That another model has answered, and why."""
    return f"{substitution.served} for {substitution.asked}: {substitution.reason}"


def standing(kept: Standing) -> str:
    """How a promise has been kept so far."""
    limit = _measure(kept.limit, kept.unit)
    if kept.latest is None:
        return f"{limit}, not measured yet"
    latest = kept.latest
    cause = f", {latest.cause}" if latest.cause else ""
    last = f"latest {_measure(latest.measured, latest.unit)}{cause}"
    return f"{limit}: met {kept.met}, missed {kept.missed}, {last}"


def remembered(statistics: Statistics) -> str:
    """That an answer is not the model's of today; "" where it is."""
    age_s = statistics.cached_age_s
    if age_s is None:
        return ""
    age = f"{age_s:.0f} s" if age_s < 100 else f"{age_s / 60:.0f} min"
    return f"from memory, {age} old: no daemon can be had"


def _count(tokens: int) -> str:
    return f"{tokens} token{'' if tokens == 1 else 's'}"


def _kept(guarantee: Guarantee) -> str:
    return f"{guarantee.name} {_measure(guarantee.measured, guarantee.unit)}"


def _missed(guarantee: Guarantee) -> str:
    limit = _measure(guarantee.limit, guarantee.unit)
    cause = f": {guarantee.cause}" if guarantee.cause else ""
    return f"{_kept(guarantee)}, promised {limit}{cause}"


def _measure(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    return _brief(value) if unit == "ms" else f"{value:.0f} {unit}"


def _brief(ms: float) -> str:
    """Milliseconds in three digits."""
    if ms < 10:
        return f"{ms:.2f} ms"
    if ms < 1000:
        return f"{ms:.0f} ms"
    return f"{ms / 1000:.2f} s" if ms < 100_000 else f"{ms / 1000:.0f} s"


def size(count: float) -> str:
    """A number of bytes for people, as Ollama shows it."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.5 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
