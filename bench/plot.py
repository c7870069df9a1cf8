"""A picture of one figure against a count (of nodes, of tokens), as an SVG that any browser shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final
from xml.sax.saxutils import escape

WIDTH: Final = 720
HEIGHT: Final = 320
LEFT: Final = 52
RIGHT: Final = 150  # room for the lines' names
MARGIN: Final = 44
COLOURS: Final = ("#15803d", "#1d4ed8", "#c2410c", "#6b7280")
STEPS: Final = (1, 2, 5)  # of a power of ten: how far apart the marks of the figure may be
NAME_PX: Final = 15.0  # from one line's name to the next, at least

Line = Sequence[tuple[int, float]]  # a count from 1 on, the figure


def step(most: float, marks: int = 5) -> float:
    """How far apart marks are, so that about ``marks`` of them reach ``most``."""
    power = 10.0 ** math.floor(math.log10(most / marks))
    return next((one * power for one in STEPS if one * power >= most / marks), 10 * power)


def spread(places: Sequence[float], least: float = NAME_PX) -> list[float]:
    """``places`` (pixels), moved down where they are less than ``least`` apart; in the order given."""
    moved = list(places)
    last = -math.inf
    for index in sorted(range(len(places)), key=lambda index: places[index]):
        last = moved[index] = max(places[index], last + least)
    return moved


def svg(title: str, unit: str, lines: Mapping[str, Line]) -> str:
    """A chart of ``lines``, each with its name at its end; counts on a scale of powers of ten."""
    points = [point for line in lines.values() for point in line]
    counts = sorted({count for count, _ in points})
    decades = math.log10(max(counts) / min(counts)) or 1.0
    mark = step(max(value for _, value in points))
    top = mark * math.ceil(max(value for _, value in points) / mark)

    def x(count: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log10(count / min(counts)) / decades

    def y(value: float) -> float:
        return HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * value / top

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"',
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="14">{escape(title)}</text>',
        f'<text x="{x(max(counts)):.0f}" y="{HEIGHT - 8}" text-anchor="end">{escape(unit)}</text>',
    ]
    for number in range(round(top / mark) + 1):
        height = y(number * mark)
        parts.append(f'<path d="M{LEFT},{height:.1f}H{WIDTH - RIGHT}" stroke="#{"555" if not number else "ddd"}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{height + 4:.1f}" text-anchor="end">{number * mark:g}</text>')
    for count in counts:
        parts.append(f'<text x="{x(count):.1f}" y="{HEIGHT - MARGIN + 16}" text-anchor="middle">{count}</text>')
    ends = spread([y(line[-1][1]) for line in lines.values()])
    for number, ((name, line), end) in enumerate(zip(lines.items(), ends, strict=True)):
        colour = COLOURS[number % len(COLOURS)]
        drawn = " ".join(f"{x(count):.1f},{y(value):.1f}" for count, value in line)
        parts.append(f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x(count):.1f}" cy="{y(value):.1f}" r="3" fill="{colour}"/>' for count, value in line]
        parts.append(f'<text x="{WIDTH - RIGHT + 10}" y="{end + 4:.1f}" fill="{colour}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])
