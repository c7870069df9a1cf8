"""Charts of the comparison, as SVG that any browser shows: a light card, so that it reads on a dark page too."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final
from xml.sax.saxutils import escape

LOOKS: Final = (  # colours that the colour-blind tell apart (Okabe and Ito), and a shape for each
    ("#0072b2", "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0z"),
    ("#d55e00", "M-4.5,-4.5h9v9h-9z"),
    ("#009e73", "M0,-5.5L5.2,4H-5.2z"),
    ("#aa4499", "M0,-6L6,0L0,6L-6,0z"),
)
PANEL_WIDTH: Final = 290
PLOT_HEIGHT: Final = 230
LEFT: Final = 56
GAP: Final = 24
TOP: Final = 92
BOTTOM: Final = 84

Panel = Mapping[str, Sequence[float]]  # by policy, a value for each label


def chart(title: str, unit: str, labels: Sequence[str], panels: Mapping[str, Panel], *, low: float, high: float) -> str:
    """Panels side by side on one logarithmic scale, ``low`` to ``high``: above each label a mark for each policy."""
    width = LEFT + len(panels) * PANEL_WIDTH + GAP
    height = TOP + PLOT_HEIGHT + BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"',
        'font-family="system-ui, sans-serif" font-size="12" fill="#1f2937">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff" stroke="#d1d5db"/>',
        f'<text x="16" y="28" font-size="15" font-weight="600">{escape(title)}</text>',
    ]
    parts += _legend(list(next(iter(panels.values()))))

    def y(value: float) -> float:
        part = math.log(min(high, max(low, value)) / low) / math.log(high / low)
        return TOP + PLOT_HEIGHT * (1 - part)

    for number, (name, panel) in enumerate(panels.items()):
        left = LEFT + number * PANEL_WIDTH
        parts.append(f'<text x="{left}" y="{TOP - 12}" font-weight="600">{escape(name)}</text>')
        for tick in _ticks(low, high):
            parts.append(f'<path d="M{left},{y(tick):.1f}h{PANEL_WIDTH - GAP}" stroke="#e5e7eb"/>')
            if not number:
                parts.append(f'<text x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
        step = (PANEL_WIDTH - GAP) / len(labels)
        for at, label in enumerate(labels):
            x = left + step * (at + 0.5)
            place = f"translate({x + 4:.1f},{TOP + PLOT_HEIGHT + 14}) rotate(-40)"
            parts.append(f'<text transform="{place}" text-anchor="end">{escape(label)}</text>')
            for order, (look, values) in enumerate(zip(LOOKS, panel.values(), strict=False)):
                aside = (order - (len(panel) - 1) / 2) * min(9.0, step / (len(panel) + 1))
                parts.append(_mark(look, x + aside, y(values[at])))
    parts.append(f'<text x="16" y="{TOP - 12}" fill="#6b7280">{escape(unit)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _mark(look: tuple[str, str], x: float, y: float) -> str:
    colour, shape = look
    return f'<path d="{shape}" transform="translate({x:.1f},{y:.1f})" fill="{colour}" stroke="#ffffff"/>'


def _legend(names: Sequence[str]) -> list[str]:
    parts = []
    for number, (look, name) in enumerate(zip(LOOKS, names, strict=False)):
        x = 22 + 140 * number
        parts.append(_mark(look, x, 50))
        parts.append(f'<text x="{x + 11}" y="54">{escape(name)}</text>')
    return parts


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten between ``low`` and ``high``."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**power for power in powers for step in (1, 2, 5)]
    return [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]
