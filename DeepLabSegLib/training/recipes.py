"""The starter models: everything that makes each of them but the data. A model is a row."""

from __future__ import annotations

from dataclasses import dataclass, field

from DeepLabSegLib.bundle import Bundle, ModelInput
from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.image import Segment, Terminology
from DeepLabSegLib.models.deeplab import DeepLabSpec
from DeepLabSegLib.preprocess import Normalization
from DeepLabSegLib.training.head_mri import ANATOMY, SEGMENTS, STEM_END, SUBSTANCE
from DeepLabSegLib.training.planning import Overrides
from DeepLabSegLib.training.spec import TrainingSpec

__all__ = ["RECIPES", "Heads", "Recipe", "find_recipe"]


@dataclass(frozen=True)
class Heads:
    """What is synthesised of head label maps: images of `size`, with the classes of `groups` (see `SyntheticHeads`)."""

    size: tuple[int, ...]
    groups: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Recipe:
    """How a starter model is made: what it will say of itself (`bundle`), and its training.

    Models with `heads` learn from images made of whole-head label maps; the others from pairs, whose grid and tile are
    planned with `overrides`, and the patient is found in a name by `patient`. `initial` is the model whose weights they
    begin with.
    """

    bundle: Bundle
    training: TrainingSpec
    heads: Heads | None = None
    overrides: Overrides = field(default_factory=Overrides)
    patient: str | None = None
    initial: str | None = None


BOTH_SIDES = (2,)
"""`mirror_axes` of heads in the orientation ASR: left and right are one label."""


def _network(dims: int, depth: int, classes: int, rates: tuple[int, ...] = (2, 4, 6)) -> DeepLabSpec:
    return DeepLabSpec(
        encoder_name="resnet18",
        input_shape=(*(None,) * dims, 1),
        encoder_depth=depth,
        num_classes=classes,
        decoder_channels=128,
        decoder_dilation_rates=rates,
        decoder_aspp_dropout=0.1,
        classifier_activation="softmax",
    )


def _head(spacing: float, tile: int) -> ModelInput:
    return ModelInput(
        channels=("head scan",),
        orientation="ASR",
        spacing=(spacing,) * 3,
        normalization=Normalization("percentile", 0.5, 99.5),
        tile=(tile,) * 3,
        mirror_axes=BOTH_SIDES,
    )


LEFT_VENTRICLE = Terminology(ANATOMY, ("SCT", "87878005", "Left ventricle"))
HEAD_DATA = "Images synthesised from 20 whole-head label maps (BBillot/SynthSeg, Apache-2.0); it never saw a real scan"
HEAD_LIMITS = (
    "Adult heads without large lesions: tumours, resections, infants and whole-body scans were never shown. Left and "
    "right are one label. Not a medical device."
)

TISSUES = (
    Segment(
        1, "Cerebrospinal fluid", (85, 188, 255), Terminology(SUBSTANCE, ("SCT", "65216001", "Cerebrospinal fluid"))
    ),
    Segment(2, "Ventricles", (88, 106, 215), Terminology(ANATOMY, ("SCT", "35764002", "Brain ventricle"))),
    Segment(3, "Grey matter", (200, 200, 215), Terminology(ANATOMY, ("SCT", "389080008", "Gray matter"))),
    Segment(4, "White matter", (250, 250, 225), Terminology(ANATOMY, ("SCT", "389081007", "White matter"))),
    Segment(5, "Brain stem", (125, 102, 154), Terminology(ANATOMY, ("SCT", "15926001", "Brainstem"))),
)
"""Colours follow Slicer's GenericAnatomyColors."""

TISSUE_OF = (4, 3, 2, 2, 2, 4, 3, 3, 3, 3, 3, 3, 3, 3, 4, 5, 1)

RECIPES = {
    "head-mri-2d": Recipe(
        Bundle(
            name="head-mri-2d",
            description="Whole-head MRI, slice by slice: CSF, ventricles, grey and white matter, brain stem",
            network=_network(2, 4, len(TISSUES) + 1, (3, 6, 9)),
            input=ModelInput(
                ("head MRI",),
                "ASR",
                (None, 0.8, 0.8),
                Normalization("percentile", 0.5, 99.5),
                mirror_axes=BOTH_SIDES,
            ),
            labels=TISSUES,
            license="Apache-2.0",
            training_data=HEAD_DATA,
            limits=HEAD_LIMITS,
        ),
        TrainingSpec(steps=3600, batch_size=16),
        heads=Heads((224, 224), TISSUE_OF),
    ),
    "head-mri-fast": Recipe(
        Bundle(
            name="head-mri-fast",
            description="The structures of head-mri on a coarser grid: a fifth of the time, for laptops and many scans",
            network=_network(3, 3, len(SEGMENTS) + 1),
            input=_head(1.0, 96),
            labels=SEGMENTS,
            license="Apache-2.0",
            training_data=HEAD_DATA,
            one_piece=True,
            foreground_first=True,
            limits=f"{HEAD_LIMITS} Thin structures such as cortex come out coarser than with head-mri.",
        ),
        TrainingSpec(steps=4000, batch_size=8, every=2),
        heads=Heads((96, 96, 96)),
        initial="head-mri-2d",
    ),
    "head-mri": Recipe(
        Bundle(
            name="head-mri",
            description="Whole-head MRI of any contrast, no skull stripping needed: 16 brain structures and fluid",
            network=_network(3, 3, len(SEGMENTS) + 1),
            input=_head(0.55, 144),
            labels=SEGMENTS,
            license="Apache-2.0",
            training_data=HEAD_DATA,
            one_piece=True,
            foreground_first=True,
            ends=(STEM_END,),
            limits=HEAD_LIMITS,
        ),
        TrainingSpec(steps=9000, batch_size=4, every=2),
        heads=Heads((144, 144, 144)),
        initial="head-mri-2d",
    ),
    "cardiac-lv": Recipe(
        Bundle(
            name="cardiac-lv",
            description="Left ventricle on short-axis cine MR, slice by slice",
            network=_network(2, 4, 2),
            input=ModelInput(("cine MR",), None, (None, None, None), Normalization("percentile", 0.5, 99.5)),
            labels=(Segment(1, "Left ventricle", (152, 55, 13), LEFT_VENTRICLE),),
            license="Apache-2.0",
            training_data="526 short-axis slices of 30 patients of the Sunnybrook Cardiac Data (CC0 1.0)",
            limits="Short-axis slices through the ventricle, as in the Sunnybrook data; long-axis views and slices "
            "beyond the ventricle were not shown. Pixels are taken as they are, about 1.3 mm and 256 x 256 there. Rows "
            "and columns must lie as in DICOM: flip a NIfTI that has them the other way round first. Not a medical "
            "device.",
        ),
        # The last weights are kept: a fold must not choose.
        TrainingSpec(steps=2400, batch_size=5, learning_rate=4e-3, validate_every=2400),
        overrides=Overrides(
            names=("Left ventricle",), channels=("cine MR",), spacing=(None, None, None), tile=(256, 256)
        ),
        patient="(.+)-IM-",
        initial="head-mri-2d",
    ),
}


def find_recipe(name: str) -> Recipe:
    """The recipe of that name. Raises `InvalidInput` that lists the names."""
    if name not in RECIPES:
        raise InvalidInput(f"there is no recipe {name!r}; choose {', '.join(RECIPES)}")
    return RECIPES[name]
