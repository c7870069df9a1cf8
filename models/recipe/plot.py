"""A picture of the loss, as an SVG that any browser shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final
from xml.sax.saxutils import escape  # nosec  # nothing is parsed

WIDTH: Final = 720
HEIGHT: Final = 320
MARGIN: Final = 44
SMOOTHED: Final = 10
COLOURS: Final = ("#8aa4c8", "#c2410c", "#15803d")

Line = Sequence[tuple[int, float]]  # steps and values


def smooth(line: Line) -> list[tuple[int, float]]:
    """Each value the mean of the last SMOOTHED: one batch is of short sentences, the next of long ones."""
    return [
        (step, sum(value for _, value in line[max(0, at + 1 - SMOOTHED) : at + 1]) / min(at + 1, SMOOTHED))
        for at, (step, _) in enumerate(line)
    ]


def svg(title: str, lines: Mapping[str, Line]) -> str:
    """A chart of ``lines``, each with its name."""
    points = [point for line in lines.values() for point in line]
    right = max([step for step, _ in points], default=1) or 1
    low, high = (edge([value for _, value in points], default=0.0) for edge in (min, max))
    span = (high - low) or 1.0

    def at(step: int, value: float) -> str:
        x = MARGIN + (WIDTH - 2 * MARGIN) * step / right
        y = HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (value - low) / span
        return f"{x:.1f},{y:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"',
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{MARGIN}" y="22" font-size="14">{escape(title)}</text>',
        f'<path d="M{MARGIN},{MARGIN}V{HEIGHT - MARGIN}H{WIDTH - MARGIN}" fill="none" stroke="#555"/>',
        f'<text x="4" y="{MARGIN + 4}">{high:.2f}</text><text x="4" y="{HEIGHT - MARGIN}">{low:.2f}</text>',
        f'<text x="{WIDTH - MARGIN}" y="{HEIGHT - MARGIN + 16}" text-anchor="end">{right} steps</text>',
    ]
    for number, (name, line) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        drawn = " ".join(at(*point) for point in line)
        parts.append(f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        place = f'x="{WIDTH - MARGIN}" y="{MARGIN + 16 * number}" text-anchor="end"'
        parts.append(f'<text {place} fill="{colour}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])
