"""The colours in which the panel speaks, readable in Slicer's light and dark styles."""

import html
from typing import Any

import qt
import slicer

PLAIN, BAD, DOUBT, GOOD = "", "bad", "doubt", "good"

COLORS = {BAD: ("#b00020", "#ff8a80"), DOUBT: ("#8a6d00", "#ffd54f"), GOOD: ("#1b5e20", "#a5d6a7")}
"""Of each tone, the colour on light and on dark."""

DARK_BELOW = 128
"""Lightness of what lies behind, 0 to 255."""


def paint(label: Any, tone: str) -> None:
    """Give a label's text its tone."""
    label.setProperty("tone", tone)
    # Its parent's palette: a label that has a style sheet keeps the one of a former style.
    _color(label, label.parent().palette)


def tell(label: Any, text: str, tone: str = PLAIN) -> None:
    """Say something in a label. A name that is wider than the panel is cut in it, and whole in its tooltip."""
    label.text = text
    label.toolTip = f"<p>{html.escape(text)}</p>" if text else ""
    paint(label, tone)


def tell_or_hide(label: Any, text: str, tone: str) -> None:
    """`tell`, where there is something to say; else the label takes no room."""
    tell(label, text, tone)
    label.visible = bool(text)


def repaint(widget: Any, palette: Any) -> None:
    """Give all labels in `widget` their tones on a palette that they are about to get."""
    for label in slicer.util.findChildren(widget, className="QLabel"):
        if label.property("tone"):
            _color(label, palette)


def _color(label: Any, palette: Any) -> None:
    tone, isDark = label.property("tone"), palette.color(qt.QPalette.Window).lightness() < DARK_BELOW
    label.styleSheet = f"color: {COLORS[tone][isDark]};" if tone else ""
