"""The colours in which the panel speaks, readable in Slicer's light and dark styles."""

from typing import Any

import qt

PLAIN, BAD, DOUBT, GOOD = "", "bad", "doubt", "good"

COLORS = {BAD: ("#b00020", "#ff8a80"), DOUBT: ("#8a6d00", "#ffd54f"), GOOD: ("#1b5e20", "#a5d6a7")}
"""Of each tone, the colour on light and on dark."""

DARK_BELOW = 128
"""Lightness of what lies behind, 0 to 255."""


def paint(label: Any, tone: str) -> None:
    """Give a label's text its tone."""
    isDark = label.palette.color(qt.QPalette.Window).lightness() < DARK_BELOW
    label.styleSheet = f"color: {COLORS[tone][isDark]};" if tone else ""
