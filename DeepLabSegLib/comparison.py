"""Many segmentations against their references: every case is reported, and one that fails doesn't stop the rest."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from DeepLabSegLib import files, overlay
from DeepLabSegLib.errors import DeepLabSegError, InvalidInput
from DeepLabSegLib.evaluate import (
    INTERVAL_METHOD,
    Group,
    Scores,
    Summary,
    compare,
    groups_of,
    lacking,
    lowest_dice,
    summarize,
)
from DeepLabSegLib.image import Geometry, Labels
from DeepLabSegLib.outputs import check_output, replacing
from DeepLabSegLib.pairing import Pair, Pairing, unique
from DeepLabSegLib.schema import dumps

__all__ = ["TABLES", "Comparison", "check_folder", "compare_files", "draw_worst", "write_tables"]

TABLES = ("cases.csv", "summary.csv", "summary.json")


@dataclass(frozen=True)
class Comparison:
    """Scores per case and label of the cases that could be compared, and why others could not.

    `not_found` are, for "prediction" and "reference", the labels that groups name and none of these cases has.
    """

    pairing: Pairing
    cases: Mapping[str, Mapping[str, Scores]]
    failed: Mapping[str, str] = field(default_factory=dict)
    not_found: Mapping[str, Sequence[int | str]] = field(default_factory=dict)

    @cached_property
    def summary(self) -> dict[str, dict[str, Summary]]:
        """Per label and measure."""
        return summarize(self.cases)

    @cached_property
    def disjoint(self) -> list[str]:
        """The cases where both sides have labels, and not one label is on both."""
        found = []
        for case, labels in self.cases.items():
            sides = [(scores.volume > 0, scores.reference_volume > 0) for scores in labels.values()]
            if (True, True) not in sides and (True, False) in sides and (False, True) in sides:
                found.append(case)
        return found

    def report(self) -> dict[str, Any]:
        """All of it for programs; None for what is not defined, and for the interval of fewer than two cases."""
        summary = {
            label: {name: asdict(found) for name, found in measures.items()} for label, measures in self.summary.items()
        }
        cases = {
            pair.name: {
                "prediction": str(pair.prediction),
                "reference": str(pair.reference),
                "labels": {label: _row(scores) for label, scores in self.cases[pair.name].items()},
            }
            for pair in self.pairing.pairs
            if pair.name in self.cases
        }
        found = {
            "interval": INTERVAL_METHOD,
            "summary": summary,
            "cases": cases,
            "failed": dict(self.failed),
            "without_common_label": self.disjoint,
            "not_found": dict(self.not_found),
            "without_reference": [str(path) for path in self.pairing.without_reference],
            "without_prediction": [str(path) for path in self.pairing.without_prediction],
            "against_names": [pair.name for pair in self.pairing.against_names],
        }
        return _defined(found)


def compare_files(
    pairing: Pairing, groups: Mapping[str, Group] | None = None, on_case: Callable[[str], object] | None = None
) -> Comparison:
    """Scores of every pair, by `groups` or else `groups_of` it; `on_case` is called with each name when it is done.

    Raises `InvalidInput` where not one pair could be compared.
    """
    cases, failed = {}, {}
    not_found = {side: _labels_of(groups or {}, side) for side in ("prediction", "reference")}
    for pair in pairing.pairs:
        try:
            prediction, reference = _read(pair)
            cases[pair.name] = compare(prediction, reference, groups or groups_of(prediction, reference))
            not_found = {
                side: lacking(labels, not_found[side])
                for side, labels in (("prediction", prediction), ("reference", reference))
            }
        except (DeepLabSegError, OSError, MemoryError) as error:
            failed[pair.name] = f"{pair.prediction} and {pair.reference}: {str(error) or type(error).__name__}"
        if on_case is not None:
            on_case(pair.name)
    if not cases:
        more = f" (and {len(failed) - 1} more cases)" if len(failed) > 1 else ""
        raise InvalidInput(f"nothing could be compared: {next(iter(failed.values()))}{more}")
    return Comparison(pairing, cases, failed, not_found)


def check_folder(folder: Path, overwrite: bool) -> None:
    """Raise `OutputError` where an earlier comparison lies in `folder`, or it can't be written to."""
    for name in (*TABLES, *(path.name for path in sorted(folder.glob("worst-*.png")))):
        check_output(folder / name, (".csv", ".json", ".png"), overwrite)


def write_tables(comparison: Comparison, folder: Path) -> None:
    """`cases.csv`, a row per case and label; `summary.csv`, a row per label and measure; `summary.json`.

    A value that isn't defined is an empty cell. A case that failed has a row without a label, which says why.
    """
    rows = [
        {"case": case, "label": label} | _row(scores) | {"message": ""}
        for case, labels in comparison.cases.items()
        for label, scores in labels.items()
    ]
    undefined = {"label": ""} | _row(Scores(math.nan, math.nan, math.nan, math.nan))
    rows += [{"case": case} | undefined | {"message": why} for case, why in comparison.failed.items()]
    _write_csv(folder / "cases.csv", rows)
    rows = []
    for label, measures in comparison.summary.items():
        for name, found in measures.items():
            row = {"label": label, "measure": name} | asdict(found)
            low, high = row.pop("interval") or (math.nan, math.nan)
            rows.append(row | {"interval_low": low, "interval_high": high, "worst": row.pop("worst")})
    _write_csv(folder / "summary.csv", rows)
    content = comparison.report()
    del content["cases"]
    with replacing(folder / "summary.json") as temporary:
        temporary.write_text(dumps(content) + "\n", encoding="utf-8", errors="replace")


def draw_worst(
    comparison: Comparison,
    folder: Path,
    count: int,
    groups: Mapping[str, Group] | None = None,
    on_case: Callable[[str], object] | None = None,
) -> tuple[list[Path], dict[str, str]]:
    """Pictures of the `count` cases of lowest Dice, per label and, for several labels, over all of them.

    Returns the files, `worst-<label or overall>-<case>.png`, and what went wrong by case.
    """
    labels = list(comparison.summary)
    topics: list[str | None] = [None, *labels] if len(labels) > 1 else list(labels)
    wanted = [(topic, case) for topic in topics for case in lowest_dice(comparison.cases, count, topic)]
    names = unique([f"worst-{'overall' if topic is None else _slug(topic)}-{case}" for topic, case in wanted])
    written: list[Path] = []
    failed = {}
    for pair in comparison.pairing.pairs:
        jobs = [(topic, name) for (topic, case), name in zip(wanted, names, strict=True) if case == pair.name]
        if not jobs:
            continue
        try:
            for path in _draw(pair, comparison.cases[pair.name], jobs, folder, groups):
                written.append(path)
        except (DeepLabSegError, OSError, MemoryError) as error:
            failed[pair.name] = f"no picture: {str(error) or type(error).__name__}"
        if on_case is not None:
            on_case(pair.name)
    return written, failed


def _labels_of(groups: Mapping[str, Group], side: str) -> list[int | str]:
    return list(dict.fromkeys(label for group in groups.values() for label in getattr(group, side) or ()))


def _read(pair: Pair) -> tuple[Labels, Labels]:
    """Both sides; a picture, which has no position, lies where the other side does if that has its size."""
    prediction, reference = files.read_labels(pair.prediction), files.read_labels(pair.reference)
    if prediction.geometry.shape == reference.geometry.shape:
        if files.is_picture(pair.reference):
            reference = replace(reference, geometry=prediction.geometry)
        elif files.is_picture(pair.prediction):
            prediction = replace(prediction, geometry=reference.geometry)
    elif files.is_segmentation(pair.reference):
        reference = _uncropped(reference, prediction.geometry)
    return prediction, reference


def _uncropped(labels: Labels, geometry: Geometry) -> Labels:
    """`labels` on all of `geometry`, if they are the part of it that their segments fill, as Slicer may save it."""
    box = labels.geometry.box_in(geometry)
    if box is None:
        return labels
    filled = np.argwhere(np.logical_or.reduce(labels.layers > 0))
    sides = np.ptp(filled, axis=0) + 1 if len(filled) else np.ones(3)  # of empty segments Slicer saves one voxel
    if (sides < labels.geometry.shape).any():
        return labels
    array = np.zeros((*labels.array.shape[:-3], *geometry.shape), labels.array.dtype)
    array[(..., *box)] = labels.array
    return replace(labels, array=array, geometry=geometry)


def _draw(
    pair: Pair,
    scores: Mapping[str, Scores],
    jobs: Iterable[tuple[str | None, str]],
    folder: Path,
    groups: Mapping[str, Group] | None,
) -> Iterator[Path]:
    """Write a picture per topic and name, and say so after each."""
    prediction, reference = _read(pair)
    image = None
    if pair.image is not None:
        image = files.read_image(pair.image)
        without_position = files.is_picture(pair.image) or files.is_picture(pair.prediction)
        if without_position and image.geometry.shape == prediction.geometry.shape:
            image = replace(image, geometry=prediction.geometry)
    known = groups or groups_of(prediction, reference)
    for topic, name in jobs:
        shown = {label: group for label, group in known.items() if topic in (None, label)}
        title = f"{'All labels' if topic is None else topic}, {pair.name}"
        path = folder / f"{name}.png"
        with replacing(path) as temporary:
            overlay.render_comparison(prediction, reference, shown, scores, image, title).save(temporary)
        yield path


def _row(scores: Scores) -> dict[str, float]:
    return {
        "dice": scores.dice,
        "hausdorff95_mm": scores.hausdorff95,
        "volume_ml": scores.volume,
        "reference_volume_ml": scores.reference_volume,
        "volume_difference_percent": scores.volume_difference,
    }


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with (
        replacing(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="replace") as file,
    ):
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["case", "label"])
        writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4f}"
    return value


def _defined(value: Any) -> Any:
    """JSON knows no NaN; None stands for it."""
    if isinstance(value, dict):
        return {key: _defined(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_defined(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _slug(label: str) -> str:
    """A label as part of a file's name: letters and digits of any language, and hyphens."""
    return re.sub(r"\W+", "-", label).strip("-").lower() or "label"
