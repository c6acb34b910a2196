"""What is to be trained: data and options, made into a network's description, training pairs and validation."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

from DeepLabSegLib.bundle import Bundle
from DeepLabSegLib.devices import is_gpu
from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.files import is_picture
from DeepLabSegLib.models.deeplab import DeepLabV3Plus
from DeepLabSegLib.outputs import replacing
from DeepLabSegLib.schema import to_json
from DeepLabSegLib.texts import some
from DeepLabSegLib.training.augment import Augmentation
from DeepLabSegLib.training.head_mri import SyntheticHeads, read_head_map
from DeepLabSegLib.training.initial import versioned
from DeepLabSegLib.training.options import OnTraining, TrainOptions, initial_of, recipe_of, settings_of
from DeepLabSegLib.training.outline import Outline, beginning, outline_of
from DeepLabSegLib.training.patches import Patches
from DeepLabSegLib.training.prepared import case_key, prepare
from DeepLabSegLib.training.processes import Processes
from DeepLabSegLib.training.recipes import Heads, Recipe
from DeepLabSegLib.training.spec import TrainingSpec
from DeepLabSegLib.training.trainer import Validate
from DeepLabSegLib.training.validation import dice_on

__all__ = ["Job", "make_job"]


@dataclass(frozen=True)
class Job:
    """A training: `bundle` is what the model will say of itself, `about` is what a checkpoint must share with it.

    `begun` says in words which weights `network` begins with, where it does.
    """

    bundle: Bundle
    training: TrainingSpec
    network: DeepLabV3Plus
    begun: str
    pairs: Dataset[tuple[Tensor, Tensor]]
    validate: Validate | None
    about: dict[str, object]


def make_job(
    data: Path, name: str, folder: Path, options: TrainOptions, processes: Processes, on_progress: OnTraining
) -> Job:
    """The job of training on `data` a model called `name`, with what it prepares in `folder`.

    Raises `InvalidInput` for data that can't be trained on, or options that don't fit; `BundleError` and `WeightsError`
    for weights to begin with that aren't there or don't fit.
    """
    recipe = recipe_of(options)
    if recipe is not None and recipe.heads is not None:
        return _from_label_maps(data, name, recipe, recipe.heads, options, processes, on_progress)
    return _from_pairs(data, name, folder, recipe, options, processes, on_progress)


def _from_label_maps(
    data: Path,
    name: str,
    recipe: Recipe,
    heads: Heads,
    options: TrainOptions,
    processes: Processes,
    on_progress: OnTraining,
) -> Job:
    training = settings_of(recipe, options, processes)
    paths = sorted(path for path in data.glob("*.nii.gz") if not path.name.startswith("."))
    if not paths:
        raise InvalidInput(f"{data} holds no label maps (*.nii.gz); give the folder of whole-head label maps")
    network, begun = beginning(recipe.bundle.network, recipe.bundle.labels, training, recipe, options)
    maps = []
    for path in paths:
        maps.append(read_head_map(path, str(recipe.bundle.input.orientation), processes.device))
        on_progress("prepare", len(maps), len(paths), None)
    spacing = [mm for mm in recipe.bundle.input.spacing if mm is not None]
    if is_gpu(processes.device):
        if training.workers:
            raise InvalidInput(
                f"workers is {training.workers}, but {processes.device} makes its images itself; leave it out"
            )
        training = replace(training, workers=0)
    mirror_axes = recipe.bundle.input.mirror_axes or ()
    pairs = SyntheticHeads(maps, heads.size, spacing, training.seed, heads.groups, mirror_axes)
    bundle = replace(recipe.bundle, name=name, reproduce=options.reproduce)
    about: dict[str, object] = {
        "recipe": options.recipe,
        "weights": versioned(initial_of(recipe, options)),
        "data": {path.name: path.stat().st_size for path in paths},
    }
    return Job(bundle, training, network, begun, pairs, None, about)


def _from_pairs(
    data: Path,
    name: str,
    folder: Path,
    recipe: Recipe | None,
    options: TrainOptions,
    processes: Processes,
    on_progress: OnTraining,
) -> Job:
    outline = outline_of(data, options, processes, on_progress)
    learned, held_out, chosen = outline.learned, outline.held_out, outline.plan
    if processes.first:
        with replacing(folder / "data.txt") as temporary:
            temporary.write_text(f"{outline.text}\n", encoding="utf-8")
        if outline.faulty:
            warnings.warn(
                f"there are faults in {some(outline.faulty)}; {folder / 'data.txt'} says which, and "
                "the rest is trained on",
                stacklevel=2,
            )
    bundle = _bundle_of(outline, data, name, recipe, options)
    prepared = prepare(
        learned, chosen, folder / "prepared", on_case=lambda done, total: on_progress("prepare", done, total, None)
    )
    pairs = Patches(prepared, chosen, Augmentation(), outline.training.seed)
    validate = dice_on(held_out, chosen, bundle, str(processes.device)) if held_out else None
    about: dict[str, object] = {
        "weights": versioned(initial_of(recipe, options)),
        "input": to_json(chosen.input),
        "labels": to_json(chosen.labels),
        "data": {case.name: case.key for case in prepared},
        "held-out data": {case.name: case_key(case, chosen) for case in held_out},
    }
    return Job(bundle, outline.training, outline.network, outline.begun, pairs, validate, about)


def _bundle_of(outline: Outline, data: Path, name: str, recipe: Recipe | None, options: TrainOptions) -> Bundle:
    """What a model that learns from pairs will say of itself."""
    chosen = outline.plan
    if recipe is not None:
        return replace(
            recipe.bundle, name=name, network=chosen.network, input=chosen.input, reproduce=options.reproduce
        )
    limits = []
    if outline.unmeasured:
        limits.append(f"No figure speaks of {', '.join(outline.unmeasured)}: no held-out case had it.")
    if any(chosen.input.spacing) and all(is_picture(path) for case in outline.learned for path in case.images):
        limits.append(
            "Learned from pictures: where these don't say how large a pixel is, it counts as 1 mm, and scans with "
            "other pixels look larger or smaller to it."
        )
    cases = "1 case" if len(outline.learned) == 1 else f"{len(outline.learned)} cases"
    return Bundle(
        name=name,
        description=f"{some([label.name for label in chosen.labels])}; trained on {cases}",
        network=chosen.network,
        input=chosen.input,
        labels=chosen.labels,
        license=options.license,
        training_data=options.training_data or f"{cases} of {data.resolve().name}",
        limits=" ".join(limits) or None,
        reproduce=options.reproduce,
    )
