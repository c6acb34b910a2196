"""Cases on the model's grid, made once and read in parts.

A case is normalised and resampled exactly as `segmenter` and `streaming` do with a scan, so that a network is trained
on what it will be fed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from DeepLabSegLib.errors import InvalidInput, OutputError
from DeepLabSegLib.image import Geometry, Image, Labels
from DeepLabSegLib.outputs import leftovers, replacing
from DeepLabSegLib.preprocess import model_grid
from DeepLabSegLib.resampling import resample
from DeepLabSegLib.schema import dumps, from_json, to_json
from DeepLabSegLib.training.cases import Case
from DeepLabSegLib.training.pairs import class_of, on_grid, read_pair, sample
from DeepLabSegLib.training.planning import MAX_VOXELS, TrainingPlan

__all__ = ["PreparedCase", "case_key", "class_indices", "on_model_grid", "prepare"]

FORMAT = 3
"""Part of what is compared: raised when prepared files change."""

POSITIONS = 10_000
"""Voxels of a class that patches are centred at, at most, drawn from all of the class."""


@dataclass(frozen=True)
class PreparedCase:
    """A case on the model's grid, in three files that are opened when they are read, in any process.

    Attributes
    ----------
    name : that of the `Case`.
    folder, stem : where the files are and how they begin: `.image.npy` `(C, k, j, i)` float16 or float32, `.label.npy`
        `(k, j, i)` uint8 class indices, `.positions.npy` `(n, 4)` int32 class and voxel `(k, j, i)`, by class.
    key : of the files and the plan that it was made from.
    shape : voxels along (k, j, i).
    spacing : mm per voxel along (k, j, i).
    """

    name: str
    folder: Path
    stem: str
    key: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]

    def image(self) -> NDArray[np.floating]:
        """`(C, k, j, i)`, normalised, mapped into memory."""
        return np.load(self.folder / f"{self.stem}.image.npy", mmap_mode="r")

    def label(self) -> NDArray[np.uint8]:
        """`(k, j, i)` class indices, mapped into memory."""
        return np.load(self.folder / f"{self.stem}.label.npy", mmap_mode="r")

    def positions(self) -> list[NDArray[np.int32]]:
        """`(n, 3)` voxels (k, j, i) of each class that the case has, mapped into memory."""
        rows = np.load(self.folder / f"{self.stem}.positions.npy", mmap_mode="r")
        starts = np.unique(rows[:, 0], return_index=True)[1]
        return np.split(rows[:, 1:], starts[1:]) if len(starts) else []


@dataclass(frozen=True)
class _Record:
    """What a prepared case was made of, beside its files."""

    key: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]


def prepare(
    cases: Sequence[Case],
    plan: TrainingPlan,
    folder: Path,
    *,
    on_case: Callable[[int, int], object] | None = None,
) -> list[PreparedCase]:
    """Bring every case to the grid of `plan` and keep it in `folder`, which is made where it is missing.

    What is there already, made from the same files in the same way, is kept. `on_case(done, total)` is called after
    each.

    Raises
    ------
    InvalidInput : a pair that can't be read any more, or that is too large at the plan's spacing.
    OutputError : files that can't be written.
    """
    prepared = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in leftovers(folder):
            path.unlink(missing_ok=True)
        for done, case in enumerate(cases, 1):
            prepared.append(_prepare(case, plan, folder))
            if on_case is not None:
                on_case(done, len(cases))
    except OSError as error:
        raise OutputError(f"prepared cases can't be kept in {folder} ({error}); choose another folder") from None
    return prepared


def on_model_grid(image: Image, labels: Labels, plan: TrainingPlan) -> tuple[NDArray, NDArray[np.uint8], Geometry]:
    """The network's input `(C, k, j, i)` float32 and class indices `(k, j, i)` on the model's grid, and that grid."""
    wanted = plan.input
    grid = model_grid(image.geometry, wanted.orientation, wanted.spacing)
    if prod(grid.shape) > MAX_VOXELS:
        raise InvalidInput(
            f"at the plan's spacing the image has {' x '.join(map(str, grid.shape))} voxels, more than {MAX_VOXELS}; "
            "check the spacing in its header, or choose a coarser one"
        )
    scaling = wanted.normalization.measure(image.array)
    values = torch.from_numpy(np.ascontiguousarray(image.array, dtype=np.float32))
    x = resample(scaling(values), image.geometry, grid)
    return x.numpy(), class_indices(labels, grid, plan), grid


def class_indices(labels: Labels, grid: Geometry, plan: TrainingPlan) -> NDArray[np.uint8]:
    """`labels`, a segment for each value, as the plan's class indices on `grid` `(k, j, i)`.

    Raises `InvalidInput` for a value of no class.
    """
    array = on_grid(labels, grid)
    named = {segment.value: segment for segment in labels.segments}
    table = np.zeros(int(array.max()) + 1, np.uint8)
    for value in np.unique(array[array > 0]).tolist():
        index = class_of(named[value], plan.names, plan.values)
        if index is None:
            raise InvalidInput(f"the label holds the value {value}, which is none of the classes; check the data again")
        table[value] = index + 1
    return table[array]


def _prepare(case: Case, plan: TrainingPlan, folder: Path) -> PreparedCase:
    # With a hash, since names may differ by signs that files can't have, or by capitals alone.
    stem = re.sub(r"[^\w.-]", "_", case.name) + "-" + hashlib.sha256(case.name.encode()).hexdigest()[:8]
    key = case_key(case, plan)
    record = _kept(folder / f"{stem}.json", key)
    if record is None:
        try:
            x, classes, grid = on_model_grid(*read_pair(case, allow_empty=True), plan)
        except InvalidInput as error:
            raise InvalidInput(f"{case.name}: {error}") from None
        record = _Record(key, grid.shape, grid.spacing)
        (folder / f"{stem}.json").unlink(missing_ok=True)  # which a kill would leave with files of two plans
        # Values as they are may be too large for half precision.
        kind = np.float32 if plan.input.normalization.method == "none" else np.float16
        _save(folder / f"{stem}.image.npy", x.astype(kind))
        _save(folder / f"{stem}.label.npy", classes)
        _save(folder / f"{stem}.positions.npy", _positions(classes))
        with replacing(folder / f"{stem}.json") as temporary:  # last: only now are the others complete
            temporary.write_text(dumps(to_json(record)) + "\n", encoding="utf-8")
    return PreparedCase(case.name, folder, stem, key, record.shape, record.spacing)


def case_key(case: Case, plan: TrainingPlan) -> str:
    """A hash of the case's files, by name, size and time, and of all in `plan` that its prepared files depend on.

    The folder is no part of it: a training goes on where the data have moved, as on a cluster with a place per job.
    Copies must keep the files' times, as by `cp -p` or `rsync -a`.
    """
    wanted = plan.input
    paths = [path for one in (*case.images, case.label) for path in (sorted(one.iterdir()) if one.is_dir() else [one])]
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    text = json.dumps(
        [FORMAT, wanted.orientation, wanted.spacing, asdict(wanted.normalization), plan.values, plan.names, files]
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _kept(path: Path, key: str) -> _Record | None:
    """The record of a prepared case where it was made of the same; None where it has to be made."""
    try:
        record = from_json(_Record, json.loads(path.read_text(encoding="utf-8")))
        for part in ("image", "label", "positions"):  # of which a power cut may have left a piece
            np.load(path.with_name(path.name[: -len("json")] + f"{part}.npy"), mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    return record if record.key == key else None


def _save(path: Path, array: NDArray) -> None:
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, array)


def _positions(classes: NDArray[np.uint8]) -> NDArray[np.int32]:
    """`(n, 4)`: class and voxel, at most `POSITIONS` of each class."""
    rows = [np.empty((0, 4), np.int32)]
    flat = classes.reshape(-1)
    for index in np.flatnonzero(np.bincount(flat)).tolist():
        if index:
            found = sample(np.flatnonzero(flat == index), POSITIONS)
            voxels = np.stack(np.unravel_index(found, classes.shape), axis=1)
            rows.append(np.c_[np.full(len(found), index), voxels].astype(np.int32))
    return np.concatenate(rows)
