"""`deeplabseg train`."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from DeepLabSegLib.commands.telling import ProgressBar, Report, table
from DeepLabSegLib.errors import InvalidInput

__all__ = ["train"]


def train(options: argparse.Namespace) -> Report:
    """Train a model on pairs of images and labels; the same command goes on with a training that was cut off."""
    from DeepLabSegLib import weights
    from DeepLabSegLib.training import Overrides, TrainOptions, check_data, train_model

    overrides = Overrides(
        encoder=options.encoder,
        depth=options.depth,
        dims=options.dims,
        spacing=options.spacing,
        tile=options.tile,
        batch_size=None if options.recipe else options.batch,
        normalization=options.normalization and weights.parse_normalization(options.normalization),
        orientation=options.orientation,
        names=options.labels and tuple(options.labels),
        channels=options.channels and tuple(options.channels),
        mirror_axes=options.mirror_axes,
    )
    fields = ("steps", "optimizer", "learning_rate", "keep", "validate_every", "patience", "workers", "seed")
    training = {name: value for name in fields if (value := getattr(options, name)) is not None}
    if options.recipe and options.batch:
        training["batch_size"] = options.batch
    wanted = TrainOptions(
        recipe=options.recipe,
        overrides=overrides,
        training=training,
        initial=options.weights,
        folds=options.folds,
        fold=options.fold,
        patient=options.patient,
        allow_empty=options.allow_empty,
        device=options.device,
        precision=options.precision,
        name=options.name,
        license=options.license,
        training_data=options.training_data,
        reproduce=_reproduce(options),
    )
    with ProgressBar(options) as bar:
        if options.check:
            text = check_data(options.data, wanted, bar.of_training)
            return {"report": text.splitlines()}, text
        if options.output is None:
            raise InvalidInput(
                "no output is given; say with -o where to write the model, or look at the data with --check"
            )
        trained = train_model(
            options.data, options.output, wanted, overwrite=options.overwrite, on_progress=bar.of_training
        )
    scores = [(name, f"{score:.3f}") for name, score in trained.scores.items()]
    lines = [table([("held-out cases", "Dice"), *scores])] if scores else []
    lines += [f"began with {trained.begun}"] if trained.begun else []
    lines.append(f"{options.output}: weights of step {trained.step}")
    data = {"output": options.output, "step": trained.step, "scores": trained.scores, "begun": trained.begun}
    return data, "\n".join(lines)


def _reproduce(options: argparse.Namespace) -> str:
    """The command with the data's and the model's own names in place of where they lie."""
    names = {options.data: "DATA"} | {path: Path(path).name for path in (options.output, options.weights) if path}
    words = [word for whole in options.words for word in (whole.split("=", 1) if whole.startswith("--") else [whole])]
    return shlex.join(["deeplabseg", *(names.get(word, word) for word in words)])
