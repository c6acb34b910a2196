"""What would be trained on pairs: which cases are good, what is chosen for them, and how they are parted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.image import Segment
from DeepLabSegLib.models.deeplab import DeepLabSpec, DeepLabV3Plus
from DeepLabSegLib.training.cases import Case, find_cases
from DeepLabSegLib.training.check import CheckedData, check_cases, report
from DeepLabSegLib.training.initial import begin_with
from DeepLabSegLib.training.options import OnTraining, TrainOptions, initial_of, recipe_of, settings_of, spec_of
from DeepLabSegLib.training.planning import TrainingPlan, plan
from DeepLabSegLib.training.processes import Processes
from DeepLabSegLib.training.recipes import Recipe
from DeepLabSegLib.training.spec import TrainingSpec
from DeepLabSegLib.training.split import split
from DeepLabSegLib.training.validation import lacking

__all__ = ["Outline", "beginning", "outline_of"]


@dataclass(frozen=True)
class Outline:
    """All that is settled of a training with pairs before anything is written.

    Attributes
    ----------
    learned, held_out : the good cases, to train on and to validate with.
    unmeasured : names of the classes that no held-out case has, where some are held out.
    faulty : names of the cases and files with a fault.
    plan, training : what is chosen for them.
    network, begun : as in `Job`.
    text : data and plan in words, with every fault.
    """

    learned: list[Case]
    held_out: list[Case]
    unmeasured: list[str]
    faulty: list[str]
    plan: TrainingPlan
    training: TrainingSpec
    network: DeepLabV3Plus
    begun: str
    text: str


def outline_of(data: Path, options: TrainOptions, processes: Processes, on_progress: OnTraining) -> Outline:
    """What would be trained on the pairs in `data`. Raises as `make_job` does, options first."""
    recipe = recipe_of(options)
    if recipe is not None and recipe.heads is not None:
        raise InvalidInput(f"the recipe {options.recipe} learns from label maps alone; there are no pairs to check")
    settings_of(recipe, options, processes)
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
    training = spec_of(recipe.training if recipe else start, options, processes)
    chosen = replace(chosen, batch_size=training.batch_size)
    learned, held_out, unmeasured = _parted(checked, chosen, options, training.seed)
    network, begun = beginning(chosen.network, chosen.labels, training, recipe, options)
    text = "\n".join([report(checked), *chosen.lines(), *_held_out_lines(held_out, unmeasured)])
    faulty = list(dict.fromkeys(fault.name for fault in checked.faults))
    return Outline(learned, held_out, unmeasured, faulty, chosen, training, network, begun, text)


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


def beginning(
    spec: DeepLabSpec,
    labels: Sequence[Segment],
    training: TrainingSpec,
    recipe: Recipe | None,
    options: TrainOptions,
) -> tuple[DeepLabV3Plus, str]:
    """The network with the weights that it begins with, and in words which these are."""
    torch.manual_seed(training.seed)
    network = DeepLabV3Plus.from_spec(spec)
    initial = initial_of(recipe, options)
    return network, begin_with(network, initial, labels, whole=training.keep is not None) if initial else ""
