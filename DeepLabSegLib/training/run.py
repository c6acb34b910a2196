"""From data to a model: what `deeplabseg train` does, for Python."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import torch

from DeepLabSegLib.bundle import save_bundle
from DeepLabSegLib.errors import InvalidInput, OutputError
from DeepLabSegLib.models.deeplab import DeepLabV3Plus
from DeepLabSegLib.training.initial import begin_with
from DeepLabSegLib.training.jobs import OnTraining, TrainOptions, make_job, plan_of, quiet
from DeepLabSegLib.training.processes import joined_processes
from DeepLabSegLib.training.recipes import find_recipe
from DeepLabSegLib.training.trainer import Trained, train

__all__ = ["check_data", "train_model"]


def check_data(data: str | os.PathLike[str], options: TrainOptions, on_progress: OnTraining = quiet) -> str:
    """The report of faults, the fingerprint and the plan, without training. Raises as `train_model` does."""
    _, _, text = plan_of(Path(data), options, on_progress)
    return text


def train_model(
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    options: TrainOptions | None = None,
    *,
    overwrite: bool = False,
    on_progress: OnTraining = quiet,
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
    stem = target.name.removesuffix(".safetensors")
    name, folder = options.name or stem, target.with_name(f"{stem}.training")
    with joined_processes(options.device) as processes:
        if processes.first:
            _make(folder)
        processes.wait()
        # The first prepares what the others then find.
        for turn in (True, False):
            if processes.first == turn:
                job = make_job(Path(data), name, folder, options, processes, on_progress if turn else quiet)
            processes.wait()
        torch.manual_seed(job.training.seed)
        network = DeepLabV3Plus.from_spec(job.bundle.network)
        initial = options.initial or (options.recipe and find_recipe(options.recipe).initial)
        kept = job.training.keep is not None
        if kept and not initial:
            raise InvalidInput("keep is given, but the training begins with fresh weights; say with which it begins")
        begun = begin_with(network, initial, whole=kept) if initial else ""
        trained = train(
            network,
            job.pairs,
            job.training,
            folder,
            processes,
            job.validate,
            lambda step, loss: on_progress("train", step, job.training.steps, loss),
            about=[job.about, initial],
        )
        if processes.first:
            figures = {f"{name}, held-out cases": round(score, 4) for name, score in trained.scores.items()}
            save_bundle(target, replace(job.bundle, figures=figures), trained.network.cpu(), overwrite=overwrite)
        processes.wait()
    return replace(trained, begun=begun)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder {folder} can't be made ({error.strerror}); choose another place") from None
