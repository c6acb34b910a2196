"""Combo boxes of which each entry stands for a value."""

from collections.abc import Iterable
from typing import Any

import qt


def fill(combo: Any, entries: Iterable[tuple[str, Any]]) -> None:
    """Replace the entries by (text, value); a value of None makes a heading, which can't be chosen."""
    blocked = combo.blockSignals(True)
    combo.clear()
    for text, value in entries:
        combo.addItem(text, value)
        if value is None:
            combo.setItemData(combo.count - 1, 0, qt.Qt.UserRole - 1)  # the flags of Qt's own model: none
    combo.blockSignals(blocked)


def choose(combo: Any, value: Any, otherwise: str = "") -> None:
    """Make the entry of `value` current; where there is none, add one with the text `otherwise`."""
    index = combo.findData(value)
    blocked = combo.blockSignals(True)
    if index < 0 and otherwise:
        combo.addItem(otherwise, value)
        index = combo.count - 1
    combo.setCurrentIndex(index)
    combo.blockSignals(blocked)


def chosen(combo: Any) -> Any:
    """The value of the current entry; None where there is none."""
    return combo.itemData(combo.currentIndex)
