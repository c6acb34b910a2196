"""The structures of the head-MRI models, and their label maps made ready for synthesis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.utils.data import Dataset

from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.files import read_labels
from DeepLabSegLib.image import Segment, Terminology
from DeepLabSegLib.postprocess import End
from DeepLabSegLib.preprocess import model_grid
from DeepLabSegLib.resampling import resample
from DeepLabSegLib.training.draw import sent
from DeepLabSegLib.training.synthesis import Contrast, LabelMap, SynthesisSpec, synthesize

__all__ = ["SEGMENTS", "STEM_END", "STRUCTURES", "Structure", "SyntheticHeads", "intracranial", "read_head_map"]

ANATOMY = ("SCT", "123037004", "Anatomical Structure")
SUBSTANCE = ("SCT", "91720002", "Body Substance")


@dataclass(frozen=True)
class Tissue:
    """Ranges of the mean grey value, 0 to 1, of a kind of tissue in the contrasts that are asked for most."""

    t1: tuple[float, float]
    t2: tuple[float, float]
    flair: tuple[float, float]


@dataclass(frozen=True)
class Structure:
    """A label of the model.

    `code` is its meaning, after DICOM's context group 7140; `color` is that of FreeSurfer, which many readers know;
    `sources` are the label values in FreeSurfer's numbering that make it up.
    """

    name: str
    code: tuple[str, str, str]
    color: tuple[int, int, int]
    sources: tuple[int, ...]
    tissue: Tissue
    category: tuple[str, str, str] = ANATOMY


FLUID = Tissue(t1=(0.05, 0.3), t2=(0.75, 1.0), flair=(0.02, 0.2))
GREY = Tissue(t1=(0.4, 0.62), t2=(0.4, 0.65), flair=(0.5, 0.75))
MIXED = Tissue(t1=(0.5, 0.78), t2=(0.33, 0.55), flair=(0.42, 0.68))
WHITE = Tissue(t1=(0.66, 0.9), t2=(0.2, 0.48), flair=(0.38, 0.6))
STEM = Tissue(t1=(0.6, 0.85), t2=(0.25, 0.5), flair=(0.38, 0.62))
CSF, BRAIN_STEM, SPINAL_CORD, CEREBELLUM = 24, 16, 512, (7, 8, 46, 47)  # values of the label maps
CALLOSUM, LEFT_CORTEX, RIGHT_CORTEX = range(251, 256), range(1000, 1036), range(2000, 2036)  # these in parts

# Lesions, vessels and the optic chiasm count as the white matter beside them, choroid plexus and the fifth ventricle as
# the lateral ones.
STRUCTURES = (
    Structure("Cerebral white matter", ("SCT", "68523003", "Cerebral White Matter"), (245, 245, 245),
              (2, 25, 30, 41, 57, 62, 77, 80, 85, *CALLOSUM), WHITE),
    Structure("Cerebral cortex", ("SCT", "40146001", "Cerebral Gray Matter"), (205, 62, 78),
              (3, 42, *LEFT_CORTEX, *RIGHT_CORTEX), GREY),
    Structure("Lateral ventricles", ("SCT", "66720007", "Lateral Ventricle"), (120, 18, 134),
              (4, 5, 31, 43, 44, 63, 72, 136, 137, 163, 164), FLUID),
    Structure("Third ventricle", ("SCT", "49841001", "Third ventricle"), (204, 182, 142), (14,), FLUID),
    Structure("Fourth ventricle", ("SCT", "35918002", "Fourth Ventricle"), (42, 204, 164), (15,), FLUID),
    Structure("Cerebellar white matter", ("SCT", "33060004", "Cerebellar White Matter"), (220, 248, 164),
              (7, 46), WHITE),
    Structure("Cerebellar cortex", ("SCT", "25991003", "Cerebellar Cortex"), (230, 148, 34), (8, 47), GREY),
    Structure("Thalamus", ("SCT", "119406000", "Thalamus"), (0, 118, 14), (10, 49), MIXED),
    Structure("Caudate", ("SCT", "11000004", "Caudate Nucleus"), (122, 186, 220), (11, 50), GREY),
    Structure("Putamen", ("SCT", "89278009", "Putamen"), (236, 13, 176), (12, 51), GREY),
    Structure("Pallidum", ("SCT", "14738005", "Globus Pallidus"), (12, 48, 255), (13, 52), MIXED),
    Structure("Hippocampus", ("SCT", "5366008", "Hippocampus"), (220, 216, 20), (17, 53), GREY),
    Structure("Amygdala", ("SCT", "4958002", "Amygdala"), (103, 255, 255), (18, 54), GREY),
    Structure("Accumbens", ("SCT", "427667007", "Nucleus Accumbens"), (255, 165, 0), (26, 58), GREY),
    Structure("Ventral diencephalon", ("DCM", "110700", "Ventral Diencephalon"), (165, 42, 42), (28, 60), MIXED),
    Structure("Brain stem", ("SCT", "119238007", "Brain Stem"), (119, 159, 176), (BRAIN_STEM,), STEM),
    Structure("Cerebrospinal fluid", ("SCT", "65216001", "Cerebrospinal fluid"), (85, 188, 255), (CSF,), FLUID,
              SUBSTANCE),
)  # fmt: skip
"""Class n + 1 is `STRUCTURES[n]`."""

SEGMENTS = tuple(
    Segment(n, s.name, s.color, Terminology(s.category, s.code)) for n, s in enumerate(STRUCTURES, start=1)
)
CLASSES = {value: n for n, s in enumerate(STRUCTURES, start=1) for value in s.sources}
STEM_END = End(CLASSES[BRAIN_STEM], "I", tuple(sorted({CLASSES[value] for value in CEREBELLUM})))
"""Where `_end_stem` ends the stem of a label map a result's ends too."""

CONTRASTS = tuple(
    Contrast(share, {n: getattr(s.tissue, name) for n, s in enumerate(STRUCTURES, start=1)})
    for name, share in {"t1": 0.4, "t2": 0.15, "flair": 0.15}.items()
)

FADING = tuple(n for n, s in enumerate(STRUCTURES, start=1) if s.tissue == WHITE)
"""White matter holds less myelin at its edges. On Colin27 a model that had not seen this drew those of putamen, caudate
and ventricles at 0.6 of the way from their grey value to that of white matter."""

LEFT_OF = dict(zip((41, 42, 43, 44, 46, 47, 49, 50, 51, 52, 53, 54, 57, 58, 60, 62, 63, 137, 164),
                   (2, 3, 4, 5, 7, 8, 10, 11, 12, 13, 17, 18, 25, 26, 28, 30, 31, 136, 163), strict=True))  # fmt: skip
"""Right -> left: both sides of the brain look alike."""

CLOSING, RIM = 12.0, 2.0  # mm
OUTER_FLUID = 10_000  # stands for fluid outside the intracranial volume: looks like fluid, belongs to no class
PARTS = dict.fromkeys(CALLOSUM, 2) | dict.fromkeys((*LEFT_CORTEX, *RIGHT_CORTEX), 3)
LOOKS_LIKE = LEFT_OF | PARTS | {OUTER_FLUID: CSF, SPINAL_CORD: BRAIN_STEM}
"""What has no grey value of its own: where the cord begins is seen from what lies around it."""


def intracranial(brain: NDArray[np.bool_], spacing: Sequence[float]) -> NDArray[np.bool_]:
    """The brain with its sulci and cisterns closed, and a rim of 2 mm around it: where fluid counts as intracranial.

    Label maps call the fluid of the spinal canal, and what lies between dura and bone, cerebrospinal fluid as well.
    """
    margin = [int(np.ceil((CLOSING + RIM) / mm)) + 1 for mm in spacing]
    padded = np.pad(brain, [(n, n) for n in margin])
    near = ndimage.distance_transform_edt(~padded, sampling=spacing) <= CLOSING
    closed = ndimage.distance_transform_edt(near, sampling=spacing) > CLOSING - RIM
    return closed[tuple(slice(n, -n) for n in margin)]


def read_head_map(path: str | Path, orientation: str, device: torch.device | None = None) -> LabelMap:
    """Read a whole-head label map with FreeSurfer's values into `orientation` (the letters of k, j, i) and to `device`.

    Raises `InvalidInput` where it is no label map, or holds none of the structures.
    """
    labels = read_labels(path)
    if labels.array.ndim > 3:
        raise InvalidInput(f"{path} holds {len(labels.array)} numbers per voxel; a label map of one is needed")
    given = torch.from_numpy(labels.array.astype(np.int32))[None]
    grid = model_grid(labels.geometry, orientation, (None, None, None))
    array = resample(given, labels.geometry, grid, "nearest", torch.zeros(1))[0].numpy()
    brain = np.isin(array, [value for value in CLASSES if value != CSF])
    if not brain.any():
        wanted = ", ".join(str(structure.sources[0]) for structure in STRUCTURES)
        raise InvalidInput(
            f"{path} holds none of the labels {wanted}; a whole-head label map with FreeSurfer's values is needed"
        )
    _end_stem(array, orientation)
    array[(array == CSF) & ~intracranial(brain, grid.spacing)] = OUTER_FLUID
    values = np.union1d(0, array)  # 0, what surrounds the map, comes first
    if len(values) > 256:
        raise InvalidInput(f"{path} holds {len(values)} different values; a label map of at most 256 is needed")
    names = [LOOKS_LIKE.get(value, value) for value in values.tolist()]
    tissues = list(dict.fromkeys(names))
    classes = np.array([CLASSES.get(value, 0) for value in values.tolist()])
    structures = np.searchsorted(values, array).astype(np.uint8)
    labelled = np.argwhere(classes[structures] > 0)
    return LabelMap(
        torch.from_numpy(structures).to(device),
        torch.from_numpy(classes),
        torch.tensor([tissues.index(name) for name in names]),
        grid.spacing,
        (tuple(labelled.min(axis=0).tolist()), tuple(labelled.max(axis=0).tolist())),
    )


def _end_stem(array: NDArray[np.int32], orientation: str) -> None:
    """Call, in place, the brain stem below the cerebellum spinal cord.

    Maps end the stem where their makers began to draw the cord, and it shows: a network learns that step, which no scan
    has, instead of the height.
    """
    axis = next(n for n, letter in enumerate(orientation) if letter in "SI")
    upward = np.moveaxis(array, axis, 0)[:: 1 if orientation[axis] == "S" else -1]
    below = upward[: np.isin(upward, CEREBELLUM).any(axis=(1, 2)).argmax()]  # nothing where there is no cerebellum
    below[below == BRAIN_STEM] = SPINAL_CORD


class SyntheticHeads(Dataset[tuple[Tensor, Tensor]]):
    """Pairs synthesised from head label maps, where these lie; pair n is the same whenever it is asked for there.

    `groups` has the class of each of `STRUCTURES`; None keeps them apart. Along each of `mirror_axes` half of the
    images are turned round.
    """

    def __init__(
        self,
        maps: Sequence[LabelMap],
        size: Sequence[int],
        spacing: Sequence[float],
        seed: int,
        groups: Sequence[int] | None = None,
        mirror_axes: tuple[int, ...] = (),
    ) -> None:
        self.maps = maps
        self.classes = torch.tensor((0, *(groups or range(1, len(STRUCTURES) + 1))))
        self.size = tuple(size)
        self.spacing = tuple(spacing)
        self.seed = seed
        self.spec = SynthesisSpec(mirror_axes=mirror_axes, fading=FADING)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed((self.seed << 40) + index)
        label_map = self.maps[int(torch.randint(len(self.maps), (), generator=generator))]
        image, target = synthesize(label_map, self.size, self.spacing, self.spec, CONTRASTS, generator)
        return image, sent(self.classes, target.device)[target]
