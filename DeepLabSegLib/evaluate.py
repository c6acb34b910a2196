"""How well segmentations agree with references: Dice, surface distance, volume; per case, and over cases."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, stats

from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.image import MAX_LABEL, SAME_GRID, Labels, Segment, plain_name
from DeepLabSegLib.schema import from_json, load_json

__all__ = [
    "INTERVAL_METHOD",
    "MEASURES",
    "Group",
    "Scores",
    "Summary",
    "compare",
    "dice",
    "groups_of",
    "hausdorff95",
    "in_grey",
    "lacking",
    "lowest_dice",
    "mask_of",
    "mean_interval",
    "name_key",
    "number_of",
    "read_groups",
    "summarize",
    "unnamed",
]

RESAMPLES = 9999
SEED = 0
INTERVAL_METHOD = f"95% interval of the mean: BCa bootstrap over cases, {RESAMPLES} resamples, seed {SEED}"
NUMBERED = re.compile(r"label (\d+)")


@dataclass(frozen=True)
class Group:
    """A structure to compare: which labels stand for it on either side; None means any label above 0.

    A number is a label's value, a text the name of segments, whatever their values and layers.

    Raises `InvalidInput` for values that no label has, or an empty list.
    """

    prediction: tuple[int | str, ...] | None = None
    reference: tuple[int | str, ...] | None = None

    def __post_init__(self) -> None:
        for side in ("prediction", "reference"):
            wanted = getattr(self, side)
            if wanted is None:
                continue
            if not wanted or not all(isinstance(label, str) or 1 <= label <= MAX_LABEL for label in wanted):
                raise InvalidInput(
                    f"{side} is {list(wanted)}; give names, label values from 1 to {MAX_LABEL}, or null for any label"
                )


@dataclass(frozen=True)
class Scores:
    """`dice` is 0 to 1, NaN where both sides are empty, `hausdorff95` in mm, NaN where one is; volumes are in ml."""

    dice: float
    hausdorff95: float
    volume: float
    reference_volume: float

    @property
    def volume_difference(self) -> float:
        """Prediction minus reference, in percent of the reference; NaN for an empty reference."""
        if self.reference_volume == 0:
            return float("nan")
        return 100 * (self.volume - self.reference_volume) / self.reference_volume


@dataclass(frozen=True)
class Summary:
    """One measure of one label over cases; NaN where no case has it.

    `n` cases count; `left_out` are those where the measure isn't defined: for Dice, where neither side has the label.
    `interval` is the 95% confidence interval of the mean, None for fewer than two cases. `worst` names a case.
    """

    n: int
    left_out: int
    mean: float
    interval: tuple[float, float] | None
    median: float
    minimum: float
    maximum: float
    worst: str | None


@dataclass(frozen=True)
class Measure:
    """How a measure is taken from `Scores`, and how bad a value is."""

    value: Callable[[Scores], float]
    badness: Callable[[float], float]


MEASURES = {
    "dice": Measure(lambda scores: scores.dice, lambda value: -value),
    "hausdorff95_mm": Measure(lambda scores: scores.hausdorff95, lambda value: value),
    "volume_difference_percent": Measure(lambda scores: scores.volume_difference, abs),
}


def compare(prediction: Labels, reference: Labels, groups: Mapping[str, Group]) -> dict[str, Scores]:
    """Scores per group. Raises `InvalidInput` where the two lie on different grids, and as `in_grey` and `mask_of`."""
    prediction, reference = in_grey(prediction), in_grey(reference)
    if not prediction.geometry.is_close(reference.geometry, SAME_GRID):
        raise InvalidInput(
            f"prediction and reference lie on different grids ({prediction.geometry.shape} and "
            f"{reference.geometry.shape} voxels, or other positions); resample one to the other first"
        )
    ml = prediction.geometry.voxel_volume / 1000
    scores = {}
    for name, group in groups.items():
        ours, theirs = mask_of(prediction, group.prediction), mask_of(reference, group.reference)
        scores[name] = Scores(
            dice(ours, theirs),
            hausdorff95(ours, theirs, prediction.geometry.spacing),
            float(np.count_nonzero(ours) * ml),
            float(np.count_nonzero(theirs) * ml),
        )
    return scores


def summarize(cases: Mapping[str, Mapping[str, Scores]]) -> dict[str, dict[str, Summary]]:
    """A summary per label and measure of `MEASURES`, from the scores of named cases.

    A case without a label has it on neither side, and is left out of that label's figures.
    """
    labels = dict.fromkeys(label for scores in cases.values() for label in scores)
    return {
        label: {
            name: _summary(
                {case: measure.value(scores[label]) for case, scores in cases.items() if label in scores},
                len(cases),
                measure.badness,
            )
            for name, measure in MEASURES.items()
        }
        for label in labels
    }


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95% confidence interval of the mean by bootstrap over `values` (Efron, JASA 1987: bias-corrected, accelerated).

    None for fewer than two values. The same values give the same interval.
    """
    if len(values) < 2:
        return None
    if np.ptp(values) < 1e-9:  # for equal values the correction divides zero by zero
        return min(values), max(values)
    generator = np.random.default_rng(SEED)
    found = stats.bootstrap((values,), np.mean, n_resamples=RESAMPLES, batch=1000, random_state=generator)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def lowest_dice(cases: Mapping[str, Mapping[str, Scores]], count: int, label: str | None = None) -> list[str]:
    """Up to `count` cases with the lowest Dice of `label`, or mean Dice over labels, lowest first; none that is 1."""
    found = {}
    for case, scores in cases.items():
        values = [score.dice for name, score in scores.items() if label in (None, name) and not math.isnan(score.dice)]
        if values and sum(values) < len(values):
            found[case] = sum(values) / len(values)
    return sorted(found, key=lambda case: found[case])[:count]


def mask_of(labels: Labels, wanted: Sequence[int | str] | None) -> NDArray[np.bool_]:
    """`(k, j, i)`, true where `labels` have one of `wanted`, which is a side of a `Group`.

    Raises `InvalidInput` for a value that stands for several segments, each in a layer of its own.
    """
    if wanted is None:
        return np.logical_or.reduce(labels.layers > 0)
    keys = {name_key(label) for label in wanted if isinstance(label, str)}
    values = [label for label in wanted if not isinstance(label, str)]
    for value in values:
        names = [segment.name for segment in labels.segments if segment.value == value]
        if len(names) > 1:
            raise InvalidInput(
                f"the value {value} stands for {' and '.join(names)}, which may overlap, so that it has no counterpart "
                "on the other side; give that side the same names, as a .seg.nrrd"
            )
    named = [labels.mask(segment) for segment in labels.segments if name_key(segment.name) in keys]
    return np.logical_or.reduce([*np.isin(labels.layers, values), *named])


def lacking(labels: Labels, wanted: Sequence[int | str]) -> list[int | str]:
    """Those of `wanted`, as in a side of a `Group`, that are no segment's value or name."""
    known = {key for segment in labels.segments for key in (segment.value, name_key(segment.name))}
    return [label for label in wanted if (name_key(label) if isinstance(label, str) else label) not in known]


def in_grey(labels: Labels) -> Labels:
    """A picture in grey with one of its equal channels; whatever isn't a plain label map of several stays as it is.

    Raises `InvalidInput` for a mask in colours, whose parts would be taken for labels.
    """
    plain = all(unnamed(segment) and not segment.layer for segment in labels.segments)
    if labels.array.ndim == 3 or not plain:
        return labels
    if (labels.array[:3] == labels.array[0]).all():
        return replace(labels, array=labels.array[0])
    raise InvalidInput(
        f"a mask has {len(labels.layers)} numbers per voxel, as a picture in colours or with a palette; "
        "save the mask with one grey value per class, 0 for none"
    )


def groups_of(prediction: Labels, reference: Labels) -> dict[str, Group]:
    """A group per segment name where both sides have names, and otherwise per label value of either side.

    `Label 4` is a name where its value is another, as of a model that learned from label maps with the values 2 and 4.
    Values of one name are told apart, as `Lesion (1)` and `Lesion (2)`.
    """
    segments = (*prediction.segments, *reference.segments)
    plain = [unnamed(segment) for segment in segments]
    named = not any(plain) or (not all(plain) and None not in map(number_of, segments))
    if prediction.segments and reference.segments and named:
        names: dict[str, str] = {}
        for segment in segments:
            names.setdefault(name_key(segment.name), segment.name)
        return {name: Group((name,), (name,)) for name in names.values()}
    # A name of either side goes before none.
    named_last = sorted((*reference.segments, *prediction.segments), key=lambda segment: not unnamed(segment))
    values = {segment.value: segment.name for segment in named_last}
    counts = Counter(values.values())
    return {
        name if counts[name] == 1 else f"{name} ({value})": Group((value,), (value,))
        for value, name in sorted(values.items())
    }


def unnamed(segment: Segment) -> bool:
    """Whether a segment comes from a plain label map, which has values alone."""
    return segment.name == plain_name(segment.value)


def number_of(segment: Segment) -> int | None:
    """The value that a segment is called after: its own, or that of the labels from which a model has learned it."""
    found = NUMBERED.fullmatch(name_key(segment.name))
    return None if found is None else int(found[1])


def name_key(name: str) -> str:
    """What two spellings of a segment's or class's name have in common."""
    return name.strip().casefold()


def read_groups(path: str | Path) -> dict[str, Group]:
    """Groups from JSON: `{"Kidneys": {"prediction": [4, 5], "reference": ["Left kidney", "Right kidney"]}, ...}`.

    A list may be null.
    """
    try:
        content = load_json(path)
        if not isinstance(content, dict) or not content:
            raise InvalidInput("an object with a group per name is needed")
        return {name: from_json(Group, value, name) for name, value in content.items()}
    except InvalidInput as error:
        raise InvalidInput(f"{path} can't be read as groups: {error}") from None


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Overlap of two masks, 2|a∩b| / (|a| + |b|); NaN where both are empty (Dice, Ecology 1945)."""
    total = np.count_nonzero(a) + np.count_nonzero(b)
    return float(2 * np.count_nonzero(a & b) / total) if total else float("nan")


def hausdorff95(a: NDArray[np.bool_], b: NDArray[np.bool_], spacing: Sequence[float]) -> float:
    """95th percentile of surface distances in mm, the larger of both directions; NaN where a mask is empty.

    A surface voxel is one with a face neighbour outside the mask, in a single slice one in its plane; distances are
    between voxel centres.
    """
    if not a.any() or not b.any():
        return float("nan")
    box = ndimage.find_objects((a | b).astype(np.uint8))[0]  # what lies around it counts as outside
    faces = ndimage.generate_binary_structure(a.ndim, 1)
    if max(a.shape) > 1:  # what is one voxel thick has no neighbours across, and would be all surface
        faces = faces[tuple(slice(1, 2) if size == 1 else slice(None) for size in a.shape)]
    surfaces = [mask[box] & ~ndimage.binary_erosion(mask[box], faces) for mask in (a, b)]
    to_a, to_b = (ndimage.distance_transform_edt(~surface, sampling=spacing) for surface in surfaces)
    return float(max(np.percentile(to_b[surfaces[0]], 95), np.percentile(to_a[surfaces[1]], 95)))


def _summary(values: Mapping[str, float], cases: int, badness: Callable[[float], float]) -> Summary:
    known = {case: value for case, value in values.items() if not math.isnan(value)}
    if not known:
        nan = float("nan")
        return Summary(0, cases, nan, None, nan, nan, nan, None)
    numbers = list(known.values())
    return Summary(
        len(known),
        cases - len(known),
        float(np.mean(numbers)),
        mean_interval(numbers),
        float(np.median(numbers)),
        min(numbers),
        max(numbers),
        max(known, key=lambda case: badness(known[case])),
    )
