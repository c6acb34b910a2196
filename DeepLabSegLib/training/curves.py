"""How a training went, as a table and as a picture."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Iterable, Mapping
from math import isfinite
from pathlib import Path

from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.outputs import replacing

__all__ = ["Curves"]

POINTS = 200  # the drawn loss is a mean over so many parts of the run
MAX_DRAWN = 16  # scores; of more the mean alone is drawn
MAX_LETTERS = 96  # in a row of the legend


class Curves:
    """A row per step: its loss and learning rate, and the scores where it was validated; `curves.csv` and `.png`.

    Raises `InvalidInput` where matplotlib, which draws the picture, is missing.
    """

    def __init__(self, folder: Path) -> None:
        try:
            import matplotlib.figure  # noqa: F401 said before hours of training, not after
        except ImportError:
            raise InvalidInput(
                "training draws its curves with matplotlib, which is missing; pip install matplotlib"
            ) from None
        self._table = folder / "curves.csv"
        self._picture = folder / "curves.png"
        self._rows: dict[int, dict[str, float]] = {}

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Note `values` of `step`."""
        self._rows.setdefault(step, {}).update(values)

    def load(self, last: int) -> None:
        """Read what an earlier run wrote, up to step `last`. Raises `InvalidInput` where that can't be read."""
        if not self._table.exists():
            return
        try:
            with self._table.open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    step = int(row.pop("step"))
                    if step <= last:
                        self._rows[step] = {name: float(value) for name, value in row.items() if value}
        except (KeyError, TypeError, ValueError, csv.Error):
            raise InvalidInput(
                f"{self._table} is damaged or was saved by another program; delete it, and the same command goes on, "
                "with a curve that begins here"
            ) from None

    def save(self) -> None:
        """Write both files."""
        names = list(dict.fromkeys(name for values in self._rows.values() for name in values))
        with replacing(self._table) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["step", *names])
            writer.writeheader()
            for step, values in self._rows.items():
                writer.writerow({"step": step} | {name: repr(value) for name, value in values.items()})
        self._draw(names)

    def _draw(self, names: Iterable[str]) -> None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 5), layout="constrained")
        left = figure.subplots()
        steps = [step for step, values in self._rows.items() if "loss" in values]
        size = max(1, len(steps) // POINTS)
        parts = [steps[n : n + size] for n in range(0, len(steps), size)]
        means = [sum(self._rows[step]["loss"] for step in part) / len(part) for part in parts]
        left.plot([part[-1] for part in parts], means, color="0.5", label="loss")
        left.set(xlabel="step", ylabel="loss")
        right = left.twinx()
        right.set(ylabel="Dice of held-out cases", ylim=(0, 1))
        scores = [name for name in names if name not in ("loss", "learning_rate")]
        for name in scores if len(scores) <= MAX_DRAWN else scores[:1]:  # the first is the mean
            points = [(step, values[name]) for step, values in self._rows.items() if name in values]
            if all(isfinite(value) for _, value in points):
                # What stands between two dollars would be a formula.
                label = name[:MAX_LETTERS].replace("$", r"\$")
                right.plot(*zip(*points, strict=True), marker=".", label=label)
        columns = MAX_LETTERS // (8 + max(map(len, scores), default=0))  # the lines before them take 8
        figure.legend(loc="outside lower center", ncols=min(max(columns, 1), 4), frameon=False)
        with replacing(self._picture) as temporary, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # of Chinese names, which the table has whole
            figure.savefig(temporary, format="png", dpi=100)
