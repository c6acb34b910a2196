"""The head-MRI starter models: their labels, and how they are trained from label maps alone.

Run `python -m DeepLabSegLib.training.head_mri LABEL_MAPS -o BUNDLE`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from tqdm import tqdm

from DeepLabSegLib.bundle import Bundle, ModelInput, save_bundle
from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.image import Segment, Terminology
from DeepLabSegLib.models.deeplab import DeepLabSpec, DeepLabV3Plus
from DeepLabSegLib.preprocess import Normalization
from DeepLabSegLib.training.synthesis import LabelMap, SynthesisSpec, read_label_map, synthesize
from DeepLabSegLib.training.trainer import TrainingSpec, train

ANATOMY = ("SCT", "123037004", "Anatomical Structure")
SUBSTANCE = ("SCT", "91720002", "Body Substance")

# Colours follow Slicer's GenericAnatomyColors.
SEGMENTS = (
    Segment(
        1, "Cerebrospinal fluid", (85, 188, 255), Terminology(SUBSTANCE, ("SCT", "65216001", "Cerebrospinal fluid"))
    ),
    Segment(2, "Ventricles", (88, 106, 215), Terminology(ANATOMY, ("SCT", "35764002", "Brain ventricle"))),
    Segment(3, "Grey matter", (200, 200, 215), Terminology(ANATOMY, ("SCT", "389080008", "Gray matter"))),
    Segment(4, "White matter", (250, 250, 225), Terminology(ANATOMY, ("SCT", "389081007", "White matter"))),
    Segment(5, "Brain stem", (125, 102, 154), Terminology(ANATOMY, ("SCT", "15926001", "Brainstem"))),
)

FREESURFER = {
    1: (24,),
    2: (4, 5, 14, 15, 43, 44, 72, 136, 137, 163, 164),
    3: (3, 42, 8, 47, 10, 11, 12, 13, 17, 18, 26, 49, 50, 51, 52, 53, 54, 58),
    4: (2, 41, 7, 46, 28, 60, 25, 57, 30, 62, 85),
    5: (16,),
}
"""Class -> FreeSurfer label values; lesions and vessels inside the brain count as the white matter around them."""

CLASSES = {value: target for target, values in FREESURFER.items() for value in values}

T1_PRIOR = {1: (0.05, 0.3), 2: (0.05, 0.3), 3: (0.4, 0.62), 4: (0.66, 0.9), 5: (0.6, 0.85)}
"""Mean grey values of a T1-weighted image, the most common request."""

ORIENTATION = "ASR"
SPACING = (0.8, 0.8)
SIZE = (224, 224)

NETWORK = DeepLabSpec(
    encoder_name="resnet18",
    input_shape=(None, None, 1),
    encoder_depth=4,
    num_classes=6,
    decoder_channels=128,
    decoder_dilation_rates=(3, 6, 9),
    decoder_aspp_dropout=0.1,
    classifier_activation="softmax",
)


class SyntheticSlices(IterableDataset):
    """An endless stream of synthetic pairs from label maps, seeded per worker process."""

    def __init__(self, maps: Sequence[LabelMap], seed: int) -> None:
        self.maps = maps
        self.seed = seed

    def __iter__(self) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        worker = get_worker_info()
        rng = np.random.default_rng([self.seed, worker.id if worker else 0])
        while True:
            label_map = self.maps[int(rng.integers(len(self.maps)))]
            yield synthesize(label_map, CLASSES, SIZE, SPACING, rng, SynthesisSpec(), T1_PRIOR)


def train_head_mri(label_maps: Path, spec: TrainingSpec, workers: int = 1) -> DeepLabV3Plus:
    """Train the slice-wise head-MRI network on every label map (`*.nii.gz`) in the folder `label_maps`."""
    paths = sorted(label_maps.glob("*.nii.gz"))
    if not paths:
        raise InvalidInput(f"{label_maps} holds no label maps (*.nii.gz); give the folder of whole-head label maps")
    torch.manual_seed(spec.seed)
    maps = [read_label_map(path, ORIENTATION, CLASSES) for path in tqdm(paths, "label maps", disable=None)]
    loader = DataLoader(SyntheticSlices(maps, spec.seed), spec.batch_size, num_workers=workers, prefetch_factor=4)
    progress = tqdm(total=spec.steps, desc="training", mininterval=10)
    smooth = 0.0

    def on_step(step: int, loss: float) -> None:
        nonlocal smooth
        smooth = loss if step == 1 else 0.98 * smooth + 0.02 * loss
        progress.set_postfix(loss=f"{smooth:.4f}", refresh=False)
        progress.update()

    return train(DeepLabV3Plus.from_spec(NETWORK), loader, spec, on_step)


def bundle_head_mri(network: DeepLabSpec) -> Bundle:
    """What the slice-wise starter model says of itself."""
    return Bundle(
        name="head-mri-2d",
        description="Whole-head MRI, slice by slice: CSF, ventricles, grey and white matter, brain stem",
        network=network,
        input=ModelInput(
            channels=("head MRI",),
            orientation=ORIENTATION,
            spacing=(None, *SPACING),
            normalization=Normalization("percentile", 0.5, 99.5),
        ),
        labels=SEGMENTS,
        license="Apache-2.0",
        training_data="Images synthesised from 20 whole-head label maps (BBillot/SynthSeg, Apache-2.0); no real scan",
        reproduce="python -m DeepLabSegLib.training.head_mri LABEL_MAPS -o head-mri-2d",
    )


def main() -> None:
    """Train the model and write its bundle."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("label_maps", type=Path, help="folder of whole-head label maps with FreeSurfer values")
    parser.add_argument("-o", "--output", type=Path, required=True, help="bundle to write")
    parser.add_argument("--steps", type=int, default=TrainingSpec.steps)
    parser.add_argument("--overwrite", action="store_true")
    options = parser.parse_args()
    network = train_head_mri(options.label_maps, TrainingSpec(steps=options.steps))
    save_bundle(options.output, bundle_head_mri(NETWORK), network, overwrite=options.overwrite)


if __name__ == "__main__":
    main()
