"""What a training may vary, and what follows from it before any data are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from DeepLabSegLib.devices import choose_precision
from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.schema import from_json, to_json
from DeepLabSegLib.training.initial import check_source
from DeepLabSegLib.training.planning import Overrides
from DeepLabSegLib.training.processes import Processes
from DeepLabSegLib.training.recipes import Recipe, find_recipe
from DeepLabSegLib.training.spec import TrainingSpec

__all__ = [
    "OnTraining",
    "TrainOptions",
    "checked_options",
    "initial_of",
    "quiet",
    "recipe_of",
    "settings_of",
    "spec_of",
]

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


def checked_options(options: TrainOptions) -> TrainOptions:
    """`options` with each value of its declared type; numbers may be numpy's, and paths those of pathlib.

    Raises `InvalidInput` that names a value of another type.
    """
    plain = json.dumps(
        to_json(options), default=lambda value: value.tolist() if hasattr(value, "tolist") else str(value)
    )
    return from_json(TrainOptions, json.loads(plain), "options")


def recipe_of(options: TrainOptions) -> Recipe | None:
    """The recipe that `options` name. Raises `InvalidInput` where they say what it decides."""
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


def initial_of(recipe: Recipe | None, options: TrainOptions) -> str | None:
    """Name or path of the weights to begin with."""
    return options.initial or (recipe.initial if recipe else None)


def settings_of(recipe: Recipe | None, options: TrainOptions, processes: Processes) -> TrainingSpec:
    """How it is trained, but for what pairs suggest. Raises for what can be said before the data are read."""
    training = spec_of(recipe.training if recipe else TrainingSpec(), options, processes)
    initial = initial_of(recipe, options)
    if initial:
        check_source(initial)
    elif training.keep is not None:
        raise InvalidInput("keep is given, but the training begins with fresh weights; say with which it begins")
    if training.patience is not None and (options.folds == 0 or (recipe and recipe.heads)):
        raise InvalidInput(
            f"patience is {training.patience}, but nothing is validated (0 folds, or label maps alone); leave it out"
        )
    return training


def spec_of(start: TrainingSpec, options: TrainOptions, processes: Processes) -> TrainingSpec:
    """`start` with what `options` say of training. Raises `InvalidInput` for what can't be said."""
    precision = choose_precision(options.precision, processes.device)
    unknown = sorted(set(options.training) - {f.name for f in fields(TrainingSpec)})
    if unknown:
        raise InvalidInput(f"training has unknown fields {', '.join(unknown)}; see TrainingSpec")
    if "precision" in options.training:
        raise InvalidInput("training has a precision; give it beside the device, as an option of its own")
    return from_json(TrainingSpec, to_json(start) | {"precision": precision} | options.training, "training")
