"""`deeplabseg train`."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

from DeepLabSegLib.commands.arguments import Commands, typed
from DeepLabSegLib.commands.telling import ProgressBar, Report, table
from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.texts import parse_names, parse_sizes, parse_spacing

__all__ = ["COMMANDS"]


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
    """The command with the data's and the model's own names in place of where they lie.

    A path that is also another argument's value, as in `train liver --labels liver`, stays as it is.
    """
    names = {options.data: "DATA"} | {path: Path(path).name for path in (options.output, options.weights) if path}
    others = [value for name, value in vars(options).items() if name not in ("data", "output", "weights")]
    names = {path: name for path, name in names.items() if path not in others and [path] not in others}
    words = [re.split(r"^(--[^=]*=|-o=?)", word) for word in options.words]
    return shlex.join(["deeplabseg", *("".join(option) + names.get(value, value) for *option, value in words)])


def _train_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "data",
        help="folder of image and label pairs (imagesTr and labelsTr, images and labels, scan.nrrd beside "
        "scan.seg.nrrd, or a folder per case with both), or a .csv or .tsv table with columns image and label",
    )
    sub.add_argument("-o", "--output", help="bundle to write; checkpoint and curves go to OUTPUT.training beside it")
    sub.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    sub.add_argument("--check", action="store_true", help="only check the data and show what would be trained")
    sub.add_argument("--recipe", help="make a starter model again: head-mri, head-mri-fast, head-mri-2d or cardiac-lv")
    sub.add_argument("--weights", help="model or weights file to begin with, such as an encoder's from ImageNet")
    sub.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)")
    sub.add_argument("--precision", default="auto", help="auto, fp32, bf16 or fp16 (default: %(default)s)")
    loop = sub.add_argument_group("the training", "A recipe has defaults of its own.")
    loop.add_argument("--steps", type=int, help="updates of the weights (default: 3000)")
    loop.add_argument("--batch", type=int, help="windows per step, over all processes (default: by the tile)")
    loop.add_argument("--optimizer", choices=("adamw", "sgd"), help="(default: adamw)")
    loop.add_argument(
        "--learning-rate", type=float, help="its highest value (default: 0.002 with adamw, 0.01 with sgd)"
    )
    loop.add_argument(
        "--keep", type=float, help="share of the weights begun with that stays in the result, 0 to 1 (default: none)"
    )
    loop.add_argument("--validate-every", type=int, help="steps between validations (default: a twelfth of all)")
    loop.add_argument(
        "--patience", type=int, help="validations without a gain after which training stops (default: never)"
    )
    loop.add_argument(
        "--workers", type=int, help="processes that load and change images (default: 1, beside a GPU one per core)"
    )
    loop.add_argument("--seed", type=int, help="of weights, split and images (default: 0)")
    loop.add_argument(
        "--folds",
        type=int,
        default=5,
        help="parts of the cases, one of which is held out to validate; 0: none (default: %(default)s)",
    )
    loop.add_argument("--fold", type=int, default=0, help="the part that is held out (default: %(default)s)")
    loop.add_argument(
        "--patient", help="regular expression that finds the patient in a case's name (default: all of it)"
    )
    loop.add_argument("--allow-empty", action="store_true", help="take labels without a voxel, such as healthy scans'")
    chosen = sub.add_argument_group("instead of what the data suggest")
    chosen.add_argument("--encoder", help="a name from `deeplabseg encoders` (default: resnet18)")
    chosen.add_argument("--depth", type=int, choices=(3, 4, 5), help="stages of the encoder, each of half the size")
    chosen.add_argument("--dims", type=int, choices=(2, 3), help="slice by slice, or in 3D")
    chosen.add_argument(
        "--spacing", type=typed(parse_spacing), help="mm along k, j, i, for example 1.5x1x1; 0x0x0 keeps the scan's"
    )
    chosen.add_argument("--tile", type=typed(parse_sizes), help="window, for example 96x96x96")
    chosen.add_argument("--normalization", help="none, zscore, percentile:0.5:99.5 or window:-160:240")
    chosen.add_argument("--orientation", help="three letters, where k, j, i grow to, for example SAR")
    chosen.add_argument(
        "--mirror-axes", type=typed(_parse_axes), help="axes that mirror images turn round, such as k,j; '' for none"
    )
    chosen.add_argument(
        "--labels",
        type=typed(parse_names),
        help="names of the labels between commas, in the model's order: those that segments have give their order, "
        "others rename the labels in the order of their values",
    )
    chosen.add_argument("--channels", type=typed(parse_names), help="names of the input channels between commas")
    card = sub.add_argument_group("what the model says of itself")
    card.add_argument("--name", help="(default: the bundle's)")
    card.add_argument("--license", default="unknown", help="licence of the weights (default: %(default)s)")
    card.add_argument("--training-data", help="(default: the number of cases and their folder's name)")


def _parse_axes(text: str) -> tuple[int, ...]:
    """`"j,i"` or `"ji"` to the axes' numbers in (k, j, i). Raises `InvalidInput`."""
    letters = set(text.replace(",", "").replace(" ", ""))
    if not letters <= set("kji"):
        raise InvalidInput(f"{text!r} names no axes; write some of k,j,i, or '' for none")
    return tuple(sorted("kji".index(letter) for letter in letters))


COMMANDS: Commands = {
    train: _train_arguments,
}
