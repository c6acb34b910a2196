"""What is to be trained: data and options, made into a network's description, training pairs and validation."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from DeepLabSegLib.bundle import Bundle
from DeepLabSegLib.devices import choose_precision, is_gpu
from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.image import Segment
from DeepLabSegLib.models.deeplab import DeepLabSpec, DeepLabV3Plus
from DeepLabSegLib.outputs import replacing
from DeepLabSegLib.schema import from_json, to_json
from DeepLabSegLib.training.augment import Augmentation
from DeepLabSegLib.training.cases import Case, find_cases
from DeepLabSegLib.training.check import CheckedData, check_cases, report
from DeepLabSegLib.training.head_mri import SyntheticHeads, read_head_map
from DeepLabSegLib.training.initial import begin_with, check_source
from DeepLabSegLib.training.patches import Patches
from DeepLabSegLib.training.planning import Overrides, TrainingPlan, plan
from DeepLabSegLib.training.prepared import case_key, prepare
from DeepLabSegLib.training.processes import Processes
from DeepLabSegLib.training.recipes import Heads, Recipe, find_recipe
from DeepLabSegLib.training.split import split
from DeepLabSegLib.training.trainer import TrainingSpec, Validate
from DeepLabSegLib.training.validation import dice_on, lacking

__all__ = ["Job", "OnTraining", "Outline", "TrainOptions", "checked_options", "make_job", "plan_of", "quiet"]

UNKNOWN = "unknown"

OnTraining = Callable[[str, int, int, float | None], object]
"""Told of each step of a stage ("check", "prepare" or "train"): its name, done, total, and the loss in training."""


def quiet(stage: str, done: int, total: int, loss: float | None) -> None:
    """An `OnTraining` that says nothing."""


@dataclass(frozen=True)
class TrainOptions:
    """What a training may vary.

    Attributes
    ----------
    recipe : a starter model's (`training.recipes`), which then decides everything but `training` fields given here;
        overrides and what the model says of itself are refused beside it.
    overrides : what is chosen instead of the plan that the data suggest.
    training : fields of `TrainingSpec` by name; those left out are the recipe's or the plan's.
    initial : name or path of a model or weights file to begin with.
    folds, fold : cases are split by patient into `folds` (or as many as there are patients), and those of `fold` are
        held out to validate; 0 folds train on all cases and validate on none.
    allow_empty : take labels that hold background alone, such as healthy scans'.
    patient : regular expression that finds the patient in a case's name, see `find_cases`.
    name, license, training_data : what the model says of itself.
    reproduce : the command of this training.
    """

    recipe: str | None = None
    overrides: Overrides = field(default_factory=Overrides)
    training: dict[str, Any] = field(default_factory=dict)
    initial: str | None = None
    folds: int = 5
    fold: int = 0
    patient: str | None = None
    allow_empty: bool = False
    device: str = "auto"
    precision: str = "auto"
    name: str | None = None
    license: str = UNKNOWN
    training_data: str | None = None
    reproduce: str | None = None


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


@dataclass(frozen=True)
class Outline:
    """All that is settled of a training with pairs before anything is written.

    Attributes
    ----------
    learned, held_out : the good cases, to train on and to validate with.
    unmeasured : names of the classes that no held-out case has, where some are held out.
    plan, training : what is chosen for them.
    network, begun : as in `Job`.
    text : data and plan in words, with every fault.
    """

    learned: list[Case]
    held_out: list[Case]
    unmeasured: list[str]
    plan: TrainingPlan
    training: TrainingSpec
    network: DeepLabV3Plus
    begun: str
    text: str


def make_job(
    data: Path, name: str, folder: Path, options: TrainOptions, processes: Processes, on_progress: OnTraining
) -> Job:
    """The job of training on `data` a model called `name`, with what it prepares in `folder`.

    Raises `InvalidInput` for data that can't be trained on, or options that don't fit; `BundleError` and `WeightsError`
    for weights to begin with that aren't there or don't fit.
    """
    recipe = _recipe(options)
    if recipe is not None and recipe.heads is not None:
        return _from_label_maps(data, name, recipe, recipe.heads, options, processes, on_progress)
    return _from_pairs(data, name, folder, recipe, options, processes, on_progress)


def checked_options(options: TrainOptions) -> TrainOptions:
    """`options` with each value of its declared type; numbers may be numpy's, and paths those of pathlib.

    Raises `InvalidInput` that names a value of another type.
    """
    plain = json.dumps(
        to_json(options), default=lambda value: value.tolist() if hasattr(value, "tolist") else str(value)
    )
    return from_json(TrainOptions, json.loads(plain), "options")


def plan_of(data: Path, options: TrainOptions, processes: Processes, on_progress: OnTraining = quiet) -> Outline:
    """What would be trained on the pairs in `data`. Raises as `make_job` does, options first."""
    recipe = _recipe(options)
    if recipe is not None and recipe.heads is not None:
        raise InvalidInput(f"the recipe {options.recipe} learns from label maps alone; there are no pairs to check")
    _settings(recipe, options, processes)
    found, faults = find_cases(data, options.patient or (recipe.patient if recipe else None))
    checked = check_cases(
        found,
        faults,
        allow_empty=options.allow_empty,
        on_case=lambda done, total: on_progress("check", done, total, None),
    )
    chosen = plan(checked.fingerprint, recipe.overrides if recipe else options.overrides)
    # Processes share a batch evenly.
    batch = -(-chosen.batch_size // processes.count) * processes.count
    start = TrainingSpec(batch_size=batch, every=1 + (chosen.network.dims == 3))
    training = _training(recipe.training if recipe else start, options, processes)
    chosen = replace(chosen, batch_size=training.batch_size)
    learned, held_out, unmeasured = _parted(checked, chosen, options, training.seed)
    network, begun = _beginning(chosen.network, chosen.labels, training, recipe, options)
    text = "\n".join([report(checked), *chosen.lines(), *_held_out_lines(held_out, unmeasured)])
    return Outline(learned, held_out, unmeasured, chosen, training, network, begun, text)


# --- pieces ----------------------------------------------------------------------------------------------------------


def _parted(
    checked: CheckedData, chosen: TrainingPlan, options: TrainOptions, seed: int
) -> tuple[list[Case], list[Case], list[str]]:
    """`learned`, `held_out` and `unmeasured` of an `Outline`."""
    folds = min(options.folds, len({case.patient for case in checked.cases}))
    if not folds:
        return [*checked.cases], [], []
    learned, held_out = split(checked.cases, folds, options.fold, seed)
    if set(held_out) <= set(checked.empty):
        names = ", ".join(case.name for case in held_out)
        raise InvalidInput(
            f"no case of fold {options.fold} of {folds} holds a class ({names}), so nothing could be validated; choose "
            "another fold or seed, fewer folds, or 0 to hold none out"
        )
    unmeasured = lacking(held_out, chosen)
    if unlearned := [name for name in lacking(learned, chosen) if name not in unmeasured]:
        raise InvalidInput(
            f"only cases of fold {options.fold} of {folds}, which are held out, have {', '.join(unlearned)}, so that "
            "it could not be learned; choose another fold or seed, 0 folds to hold none out, or give more cases "
            "that have it"
        )
    return learned, held_out, unmeasured


def _held_out_lines(held_out: list[Case], unmeasured: list[str]) -> list[str]:
    count, names = len(held_out), ", ".join(case.name for case in held_out)
    lines = [f"{count or 'no'} case{'s are' if count > 1 else ' is'} held out" + (f": {names}" if names else "")]
    if unmeasured:
        what = f"no held-out case has {', '.join(unmeasured)}, so that no figure will speak of it"
        lines.append(f"{what}; choose another fold or seed, or give more cases that have it")
    return lines


def _recipe(options: TrainOptions) -> Recipe | None:
    if options.recipe is None:
        return None
    others = {
        "overrides of network, input and labels": options.overrides != Overrides(),
        "license": options.license != UNKNOWN,
        "training_data": options.training_data is not None,
    }
    if given := [name for name, is_given in others.items() if is_given]:
        raise InvalidInput(f"a recipe decides {', '.join(others)}; leave out {', '.join(given)}, or the recipe")
    return find_recipe(options.recipe)


def _initial(recipe: Recipe | None, options: TrainOptions) -> str | None:
    return options.initial or (recipe.initial if recipe else None)


def _settings(recipe: Recipe | None, options: TrainOptions, processes: Processes) -> TrainingSpec:
    """How it is trained, but for what pairs suggest. Raises for what can be said before the data are read."""
    training = _training(recipe.training if recipe else TrainingSpec(), options, processes)
    initial = _initial(recipe, options)
    if initial:
        check_source(initial)
    elif training.keep is not None:
        raise InvalidInput("keep is given, but the training begins with fresh weights; say with which it begins")
    return training


def _beginning(
    spec: DeepLabSpec,
    labels: Sequence[Segment],
    training: TrainingSpec,
    recipe: Recipe | None,
    options: TrainOptions,
) -> tuple[DeepLabV3Plus, str]:
    """The network with the weights that it begins with, and in words which these are."""
    torch.manual_seed(training.seed)
    network = DeepLabV3Plus.from_spec(spec)
    initial = _initial(recipe, options)
    return network, begin_with(network, initial, labels, whole=training.keep is not None) if initial else ""


def _from_label_maps(
    data: Path,
    name: str,
    recipe: Recipe,
    heads: Heads,
    options: TrainOptions,
    processes: Processes,
    on_progress: OnTraining,
) -> Job:
    paths = sorted(data.glob("*.nii.gz"))
    if not paths:
        raise InvalidInput(f"{data} holds no label maps (*.nii.gz); give the folder of whole-head label maps")
    training = _settings(recipe, options, processes)
    network, begun = _beginning(recipe.bundle.network, recipe.bundle.labels, training, recipe, options)
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
        "weights": _initial(recipe, options),
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
    outline = plan_of(data, options, processes, on_progress)
    learned, held_out, chosen = outline.learned, outline.held_out, outline.plan
    if processes.first:
        with replacing(folder / "data.txt") as temporary:
            temporary.write_text(f"{outline.text}\n", encoding="utf-8")
    if recipe is None:
        bundle = Bundle(
            name=name,
            description=f"{', '.join(label.name for label in chosen.labels)}; trained on {len(learned)} cases",
            network=chosen.network,
            input=chosen.input,
            labels=chosen.labels,
            license=options.license,
            training_data=options.training_data or f"{len(learned)} cases of {data.resolve().name}",
            limits=_limits(outline.unmeasured),
            reproduce=options.reproduce,
        )
    else:
        bundle = replace(
            recipe.bundle, name=name, network=chosen.network, input=chosen.input, reproduce=options.reproduce
        )
    prepared = prepare(
        learned, chosen, folder / "prepared", on_case=lambda done, total: on_progress("prepare", done, total, None)
    )
    pairs = Patches(prepared, chosen, Augmentation(), outline.training.seed)
    validate = dice_on(held_out, chosen, bundle, str(processes.device)) if held_out else None
    about: dict[str, object] = {
        "weights": _initial(recipe, options),
        "input": to_json(chosen.input),
        "labels": to_json(chosen.labels),
        "data": {case.name: case.key for case in prepared},
        "held-out data": {case.name: case_key(case, chosen) for case in held_out},
    }
    return Job(bundle, outline.training, outline.network, outline.begun, pairs, validate, about)


def _limits(unmeasured: Sequence[str]) -> str | None:
    return f"No figure speaks of {', '.join(unmeasured)}: no held-out case had it." if unmeasured else None


def _training(start: TrainingSpec, options: TrainOptions, processes: Processes) -> TrainingSpec:
    precision = choose_precision(options.precision, processes.device)
    unknown = sorted(set(options.training) - {f.name for f in fields(TrainingSpec)})
    if unknown:
        raise InvalidInput(f"training has unknown fields {', '.join(unknown)}; see TrainingSpec")
    if "precision" in options.training:
        raise InvalidInput("training has a precision; give it beside the device, as an option of its own")
    return from_json(TrainingSpec, to_json(start) | {"precision": precision} | options.training, "training")
