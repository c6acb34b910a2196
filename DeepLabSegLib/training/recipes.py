"""The starter models: everything that makes each of them but the data. A model is a row."""

from __future__ import annotations

from dataclasses import dataclass

from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.image import Segment, Terminology
from DeepLabSegLib.bundle import ModelInput
from DeepLabSegLib.models.deeplab import DeepLabSpec
from DeepLabSegLib.preprocess import Normalization
from DeepLabSegLib.training.head_mri import ANATOMY, SEGMENTS
from DeepLabSegLib.training.trainer import TrainingSpec

__all__ = ["RECIPES", "Recipe", "find_recipe"]


@dataclass(frozen=True)
class Recipe:
    """How a starter model is made, and what it will say of itself.

    `synthesised` models learn from images made of whole-head label maps, the others from pairs whose labels have
    `values`, one for each of `labels`. `initial` is the model whose weights they begin with.
    """

    description: str
    network: DeepLabSpec
    input: ModelInput
    labels: tuple[Segment, ...]
    training: TrainingSpec
    license: str
    training_data: str
    limits: str
    synthesised: bool = False
    values: tuple[int, ...] = ()
    patient: str | None = None
    initial: str | None = None


def _network(dims: int, depth: int, classes: int) -> DeepLabSpec:
    return DeepLabSpec(
        encoder_name="resnet18",
        input_shape=(*(None,) * dims, 1),
        encoder_depth=depth,
        num_classes=classes,
        decoder_channels=128,
        decoder_dilation_rates=(2, 4, 6),
        decoder_aspp_dropout=0.1,
        classifier_activation="softmax",
    )


def _head(spacing: float) -> ModelInput:
    return ModelInput(
        channels=("head scan",),
        orientation="SAR",
        spacing=(spacing,) * 3,
        normalization=Normalization("percentile", 0.5, 99.5),
        tile=(96, 96, 96),
    )


HEAD_DATA = (
    "Images synthesised from 20 whole-head label maps (BBillot/SynthSeg, Apache-2.0); it never saw a real scan"
)
HEAD_LIMITS = (
    "Adult heads without large lesions: tumours, resections, infants and whole-body scans were never shown. Left and "
    "right are one label. Not a medical device."
)

RECIPES = {
    "head-mri": Recipe(
        description="Whole-head MRI of any contrast, no skull stripping needed: 17 structures of the brain, and fluid",
        network=_network(3, 3, len(SEGMENTS) + 1),
        input=_head(1.0),
        labels=SEGMENTS,
        training=TrainingSpec(steps=2700, batch_size=4, every=2),
        license="Apache-2.0",
        training_data=HEAD_DATA,
        limits=HEAD_LIMITS,
        synthesised=True,
    ),
    "head-mri-fast": Recipe(
        description="The structures of head-mri on a coarser grid: several times faster, for laptops and large batches",
        network=_network(3, 3, len(SEGMENTS) + 1),
        input=_head(1.5),
        labels=SEGMENTS,
        training=TrainingSpec(steps=600, batch_size=4, every=2, learning_rate=1e-3),
        license="Apache-2.0",
        training_data=HEAD_DATA,
        limits=HEAD_LIMITS + " Thin structures such as cortex come out coarser than with head-mri.",
        synthesised=True,
        initial="head-mri",
    ),
    "cardiac-lv": Recipe(
        description="Left ventricle on short-axis cine MR, slice by slice",
        network=_network(2, 4, 2),
        input=ModelInput(
            channels=("cine MR",),
            orientation=None,
            spacing=(None, None, None),
            normalization=Normalization("percentile", 0.5, 99.5),
        ),
        labels=(
            Segment(1, "Left ventricle", (152, 55, 13), Terminology(ANATOMY, ("SCT", "87878005", "Left ventricle"))),
        ),
        training=TrainingSpec(steps=800, batch_size=12),
        license="CC0-1.0",
        training_data="526 slices of 30 patients of the Sunnybrook Cardiac Data (CC0 1.0)",
        limits="Short-axis slices of about 256 x 256 pixels through the ventricle, as in the Sunnybrook data; long-axis "
        "views and slices without the ventricle were not shown. Not a medical device.",
        values=(1,),
        patient="(.+)-IM-",
    ),
}


def find_recipe(name: str) -> Recipe:
    """The recipe of that name. Raises `InvalidInput` that lists the names."""
    if name not in RECIPES:
        raise InvalidInput(f"there is no recipe {name!r}; choose {', '.join(RECIPES)}")
    return RECIPES[name]
