"""The command line: `deeplabseg segment | demo | evaluate | models | encoders | info`."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import DeepLabSegLib
from DeepLabSegLib.errors import DeepLabSegError, InvalidInput, OutputError
from DeepLabSegLib.schema import to_json

DEFAULT_MODEL = "head-mri-2d"
SAMPLE = "head-t1-colin27.nii.gz"
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 for an error that is told, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except DeepLabSegError as error:
        return _fail(options, str(error), 1)
    except KeyboardInterrupt:
        return _fail(options, "interrupted; nothing was written", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output went away: nothing to tell it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


# --- commands --------------------------------------------------------------------------------------------------------


def segment(options: argparse.Namespace) -> None:
    """Segment one image file or DICOM folder."""
    from DeepLabSegLib import files

    output = files.check_output(options.output, files.LABEL_SUFFIXES, options.overwrite)
    report = _segment_file(Path(options.input), output, options)
    _print(options, report, _volume_table(report["volumes_ml"]) + f"\n{output} written in {report['seconds']:.1f} s")


def demo(options: argparse.Namespace) -> None:
    """Segment the bundled scan with the bundled model; write the result and a picture of it."""
    from DeepLabSegLib import bundle, files, overlay

    folder = Path(options.output)
    _make_folder(folder)
    output = files.check_output(folder / "head-t1-colin27.seg.nrrd", files.LABEL_SUFFIXES, options.overwrite)
    picture = files.check_output(folder / "head-t1-colin27.png", (".png",), options.overwrite)
    sample = bundle.resource("SampleData") / SAMPLE
    report = _segment_file(sample, output, options)
    with files.replacing(picture) as temporary:
        overlay.render(files.read_image(sample), files.read_labels(output)).save(temporary)
    report["picture"] = str(picture)
    _print(
        options,
        report,
        f"{_volume_table(report['volumes_ml'])}\nsegmented in {report['seconds']:.1f} s\n{output}\n{picture}",
    )


def evaluate(options: argparse.Namespace) -> None:
    """Compare segmentations with references."""
    from DeepLabSegLib import evaluate as measures
    from DeepLabSegLib import files

    if len(options.prediction) != len(options.reference):
        raise InvalidInput(
            f"{len(options.prediction)} predictions and {len(options.reference)} references are given; "
            "give one reference per prediction, in the same order"
        )
    groups = measures.read_groups(options.groups) if options.groups else None
    cases: dict[str, dict[str, measures.Scores]] = {}
    pairs = list(zip(options.prediction, options.reference, strict=True))
    for prediction_path, reference_path in _tqdm(pairs, "evaluate", options):
        prediction, reference = files.read_labels(prediction_path), files.read_labels(reference_path)
        wanted = groups or measures.groups_by_value(prediction, reference)
        try:
            cases[str(prediction_path)] = measures.compare(prediction, reference, wanted)
        except InvalidInput as error:
            raise InvalidInput(f"{prediction_path} and {reference_path}: {error}") from None
    names = list(dict.fromkeys(name for scores in cases.values() for name in scores))
    rows = {name: [scores[name] for scores in cases.values() if name in scores] for name in names}
    summary = {
        name: {
            "cases": len(scores),
            "dice": _mean([s.dice for s in scores]),
            "dice_min": min((s.dice for s in scores if not math.isnan(s.dice)), default=None),
            "hausdorff95_mm": _mean([s.hausdorff95 for s in scores]),
            "volume_difference_percent": _mean([s.volume_difference for s in scores]),
        }
        for name, scores in rows.items()
    }
    table: list[tuple[str, ...]] = [("label", "cases", "Dice", "lowest", "HD95 mm", "volume %")]
    for name, row in summary.items():
        table.append((name, *(_number(row[key]) for key in row)))
    per_case = {
        case: {
            name: {"dice": _finite(s.dice), "hausdorff95_mm": _finite(s.hausdorff95), "volume_ml": s.volume,
                   "reference_volume_ml": s.reference_volume}
            for name, s in scores.items()
        }
        for case, scores in cases.items()
    }  # fmt: skip
    _print(options, {"summary": summary, "cases": per_case}, _table(table))


def models(options: argparse.Namespace) -> None:
    """List the models that are here."""
    from DeepLabSegLib import bundle

    found = {name: bundle.read_bundle(path) for name, path in bundle.installed_models().items()}
    rows = [(name, f"{b.network.dims}D {b.network.encoder_name}", b.description) for name, b in found.items()]
    _print(options, [to_json(b) for b in found.values()], _table(rows))


def encoders(options: argparse.Namespace) -> None:
    """List the encoders by family."""
    from DeepLabSegLib.models.encoders import FAMILIES

    catalogue = {family: list(rows) for family, (_, rows) in FAMILIES.items()}
    _print(options, catalogue, _table([(family, ", ".join(names)) for family, names in catalogue.items()]))


def info(options: argparse.Namespace) -> None:
    """Show everything a model says of itself, after checking its tensors."""
    from DeepLabSegLib import bundle

    path = bundle.find_model(options.model)
    content = bundle.read_bundle(path)
    network = bundle.read_network(path, content)
    parameters = sum(p.numel() for p in network.parameters())
    rows = [
        ("name", content.name),
        ("description", content.description),
        ("network", f"DeepLabV3+ {content.network.dims}D, {content.network.encoder_name}, "
                    f"depth {content.network.encoder_depth}, {parameters / 1e6:.2f} million parameters"),
        ("input", f"{', '.join(content.input.channels)}; orientation {content.input.orientation or 'as acquired'}; "
                  f"spacing {' x '.join('as acquired' if s is None else f'{s:g} mm' for s in content.input.spacing)}"),
        ("labels", ", ".join(f"{label.value} {label.name}" for label in content.labels)),
        ("license", content.license),
        ("training data", content.training_data),
        *((f"figure: {name}", f"{value:g}") for name, value in content.figures.items()),
        *([("reproduce", content.reproduce)] if content.reproduce else []),
        ("sha256", content.sha256),
    ]  # fmt: skip
    _print(options, to_json(content) | {"parameters": parameters}, _table(rows))


# --- pieces ----------------------------------------------------------------------------------------------------------


def _segment_file(source: Path, output: Path, options: argparse.Namespace) -> dict[str, Any]:
    image = DeepLabSegLib.read_image(source)
    segmenter = DeepLabSegLib.load_model(options.model, options.device)
    settings = DeepLabSegLib.SegmentOptions(
        **{
            name: value
            for name in ("tile", "overlap", "blending", "slice_axis", "threshold")
            if (value := getattr(options, name, None)) is not None
        }
    )
    started = time.perf_counter()
    with _progress_bar(options) as bar:
        labels = segmenter.segment(image, settings, bar)
    seconds = time.perf_counter() - started
    DeepLabSegLib.write_labels(labels, output, overwrite=options.overwrite)
    return {
        "input": str(source),
        "output": str(output),
        "model": segmenter.bundle.name,
        "device": str(segmenter.device),
        "seconds": round(seconds, 3),
        "volumes_ml": {name: round(ml, 3) for name, ml in labels.volumes_ml().items()},
    }


class _progress_bar:
    """A bar per stage on a terminal, nothing in a pipe; it is called with `Progress`."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.stage = ""
        self.bar: Any = None

    def __enter__(self) -> Callable[[DeepLabSegLib.Progress], None]:
        return self.step

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def step(self, progress: DeepLabSegLib.Progress) -> None:
        if progress.stage != self.stage:
            self.__exit__()
            self.stage = progress.stage
            self.bar = _tqdm(None, progress.stage, self.options, total=progress.total)
        self.bar.update(progress.done - self.bar.n)


def _tqdm(items: Any, description: str, options: argparse.Namespace, **more: Any) -> Any:
    from tqdm import tqdm

    # None: a bar only where standard error is a terminal.
    return tqdm(items, description, leave=False, disable=True if options.json else None, **more)


def _make_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; give a folder")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder {folder} can't be made ({error.strerror}); make its parent first") from None


def _volume_table(volumes: dict[str, float]) -> str:
    return _table([("structure", "ml"), *((name, f"{ml:.1f}") for name, ml in volumes.items())])


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))] if rows else []
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _mean(values: Sequence[float]) -> float | None:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else None


def _finite(value: float) -> float | None:
    return None if math.isnan(value) else value


def _number(value: float | None) -> str:
    return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"


def _print(options: argparse.Namespace, data: Any, text: str) -> None:
    print(json.dumps(data, indent=2, ensure_ascii=False) if options.json else text)  # noqa: T201 its purpose


def _fail(options: argparse.Namespace, message: str, code: int) -> int:
    if options.json:
        print(json.dumps({"error": message}))  # noqa: T201 its purpose
    print(f"deeplabseg: {message}", file=sys.stderr)  # noqa: T201 its purpose
    return code


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no tile; write for example 96x96x96 or 256x256") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("deeplabseg", description="Segment medical images with DeepLabV3+.")
    parser.add_argument("--version", action="version", version=DeepLabSegLib.__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        summary = (run.__doc__ or "").strip()
        sub = commands.add_parser(run.__name__, help=summary, description=summary)
        sub.set_defaults(run=run)
        sub.add_argument("--json", action="store_true", help="print JSON for programs")
        return sub

    def run_options(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--model", default=DEFAULT_MODEL, help="a name from `deeplabseg models`, or a bundle's path")
        sub.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)")
        sub.add_argument("--overwrite", action="store_true", help="replace an existing output")

    sub = command(segment)
    sub.add_argument("input", help="an image file, or a folder with one DICOM series")
    sub.add_argument(
        "-o", "--output", required=True, help="where to write; the ending decides: .seg.nrrd, .nii.gz, ..."
    )
    run_options(sub)
    sub.add_argument("--tile", type=_sizes, help="window, for example 96x96x96 (default: the model's)")
    sub.add_argument("--overlap", type=float, help="share that neighbouring windows have in common, 0 to 0.9")
    sub.add_argument("--blending", choices=("gaussian", "constant"), help="how overlapping windows are weighed")
    sub.add_argument("--slice-axis", choices=("axial", "coronal", "sagittal"), help="slices for a 2D model")
    sub.add_argument("--threshold", type=float, help="score from which a voxel counts, for sigmoid models")

    sub = command(demo)
    sub.add_argument("-o", "--output", default="demo", help="folder to write to (default: %(default)s)")
    run_options(sub)

    sub = command(evaluate)
    sub.add_argument("prediction", nargs="+", help="segmentations")
    sub.add_argument("--reference", nargs="+", required=True, help="one reference per segmentation, in the same order")
    sub.add_argument("--groups", help="JSON that says which values belong together on either side")

    command(models)
    command(encoders)
    sub = command(info)
    sub.add_argument("model", help="a name from `deeplabseg models`, or a bundle's path")
    return parser


if __name__ == "__main__":
    sys.exit(main())
