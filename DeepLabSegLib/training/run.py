"""From data to a model: what `deeplabseg train` does, for Python."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from DeepLabSegLib.bundle import Bundle, save_bundle
from DeepLabSegLib.devices import choose_precision
from DeepLabSegLib.errors import InvalidInput, OutputError
from DeepLabSegLib.models.deeplab import DeepLabV3Plus
from DeepLabSegLib.outputs import replacing
from DeepLabSegLib.training.augment import Augmentation
from DeepLabSegLib.training.cases import Case, find_cases
from DeepLabSegLib.training.check import check_cases, report
from DeepLabSegLib.training.head_mri import SyntheticHeads, read_head_map
from DeepLabSegLib.training.initial import begin_with
from DeepLabSegLib.training.patches import Patches
from DeepLabSegLib.training.planning import Overrides, TrainingPlan, plan
from DeepLabSegLib.training.prepared import prepare
from DeepLabSegLib.training.processes import Processes, joined_processes
from DeepLabSegLib.training.recipes import Heads, Recipe, find_recipe
from DeepLabSegLib.training.split import split
from DeepLabSegLib.training.trainer import Trained, TrainingSpec, Validate, train
from DeepLabSegLib.training.validation import dice_on

__all__ = ["OnTraining", "TrainOptions", "check_data", "train_model"]

Pairs = Dataset[tuple[Tensor, Tensor]]

OnTraining = Callable[[str, int, int, float | None], object]
"""Told of each step of a stage ("check", "prepare" or "train"): its name, done, total, and the loss in training."""


@dataclass(frozen=True)
class TrainOptions:
    """What a training may vary.

    Attributes
    ----------
    recipe : a starter model's (`training.recipes`), which then decides everything but `training` fields given here.
    overrides : what is chosen instead of the plan that the data suggest.
    training : fields of `TrainingSpec` by name; those left out are the recipe's or the plan's.
    initial : a model or weights file to begin with.
    folds, fold : cases are split by patient into `folds`, and those of `fold` are held out to validate; 0 folds train
        on all cases and validate on none.
    patient : regular expression that finds the patient in a case's name, see `find_cases`.
    name, license, training_data : what the model says of itself.
    reproduce : the command that makes it.
    """

    recipe: str | None = None
    overrides: Overrides = field(default_factory=Overrides)
    training: dict[str, object] = field(default_factory=dict)
    initial: str | None = None
    folds: int = 5
    fold: int = 0
    patient: str | None = None
    device: str = "auto"
    precision: str = "auto"
    name: str | None = None
    license: str = "unknown"
    training_data: str | None = None
    reproduce: str | None = None


@dataclass(frozen=True)
class _Job:
    """Everything that a training needs, made from data and options."""

    bundle: Bundle
    training: TrainingSpec
    pairs: Pairs
    validate: Validate | None
    about: object


def check_data(data: str | os.PathLike[str], options: TrainOptions, on_progress: OnTraining | None = None) -> str:
    """The report of faults, the fingerprint and the plan, without training. Raises as `train_model` does."""
    _, _, text = _planned(Path(data), options, on_progress)
    return text


def train_model(
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    options: TrainOptions | None = None,
    *,
    overwrite: bool = False,
    on_progress: OnTraining | None = None,
) -> Trained:
    """Train a network on `data` and write the best as a bundle to `output`.

    Beside it, in `<output>.training`, lie the report of the data, the prepared cases, the curves and the checkpoint:
    the same call takes up a training that was cut off. Under `torchrun` all its processes train one network.

    Raises
    ------
    InvalidInput : data that can't be trained on, with every fault; options out of range; a training of other settings.
    OutputError : `output` exists, or can't be written.
    """
    options = options or TrainOptions()
    target = Path(output)
    if target.exists() and not overwrite:
        raise OutputError(f"{target} exists; give another name, or --overwrite (overwrite=True)")
    folder = target.with_name(f"{target.name.removesuffix('.safetensors')}.training")
    with joined_processes(options.device) as processes:
        if processes.first:
            _make(folder)
        processes.wait()
        # The first prepares what the others then find.
        for turn in (True, False):
            if processes.first == turn:
                job = _job(Path(data), folder, target, options, processes, on_progress if turn else None)
            processes.wait()
        torch.manual_seed(job.training.seed)
        network = DeepLabV3Plus.from_spec(job.bundle.network)
        initial = options.initial or (options.recipe and find_recipe(options.recipe).initial)
        if initial:
            begin_with(network, initial)

        def on_step(step: int, loss: float) -> None:
            if on_progress:
                on_progress("train", step, job.training.steps, loss)

        trained = train(
            network,
            job.pairs,
            job.training,
            folder,
            processes,
            job.validate,
            on_step,
            about=[job.about, initial],
        )
        if processes.first:
            figures = {f"{name}, held-out cases": round(score, 4) for name, score in trained.scores.items()}
            save_bundle(target, replace(job.bundle, figures=figures), trained.network.cpu(), overwrite=overwrite)
        processes.wait()
    return trained


# --- pieces ----------------------------------------------------------------------------------------------------------


def _job(
    data: Path, folder: Path, target: Path, options: TrainOptions, processes: Processes, on_progress: OnTraining | None
) -> _Job:
    name = options.name or target.name.removesuffix(".safetensors")
    precision = choose_precision(options.precision, processes.device)
    recipe = find_recipe(options.recipe) if options.recipe else None
    if recipe is not None and recipe.heads is not None:
        bundle = _recipe_bundle(recipe, name, options)
        training = _training(recipe.training, options, precision)
        heads = _synthetic(data, bundle, recipe.heads, training, on_progress)
        return _Job(bundle, training, heads, None, options.recipe)

    cases, chosen, text = _planned(data, options, on_progress)
    if processes.first:
        with replacing(folder / "data.txt") as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    start = TrainingSpec(batch_size=chosen.batch_size, every=1 + (chosen.network.dims == 3))
    if recipe is not None:
        bundle = _recipe_bundle(recipe, name, options)
        bundle = replace(bundle, network=chosen.network, input=chosen.input)
        start = recipe.training
    else:
        bundle = Bundle(
            name=name,
            description=f"{', '.join(label.name for label in chosen.labels)}; trained on {len(cases)} cases",
            network=chosen.network,
            input=chosen.input,
            labels=chosen.labels,
            license=options.license,
            training_data=options.training_data or f"{len(cases)} cases of {data.resolve().name}",
            reproduce=options.reproduce,
        )
    training = _training(start, options, precision)
    learned, held_out = split(cases, options.folds, options.fold, training.seed) if options.folds else (cases, ())

    def on_case(done: int, total: int) -> None:
        if on_progress:
            on_progress("prepare", done, total, None)

    prepared = prepare(learned, chosen, folder / "prepared", on_case=on_case)
    patches = Patches(prepared, chosen, Augmentation(), training.seed)
    validate = dice_on(held_out, chosen, bundle, str(processes.device)) if held_out else None
    return _Job(bundle, training, patches, validate, [case.name for case in learned])


def _planned(
    data: Path, options: TrainOptions, on_progress: OnTraining | None
) -> tuple[Sequence[Case], TrainingPlan, str]:
    """The good cases, the plan, and both in words with every fault."""
    recipe = find_recipe(options.recipe) if options.recipe else None
    if recipe is not None and recipe.heads is not None:
        raise InvalidInput(f"the recipe {options.recipe} learns from label maps alone; there are no pairs to check")

    def on_case(done: int, total: int) -> None:
        if on_progress:
            on_progress("check", done, total, None)

    found, faults = find_cases(data, options.patient or (recipe.patient if recipe else None))
    checked = check_cases(found, faults, on_case=on_case)
    chosen = plan(checked.fingerprint, recipe.overrides if recipe else options.overrides)
    return checked.cases, chosen, "\n".join([report(checked), *chosen.lines()])


def _synthetic(
    data: Path, bundle: Bundle, heads: Heads, training: TrainingSpec, on_progress: OnTraining | None
) -> Pairs:
    paths = sorted(data.glob("*.nii.gz"))
    if not paths:
        raise InvalidInput(f"{data} holds no label maps (*.nii.gz); give the folder of whole-head label maps")
    maps = []
    for path in paths:
        maps.append(read_head_map(path, str(bundle.input.orientation)))
        if on_progress:
            on_progress("prepare", len(maps), len(paths), None)
    spacing = [mm for mm in bundle.input.spacing if mm is not None]
    return SyntheticHeads(maps, heads.size, spacing, training.seed, heads.groups)


def _recipe_bundle(recipe: Recipe, name: str, options: TrainOptions) -> Bundle:
    return replace(recipe.bundle, name=name, reproduce=options.reproduce)


def _training(start: TrainingSpec, options: TrainOptions, precision: str) -> TrainingSpec:
    spec = replace(start, precision=precision, **options.training)  # type: ignore[arg-type]
    if "validate_every" not in options.training:
        spec = replace(spec, validate_every=max(1, spec.steps // 12))
    return spec


def _make(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder {folder} can't be made ({error.strerror}); make its parent first") from None
