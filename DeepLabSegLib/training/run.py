"""From data to a model: what `deeplabseg train` does, for Python."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from DeepLabSegLib.bundle import check_ending, save_bundle
from DeepLabSegLib.catalog import TENSORS_NAME
from DeepLabSegLib.errors import OutputError
from DeepLabSegLib.outputs import leftovers
from DeepLabSegLib.training.checkpoint import CHECKPOINT
from DeepLabSegLib.training.jobs import make_job
from DeepLabSegLib.training.lock import held
from DeepLabSegLib.training.options import OnTraining, TrainOptions, checked_options, quiet
from DeepLabSegLib.training.outline import outline_of
from DeepLabSegLib.training.processes import joined_processes
from DeepLabSegLib.training.trainer import Trained, train

__all__ = ["check_data", "train_model"]


def check_data(
    data: str | os.PathLike[str], options: TrainOptions | None = None, on_progress: OnTraining = quiet
) -> str:
    """The report of faults, the fingerprint and the plan, without training. Raises as `train_model` does."""
    options = checked_options(options or TrainOptions())
    with joined_processes(options.device) as processes:
        return outline_of(Path(data), options, processes, on_progress).text


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
    BundleError, WeightsError : weights to begin with that aren't there, can't be read or don't fit.
    OutputError : `output` exists, can't be written, or is another training's that is at work.
    KeyboardInterrupt : Ctrl-C, with what the same call does next.
    SystemExit : under `torchrun`, where another process has raised what ended all of them.
    """
    options = checked_options(options or TrainOptions())
    target = Path(output)
    stem = target.name.removesuffix(".safetensors")
    name, folder = options.name or stem, target.parent / f"{stem}.training"
    overwrite = overwrite or _unfinished(target, folder)
    with _told_what_is_left(folder), joined_processes(options.device) as processes, ExitStack() as stack:
        _check_target(target, overwrite)
        if processes.first:
            stack.enter_context(held(folder))
            for path in leftovers(target):
                path.unlink(missing_ok=True)
        processes.wait()
        # The first prepares what the others then find.
        for turn in (True, False):
            if processes.first == turn:
                job = make_job(Path(data), name, folder, options, processes, on_progress if turn else quiet)
            processes.wait()
        trained = train(
            job.network,
            job.pairs,
            job.training,
            folder,
            processes,
            job.validate,
            lambda step, loss: on_progress("train", step, job.training.steps, loss),
            about=job.about,
        )
        if processes.first:
            figures = {f"{name}, held-out cases": round(score, 4) for name, score in trained.scores.items()}
            save_bundle(target, replace(job.bundle, figures=figures), trained.network.cpu(), overwrite=overwrite)
        processes.wait()
    return replace(trained, begun=job.begun)


def _unfinished(target: Path, folder: Path) -> bool:
    """Whether `target` holds what the training in `folder` had written of its bundle when it was cut off."""
    if not target.is_dir() or not (folder / CHECKPOINT).exists():
        return False
    # What tells of the tensors is written last.
    return not {*target.iterdir()} - {target / TENSORS_NAME, *leftovers(target)}


def _check_target(target: Path, overwrite: bool) -> None:
    """Raise `OutputError` where no bundle could be written in the end."""
    if target.name in ("", ".."):
        raise OutputError(f"{target} has no name for a model; add one, for example {target / 'model'}")
    check_ending(target)
    if target.exists() and not overwrite:
        raise OutputError(f"{target} exists; give another name, or --overwrite (overwrite=True)")
    single = target.suffix == ".safetensors"
    if target.is_dir() if single else target.is_file():
        kind, wanted = ("folder", "file") if single else ("file", "folder, or a file that ends in .safetensors")
        raise OutputError(f"{target} is a {kind}, and such a model is a {wanted}; give another name")


@contextmanager
def _told_what_is_left(folder: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        there = (folder / CHECKPOINT).exists()
        how = "goes on from the checkpoint" if there else "begins anew, since there is no checkpoint yet"
        raise KeyboardInterrupt(f"the same command {how}") from None
