"""Bars as SVG, without a library: a group per case, on a logarithmic scale, the numbers beside them.

Shorter is better in every plot. Colours tell in a light page and in a dark one.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from math import ceil, floor, log10
from typing import Final

WIDTH: Final = 860
LABELS: Final = 250
BARS: Final = 480
LINE: Final = 19
HEAD: Final = 58
GAP: Final = 24
COLOURS: Final = ("#0b7a75", "#5fb3ae", "#c0392b", "#8e6bbf", "#d08a1d", "#3d6fb4", "#7f8c8d")
STYLE: Final = (
    "text{font:13px system-ui,sans-serif;fill:#333}.t{font-size:16px;font-weight:600}.c{font-weight:600}"
    ".g{stroke:#8884;stroke-width:1}.u{fill:#777;font-size:12px}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.u{fill:#aaa}}"
)

Groups = Mapping[str, Mapping[str, float]]
"""The bars of each case by their names."""


def bars(title: str, unit: str, groups: Groups) -> str:
    """A whole SVG document. Values that are not above 0 have no bar."""
    shown = {case: {k: v for k, v in group.items() if v > 0} for case, group in groups.items()}
    shown = {case: group for case, group in shown.items() if group}
    values = [value for group in shown.values() for value in group.values()]
    low, high = (floor(log10(min(values))), ceil(log10(max(values)) + 0.01)) if values else (0, 1)
    colours = dict(
        zip(dict.fromkeys(name for g in shown.values() for name in g), COLOURS * 3, strict=False)
    )
    parts, y = [], HEAD
    for case, group in shown.items():
        parts.append(_text(8, y + 13, case, "c"))
        y += LINE + 3
        for name, value in group.items():
            parts += _bar(y, name, value, unit, colours[name], (log10(value) - low) / (high - low))
            y += LINE
        y += GAP - LINE // 2
    grid = [_tick(10.0**power, (power - low) / (high - low), y) for power in range(low, high + 1)]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y + 8}" '
            f'viewBox="0 0 {WIDTH} {y + 8}" role="img" aria-label="{escape(title)}">',
            f"<style>{STYLE}</style>",
            _text(8, 22, title, "t"),
            _text(8, 40, f"{unit}, logarithmic; shorter is better", "u"),
            *grid,
            *parts,
            "</svg>\n",
        ]
    )


def _bar(y: int, name: str, value: float, unit: str, colour: str, share: float) -> list[str]:
    width = max(1.0, share * BARS)
    return [
        _text(20, y + 13, name),
        f'<rect x="{LABELS}" y="{y + 2}" width="{width:.1f}" height="{LINE - 5}" rx="2" fill="{colour}"/>',
        _text(LABELS + width + 6, y + 13, f"{_number(value)} {unit}", "u"),
    ]


def _tick(value: float, share: float, bottom: int) -> str:
    x = LABELS + share * BARS
    line = f'<line class="g" x1="{x:.1f}" y1="{HEAD - 6}" x2="{x:.1f}" y2="{bottom}"/>'
    return line + _text(x - 8, HEAD - 9, f"{value:g}", "u")


def _text(x: float, y: float, words: str, kind: str = "") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y}"{style}>{escape(words)}</text>'


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
