"""The command line `deeplabseg`: its arguments, errors and exit codes."""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import DeepLabSegLib
from DeepLabSegLib import commands
from DeepLabSegLib.catalog import DEFAULT_MODEL
from DeepLabSegLib.errors import DeepLabSegError, InvalidInput, OutputError
from DeepLabSegLib.texts import parse_names, parse_sizes, parse_spacing

INTERRUPTED = 130
EXIT_CODES = (
    "Exit codes: 0 all done; 1 an error, or a scan or case that failed; 2 wrong arguments; 130 after Ctrl-C, 143 after "
    "SIGTERM."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 for an error or failed cases, which are told, 130 after Ctrl-C.

    SIGTERM ends it as Ctrl-C does, with 143. Wrong arguments are told and raise `SystemExit` with 2, as argparse does;
    `--help` and `--version` with 0.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser(as_json="--json" in words).parse_args(words)
    options.words = words
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may have letters that the output can't
    with _terminable() as signals:
        try:
            data, text = options.run(options)
            if os.environ.get("RANK", "0") != "0":  # of several processes that train one network, the first reports
                return 0
            _say(json.dumps(data, indent=2) if options.json else text)
            return 1 if isinstance(data, dict) and data.get("failed") else 0
        except DeepLabSegError as error:
            return _fail(options, str(error), 1)
        except KeyboardInterrupt as error:
            code = 128 + signals[0] if signals else INTERRUPTED
            return _fail(options, f"interrupted; {str(error) or 'nothing was written'}", code)
        except OSError as error:
            name = error.filename2 or error.filename
            return _fail(options, f"{name}: {error.strerror}" if name else str(error), 1)


@contextmanager
def _terminable() -> Iterator[list[int]]:
    """SIGTERM, as Slurm, Docker and `timeout` send it, is Ctrl-C to what runs within; the list that is given has it."""
    signals: list[int] = []

    def interrupt(number: int, _: object) -> NoReturn:
        signals.append(number)
        raise KeyboardInterrupt

    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:  # somebody else sees to it
        yield signals
        return
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield signals
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _fail(options: argparse.Namespace, message: str, code: int) -> int:
    print(f"deeplabseg: {message}", file=sys.stderr)  # noqa: T201 its purpose
    if options.json:
        _say_error(message)
    return code


def _say_error(message: str) -> None:
    with suppress(OutputError):
        _say(json.dumps({"error": message}))


def _say(text: str) -> None:
    """Print `text` at once. Raises `OutputError` where it can't be, but not for a reader who went away."""
    try:
        print(text, flush=True)  # noqa: T201 its purpose
    except OSError as error:
        # What is left of the text would be tried again at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise OutputError(f"all is done but the report can't be printed ({error.strerror})") from None


# --- arguments -------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """One that tells wrong arguments to programs too."""

    as_json = False

    def error(self, message: str) -> NoReturn:
        if self.as_json:
            _say_error(message)
        super().error(message)


def _typed(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            return parse(text)
        except InvalidInput as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def _parse_axes(text: str) -> tuple[int, ...]:
    """`"j,i"` or `"ji"` to the axes' numbers in (k, j, i). Raises `InvalidInput`."""
    letters = set(text.replace(",", "").replace(" ", ""))
    if not letters <= set("kji"):
        raise InvalidInput(f"{text!r} names no axes; write some of k,j,i, or '' for none")
    return tuple(sorted("kji".index(letter) for letter in letters))


def _parser(as_json: bool) -> argparse.ArgumentParser:
    parser = _Parser("deeplabseg", description="Segment medical images with DeepLabV3+.", epilog=EXIT_CODES)
    parser.as_json = as_json
    parser.add_argument("--version", action="version", version=DeepLabSegLib.__version__)
    added = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(run: Callable[[argparse.Namespace], commands.Report]) -> argparse.ArgumentParser:
        summary = (run.__doc__ or "").strip()
        sub = added.add_parser(run.__name__, help=summary, description=summary)
        sub.as_json = as_json
        sub.set_defaults(run=run)
        sub.add_argument("--json", action="store_true", help="print JSON for programs")
        return sub

    def run_options(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--model", default=DEFAULT_MODEL, help="a name from `deeplabseg models`, or a bundle's path")
        sub.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)")
        sub.add_argument("--precision", default="auto", help="auto, fp32, bf16 or fp16 (default: %(default)s)")
        sub.add_argument(
            "--compile", action="store_true", help="let torch.compile write kernels, in up to a minute; try if it pays"
        )
        sub.add_argument("--overwrite", action="store_true", help="replace an existing output")

    def engine_options(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--tile", type=_typed(parse_sizes), help="window, for example 96x96x96 (default: the model's)")
        sub.add_argument("--overlap", type=float, help="share that neighbouring windows have in common, 0 to 0.9")
        sub.add_argument("--blending", choices=("gaussian", "constant"), help="how overlapping windows are weighed")
        sub.add_argument("--slice-axis", choices=("axial", "coronal", "sagittal"), help="slices for a 2D model")
        sub.add_argument("--threshold", type=float, help="score from which a voxel counts, for sigmoid models")
        sub.add_argument(
            "--mirror",
            action="store_true",
            help="average over mirror images, twice the time with each axis; often a little better",
        )

    sub = command(commands.segment)
    sub.add_argument(
        "input",
        nargs="+",
        help="an image file, or a folder with one DICOM series; several are the channels of one scan",
    )
    sub.add_argument(
        "-o", "--output", required=True, help="where to write; the ending decides: .seg.nrrd, .nii.gz, ..."
    )
    run_options(sub)
    engine_options(sub)
    sub.add_argument("--uncertainty", metavar="FILE", help="also write how uncertain each voxel is, 0 to 1")
    sub.add_argument("--probabilities", metavar="FILE", help="also write each class's probability, as components")

    sub = command(commands.batch)
    sub.add_argument("folder", help="folder of scans or pictures, or of folders with a DICOM series each")
    sub.add_argument("-o", "--output", required=True, help="folder to write to, with report.csv")
    sub.add_argument("--suffix", default=".seg.nrrd", help="ending of the results, which decides their format")
    run_options(sub)
    engine_options(sub)

    sub = command(commands.demo)
    sub.add_argument("-o", "--output", default="demo", help="folder to write to (default: %(default)s)")
    run_options(sub)

    sub = command(commands.evaluate)
    sub.add_argument("prediction", nargs="+", help="segmentations, or a folder of them")
    sub.add_argument(
        "--reference",
        nargs="+",
        required=True,
        help="one reference per segmentation, in the same order; or a folder, then files are paired by name",
    )
    sub.add_argument("--groups", help="JSON that says which values belong together on either side")
    sub.add_argument(
        "-o", "--output", metavar="FOLDER", help="also write cases.csv, summary.csv, summary.json, pictures"
    )
    sub.add_argument("--images", nargs="+", default=[], help="scans to show in the pictures, or a folder of them")
    sub.add_argument(
        "--worst",
        type=int,
        default=3,
        metavar="N",
        help="pictures of the N worst cases, per label and over all (default: %(default)s)",
    )
    sub.add_argument("--overwrite", action="store_true", help="replace an earlier comparison in the folder")

    command(commands.models)
    command(commands.encoders)
    sub = command(commands.info)
    sub.add_argument("model", help="a name from `deeplabseg models`, a bundle's path, or a weights file")
    sub.add_argument("--device", help="also say how it runs there: auto, cpu, cuda, cuda:N or mps")

    sub = command(commands.convert)
    sub.add_argument("weights", help=".weights.h5, .keras, .safetensors or a torch state_dict")
    sub.add_argument(
        "-o", "--output", required=True, help="bundle to write: a folder, or a file ending in .safetensors"
    )
    sub.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    sub.add_argument("--labels", help="names between commas, or a JSON file with labels as in model.json")
    sub.add_argument("--name", help="the model's name (default: the bundle's)")
    sub.add_argument("--license", default="unknown", help="licence of the weights")
    sub.add_argument("--training-data", default="unknown", help="what the weights were trained on")
    sub.add_argument("--half", action="store_true", help="store half precision, half the size")
    network = sub.add_argument_group("the network, where the file can't tell")
    network.add_argument("--encoder", help="a name from `deeplabseg encoders`")
    network.add_argument("--depth", type=int, choices=(3, 4, 5))
    network.add_argument("--activation", help="the classifier's, for example softmax (default: by the labels)")
    network.add_argument("--decoder-activation")
    network.add_argument("--decoder-normalization")
    network.add_argument("--dilation-rates", type=_typed(parse_sizes), help="for example 6x12x18")
    network.add_argument("--head-upsample", type=float, help="a fixed factor instead of the input's size")
    intake = sub.add_argument_group("the input, which no weights file tells")
    intake.add_argument("--normalization", help="none, zscore, percentile:0.5:99.5 or window:-160:240")
    intake.add_argument("--channels", type=_typed(parse_names), help="their names between commas")
    intake.add_argument(
        "--orientation", help="three letters, where k, j, i grow to, for example SAR (default: the scan's)"
    )
    intake.add_argument(
        "--spacing", type=_typed(parse_spacing), help="mm along k, j, i, for example 1.5x1x1; - keeps the scan's"
    )
    intake.add_argument(
        "--tile", type=_typed(parse_sizes), help="window, for example 96x96x96 (default: the whole image)"
    )

    sub = command(commands.train)
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
    loop = sub.add_argument_group("the training")
    loop.add_argument("--steps", type=int, help="updates of the weights")
    loop.add_argument("--batch", type=int, help="windows per step, over all processes")
    loop.add_argument("--optimizer", choices=("adamw", "sgd"))
    loop.add_argument("--learning-rate", type=float, help="its highest value")
    loop.add_argument("--keep", type=float, help="share of the weights begun with that stays in the result, 0 to 1")
    loop.add_argument("--validate-every", type=int, help="steps between validations (default: a twelfth of all)")
    loop.add_argument("--patience", type=int, help="validations without a gain after which training stops")
    loop.add_argument("--workers", type=int, help="processes that load and change images")
    loop.add_argument("--seed", type=int)
    loop.add_argument("--folds", type=int, default=5, help="parts of the cases, one of which validates; 0: none")
    loop.add_argument("--fold", type=int, default=0, help="the part that validates, from 0")
    loop.add_argument("--patient", help="regular expression that finds the patient in a case's name")
    loop.add_argument("--allow-empty", action="store_true", help="take labels without a voxel, such as healthy scans'")
    chosen = sub.add_argument_group("instead of what the data suggest")
    chosen.add_argument("--encoder", help="a name from `deeplabseg encoders`")
    chosen.add_argument("--depth", type=int, choices=(3, 4, 5))
    chosen.add_argument("--dims", type=int, choices=(2, 3), help="slice by slice, or in 3D")
    chosen.add_argument("--spacing", type=_typed(parse_spacing), help="mm along k, j, i, for example 1.5x1x1")
    chosen.add_argument("--tile", type=_typed(parse_sizes), help="window, for example 96x96x96")
    chosen.add_argument("--normalization", help="none, zscore, percentile:0.5:99.5 or window:-160:240")
    chosen.add_argument("--orientation", help="three letters, where k, j, i grow to, for example SAR")
    chosen.add_argument(
        "--mirror-axes", type=_typed(_parse_axes), help="axes that mirror images turn round, such as k,j; '' for none"
    )
    chosen.add_argument(
        "--labels",
        type=_typed(parse_names),
        help="names of the labels between commas, in the model's order: those that segments have give their order, "
        "others rename the labels in the order of their values",
    )
    chosen.add_argument("--channels", type=_typed(parse_names), help="names of the input channels between commas")
    card = sub.add_argument_group("what the model says of itself")
    card.add_argument("--name", help="(default: the bundle's)")
    card.add_argument("--license", default="unknown", help="licence of the weights")
    card.add_argument("--training-data", help="(default: the number of cases and their folder's name)")

    sub = command(commands.export)
    sub.add_argument("model", help="a name from `deeplabseg models`, a bundle's path, or a weights file")
    sub.add_argument("-o", "--output", required=True, help="file to write: .onnx, .pt or .ts (TorchScript)")
    sub.add_argument(
        "--size", type=_typed(parse_sizes), help="size of the one window that it takes (default: the model's tile)"
    )
    sub.add_argument("--overwrite", action="store_true", help="replace an existing output")
    return parser


if __name__ == "__main__":
    sys.exit(main())
