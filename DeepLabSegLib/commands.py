"""What each command of `deeplabseg` does; it returns its report as data and as text."""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import DeepLabSegLib
from DeepLabSegLib.errors import BundleError, DeepLabSegError, InvalidInput, OutputError
from DeepLabSegLib.image import SCORE_MAPS, Image, Labels, Segment
from DeepLabSegLib.outputs import check_apart, check_output, replacing
from DeepLabSegLib.schema import from_json, to_json
from DeepLabSegLib.startup import load_torch
from DeepLabSegLib.texts import parse_names

if TYPE_CHECKING:
    from DeepLabSegLib.batch import Case
    from DeepLabSegLib.comparison import Comparison

TRAINING_LINES = 50  # of a training without a terminal

# What a batch that is interrupted leaves.
KEPT = "finished cases are kept, and the same command, without --overwrite, goes on"
RENEWED = "finished cases are new and the others as they were; the same command begins again with all"

Report = tuple[Any, str]
"""Data for programs, and the same as text."""


def segment(options: argparse.Namespace) -> Report:
    """Segment one scan: an image file or DICOM folder, or one per channel."""
    from DeepLabSegLib import files

    output = check_output(options.output, files.LABEL_SUFFIXES, options.overwrite)
    maps = [
        check_output(path, files.ONE_FILE_SUFFIXES, options.overwrite)
        for name in SCORE_MAPS
        if (path := getattr(options, name)) is not None
    ]
    check_apart([output, *maps], map(Path, options.input))
    with _telling() as written:
        report, _, labels = _segment_file(options.input, output, options)
        written.append(str(output))
        for name in SCORE_MAPS:
            if (array := getattr(labels, name)) is not None:
                image = Image(array.astype("float32", copy=False), labels.geometry)
                files.write_image(image, getattr(options, name), overwrite=options.overwrite)
                written.append(getattr(options, name))
    return report, _volume_table(report["volumes_ml"]) + f"\n{output} written in {report['seconds']:.1f} s"


def batch(options: argparse.Namespace) -> Report:
    """Segment every scan of a folder, with a table of all; what is there already is kept.

    Exits with 1 where a scan failed.
    """
    load_torch()
    from DeepLabSegLib import batch as batches
    from DeepLabSegLib.devices import kept_pages

    scans = batches.find_scans(options.folder)
    own = Path(options.output).resolve()
    nested = [folder for folder in batches.find_nested(options.folder) if folder.resolve() != own]
    if nested:
        _note(
            f"scans in {len(nested)} of the subfolders are left out, such as those in {nested[0]}; run `deeplabseg "
            "batch` on each"
        )
    _make_folder(Path(options.output), parents=True)
    segmenter = _load(options)
    report = Path(options.output) / batches.REPORT
    try:
        with _warnings_as_notes(), _ProgressBar(options) as bar, kept_pages():
            bar.show("batch", 0, len(scans))
            cases = batches.segment_files(
                segmenter,
                scans,
                options.output,
                _settings(options),
                suffix=options.suffix,
                overwrite=options.overwrite,
                on_case=bar.of_case,
                report=report,
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(RENEWED if options.overwrite else KEPT) from None
    older = [case.result for case in cases if case.status == "kept" and batches.OLDER in case.message]
    if older:
        _note(
            f"{len(older)} of the results that were there are older than their scans, such as {older[0]}; --overwrite "
            "them if the scans were replaced"
        )
    counts = {status: sum(case.status == status for case in cases) for status in ("done", "kept", "failed")}
    failed = [f"{case.name}: {case.message}" for case in cases if case.status == "failed"]
    text = ", ".join(f"{count} {status}" for status, count in counts.items()) + f"; {report}"
    return {"report": str(report), **counts, "cases": to_json(cases)}, "\n".join([*failed, text])


def demo(options: argparse.Namespace) -> Report:
    """Segment the bundled scan with the bundled model; write the result and a picture of it."""
    load_torch()
    from DeepLabSegLib import catalog, files, overlay

    folder = Path(options.output)
    _make_folder(folder)
    sample = catalog.sample_scan()
    name = sample.name.removesuffix(".nii.gz")
    output = check_output(folder / f"{name}.seg.nrrd", files.LABEL_SUFFIXES, options.overwrite)
    picture = check_output(folder / f"{name}.png", (".png",), options.overwrite)
    with _telling() as written:
        report, image, labels = _segment_file([sample], output, options)
        written.append(str(output))
        with replacing(picture) as temporary:
            overlay.render(image, labels).save(temporary)
    report["picture"] = str(picture)
    table = _volume_table(report["volumes_ml"])
    return report, f"{table}\nsegmented in {report['seconds']:.1f} s\n{output}\n{picture}"


def evaluate(options: argparse.Namespace) -> Report:
    """Compare segmentations with references: a table per label, and with -o tables of all cases and pictures.

    Exits with 1 where a case failed.
    """
    from DeepLabSegLib import comparison as comparing
    from DeepLabSegLib.evaluate import read_groups
    from DeepLabSegLib.pairing import pair_files

    if options.images and options.output is None:
        raise InvalidInput("--images are shown in the pictures; say where to write them with -o FOLDER")
    if options.worst < 0:
        raise InvalidInput(f"--worst is {options.worst}; give a number of cases, 0 for no pictures")
    pairing = pair_files(options.prediction, options.reference, options.images)
    groups = read_groups(options.groups) if options.groups else None
    folder = None if options.output is None else Path(options.output)
    if folder is not None:
        _make_folder(folder)
        comparing.check_folder(folder, options.overwrite)
    with _tqdm(None, "evaluate", options, total=len(pairing.pairs)) as bar:
        comparison = comparing.compare_files(pairing, groups, lambda _: bar.update())
    data, notes = comparison.report(), _comparison_notes(comparison, bool(options.images))
    if folder is not None:
        older = set(folder.glob("worst-*.png"))
        with _telling() as written, _tqdm(None, "pictures", options) as bar:
            comparing.write_tables(comparison, folder)
            written.append(f"the tables in {folder}, and the pictures that were drawn")
            pictures, undrawn = comparing.draw_worst(comparison, folder, options.worst, groups, lambda _: bar.update())
        data |= {"output": str(folder), "pictures": [str(path) for path in pictures], "undrawn": undrawn}
        data["without_image"] = [pair.name for pair in pairing.pairs if options.images and pair.image is None]
        notes += [f"{case}: {message}" for case, message in undrawn.items()]
        if left := sorted(path.name for path in older - set(pictures)):
            notes.append(f"of an earlier comparison and left as they are: {', '.join(left)}")
        notes.append(f"{folder}: {', '.join(comparing.TABLES)}, {len(pictures)} pictures")
    return data, "\n".join([_comparison_table(comparison), *notes])


def models(options: argparse.Namespace) -> Report:
    """List the models that are here."""
    from DeepLabSegLib import bundle, catalog

    data: list[Any] = []
    rows = []
    for name, path in catalog.installed_models().items():
        try:
            b = bundle.read_bundle(path)
            data.append(to_json(b))
            rows.append((name, f"{b.network.dims}D {b.network.encoder_name}", b.description))
        except BundleError as error:
            data.append({"name": name, "error": str(error)})
            rows.append((name, "unreadable", str(error)))
    return data, _table(rows)


def encoders(options: argparse.Namespace) -> Report:
    """List the encoders by family."""
    from DeepLabSegLib.models.encoders import FAMILIES

    catalogue = {family: list(rows) for family, (_, rows) in FAMILIES.items()}
    return catalogue, _table([(family, ", ".join(names)) for family, names in catalogue.items()])


def info(options: argparse.Namespace) -> Report:
    """Show all that a model or weights file says of itself, after checking its tensors; and how it runs on a device."""
    from DeepLabSegLib import bundle, catalog

    path = catalog.find_model(options.model)
    if not catalog.is_bundle(path):
        return _weights_info(path)
    content = bundle.read_bundle(path)
    parameters = sum(p.numel() for p in bundle.read_network(path, content).parameters())
    rows = [
        ("name", content.name),
        ("description", content.description),
        ("network", f"{_network(content.network)}, {parameters / 1e6:.2f} million parameters"),
        ("input", f"{', '.join(content.input.channels)}; orientation {content.input.orientation or 'as acquired'}; "
                  f"spacing {' x '.join('as acquired' if s is None else f'{s:g} mm' for s in content.input.spacing)}"),
        ("labels", ", ".join(f"{label.value} {label.name}" for label in content.labels)),
        ("license", content.license),
        ("training data", content.training_data),
        *([("limits", content.limits)] if content.limits else []),
        *((f"figure: {name}", f"{value:g}") for name, value in content.figures.items()),
        *([("reproduce", content.reproduce)] if content.reproduce else []),
        ("sha256", content.sha256),
    ]  # fmt: skip
    runs = {}
    if options.device is not None:
        runs = DeepLabSegLib.load_model(path, options.device).describe()
        rows += [(f"runs: {name}", text) for name, text in runs.items()]
    return to_json(content) | {"parameters": parameters, **({"runs": runs} if runs else {})}, _table(rows)


def convert(options: argparse.Namespace) -> Report:
    """Make a model bundle from a weights file: medicai's, ours, or a torch state_dict of ours."""
    from DeepLabSegLib import bundle, weights

    target = Path(options.output)
    if target.exists() and not options.overwrite:
        raise OutputError(f"{target} exists; give another name, or --overwrite")
    given = {
        "encoder_name": options.encoder,
        "encoder_depth": options.depth,
        "classifier_activation": options.activation,
        "decoder_activation": options.decoder_activation,
        "decoder_normalization": options.decoder_normalization,
        "decoder_dilation_rates": options.dilation_rates,
        "head_upsample": options.head_upsample,
    }
    network = {name: value for name, value in given.items() if value is not None}
    model_input = weights.parse_input(
        options.weights, options.normalization, options.channels, options.orientation, options.spacing, options.tile
    )
    content, model, assumed = weights.convert(
        options.weights,
        labels=_labels(options.labels),
        network=network,
        model_input=model_input,
        name=options.name or target.name.removesuffix(".safetensors"),
        license=options.license,
        training_data=options.training_data,
    )
    content = bundle.save_bundle(target, content, model, half=options.half, overwrite=options.overwrite)
    data = {"output": str(target), "network": to_json(content.network), "assumed": list(assumed)}
    lines = [f"{target}: {_network(content.network)}", *(f"assumed, for want of knowledge: {text}" for text in assumed)]
    return data, "\n".join(lines)


def export(options: argparse.Namespace) -> Report:
    """Write a model's network as ONNX (.onnx) or TorchScript (.pt), and check what was written by running it."""
    from DeepLabSegLib import export as exporting

    output = check_output(options.output, exporting.EXPORT_SUFFIXES, options.overwrite)
    segmenter = DeepLabSegLib.load_model(options.model, "cpu")
    size = options.size or segmenter.bundle.input.tile
    if size is None:
        raise InvalidInput(
            f"the model {segmenter.bundle.name} has no tile of its own; give --size, for example 256x256"
        )
    with replacing(output) as temporary:
        difference = exporting.export(segmenter.network, temporary, size)
    text = (
        f"{output} takes (1, {segmenter.bundle.network.in_channels}, {', '.join(map(str, size))}); largest difference"
    )
    return {"output": str(output), "size": list(size), "difference": difference}, f"{text} {difference:.1e}"


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
    with _ProgressBar(options) as bar:
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
    lines = [_table([("held-out cases", "Dice"), *scores])] if scores else []
    lines += [f"began with {trained.begun}"] if trained.begun else []
    lines.append(f"{options.output}: weights of step {trained.step}")
    data = {"output": options.output, "step": trained.step, "scores": trained.scores, "begun": trained.begun}
    return data, "\n".join(lines)


# --- pieces ----------------------------------------------------------------------------------------------------------


def _weights_info(path: Path) -> Report:
    from DeepLabSegLib import weights

    found = weights.detect(path)
    spec = None if found.spec is None else to_json(found.spec)
    return to_json(found) | {"sure": found.sure, "spec": spec}, str(found)


def _network(spec: Any) -> str:
    return f"DeepLabV3+ {spec.dims}D, {spec.encoder_name}, depth {spec.encoder_depth}, {spec.num_classes} classes"


def _labels(text: str | None) -> list[Any] | None:
    """Names between commas, or a JSON file with segments as in `model.json`."""
    if text is None:
        return None
    if not text.endswith(".json"):
        return parse_names(text)
    try:
        content = json.loads(Path(text).read_text(encoding="utf-8"))
        if not isinstance(content, list):
            raise InvalidInput("a list of labels is needed")
        return [
            label if isinstance(label, str) else from_json(Segment, label, f"[{n}]") for n, label in enumerate(content)
        ]
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{text} can't be read as labels: {error}") from None


def _segment_file(
    sources: Sequence[str | Path], output: Path, options: argparse.Namespace
) -> tuple[dict[str, Any], Image, Labels]:
    load_torch()
    from DeepLabSegLib import files
    from DeepLabSegLib.devices import kept_pages
    from DeepLabSegLib.preprocess import stack_channels

    with _warnings_as_notes():
        image = stack_channels([DeepLabSegLib.read_image(source) for source in sources])
    files.check_slices(output, image.geometry)
    segmenter = _load(options)
    settings = _settings(options)
    started = time.perf_counter()
    with _ProgressBar(options) as bar, kept_pages():
        labels = segmenter.segment(image, settings, bar.of_run)
    seconds = time.perf_counter() - started
    DeepLabSegLib.write_labels(labels, output, overwrite=options.overwrite)
    report = {
        "inputs": [str(source) for source in sources],
        "output": str(output),
        "model": segmenter.bundle.name,
        "device": str(segmenter.device),
        "precision": segmenter.precision,
        "seconds": round(seconds, 3),
        "volumes_ml": {name: round(ml, 3) for name, ml in labels.volumes_ml().items()},
    }
    return report, image, labels


def _load(options: argparse.Namespace) -> DeepLabSegLib.Segmenter:
    with _warnings_as_notes():
        return DeepLabSegLib.load_model(options.model, options.device, options.precision, compiled=options.compile)


@contextmanager
def _warnings_as_notes() -> Iterator[None]:
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", UserWarning)
        yield
    for note in notes:
        _note(str(note.message))


def _note(text: str) -> None:
    print(f"deeplabseg: note: {text}", file=sys.stderr)  # noqa: T201 its purpose


def _settings(options: argparse.Namespace) -> DeepLabSegLib.SegmentOptions:
    return DeepLabSegLib.SegmentOptions(
        **{
            name: value
            for name in ("tile", "overlap", "blending", "slice_axis", "threshold", "mirror")
            if (value := getattr(options, name, None)) is not None
        },
        uncertainty=getattr(options, "uncertainty", None) is not None,
        probabilities=getattr(options, "probabilities", None) is not None,
    )


@contextmanager
def _telling() -> Iterator[list[str]]:
    """What ends the work within, be it Ctrl-C, also says what the list that is given holds: what was written."""
    written: list[str] = []
    try:
        yield written
    except (KeyboardInterrupt, DeepLabSegError) as error:
        if not written:
            raise
        until_then = f"written until then: {', '.join(written)}"
        raise type(error)("; ".join(filter(None, (str(error), until_then)))) from None


class _ProgressBar:
    """A bar per stage on a terminal; elsewhere nothing but a line per case and, of a training, now and then."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.stage = ""
        self.bar: Any = None
        self.loss = 0.0
        self.cases = 0

    def __enter__(self) -> _ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def show(self, stage: str, done: int, total: int, note: str | None = None) -> None:
        if stage != self.stage:
            self.__exit__()
            self.stage = stage
            self.bar = _tqdm(None, stage, self.options, total=total, initial=max(0, done - 1), mininterval=1)
        if note is not None:
            self.bar.write(f"deeplabseg: note: {note}", file=sys.stderr)
        self.bar.update(done - self.bar.n)

    def of_run(self, progress: DeepLabSegLib.Progress) -> None:
        self.show(progress.stage, progress.done, progress.total, progress.note)

    def of_case(self, case: Case) -> None:
        self.cases += 1
        self.show(self.stage, self.cases, self.bar.total)
        if self.bar.disable:
            said = case.message or f"{case.seconds:.1f} s"
            text = f"deeplabseg: {self.cases} of {self.bar.total}, {case.name} {case.status}: {said}"
            with suppress(OSError):  # a log that nobody keeps any longer stops no batch
                print(text, file=sys.stderr if self.options.json else sys.stdout, flush=True)

    def of_training(self, stage: str, done: int, total: int, loss: float | None) -> None:
        self.show(stage, done, total)
        if loss is None:
            return
        self.loss = 0.95 * self.loss + 0.05 * loss if self.loss else loss
        self.bar.set_postfix(loss=f"{self.loss:.3f}", refresh=False)
        if self.bar.disable and not self.options.json and done % max(1, total // TRAINING_LINES) == 0:
            print(f"deeplabseg: step {done} of {total}, loss {self.loss:.3f}", file=sys.stderr, flush=True)  # noqa: T201


def _reproduce(options: argparse.Namespace) -> str:
    """The command with the data's and the model's own names in place of where they lie."""
    names = {options.data: "DATA"} | {path: Path(path).name for path in (options.output, options.weights) if path}
    words = [word for whole in options.words for word in (whole.split("=", 1) if whole.startswith("--") else [whole])]
    return shlex.join(["deeplabseg", *(names.get(word, word) for word in words)])


def _tqdm(items: Any, description: str, options: argparse.Namespace, **more: Any) -> Any:
    from tqdm import tqdm

    # None: a bar only where standard error is a terminal.
    return tqdm(items, description, leave=False, disable=True if options.json else None, **more)


def _make_folder(folder: Path, parents: bool = False) -> None:
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; give a folder")
    try:
        folder.mkdir(parents=parents, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder {folder} can't be made ({error.strerror}); make its parent first") from None


def _volume_table(volumes: dict[str, float]) -> str:
    return _table([("structure", "ml"), *((name, f"{ml:.{1 if ml >= 1 else 3}f}") for name, ml in volumes.items())])


def _comparison_table(comparison: Comparison) -> str:
    rows: list[tuple[str, ...]] = [
        ("label", "cases", "Dice", "95% interval", "median", "lowest", "worst case", "HD95 mm", "volume %")
    ]
    for label, measures in comparison.summary.items():
        dice = measures["dice"]
        interval = f"n={dice.n}" if dice.interval is None else "{:.3f} to {:.3f}".format(*dice.interval)
        numbers = [_number(value) for value in (dice.mean, dice.median, dice.minimum)]
        others = [_number(measures[name].mean) for name in ("hausdorff95_mm", "volume_difference_percent")]
        rows.append((label, str(dice.n), numbers[0], interval, *numbers[1:], dice.worst or "-", *others))
    return _table(rows)


def _comparison_notes(comparison: Comparison, images: bool) -> list[str]:
    """What a reader of the table must know: what the interval is, what is left out, what failed."""
    from DeepLabSegLib.evaluate import INTERVAL_METHOD

    found = [measures["dice"] for measures in comparison.summary.values()]
    notes = [INTERVAL_METHOD] if any(dice.interval for dice in found) else []
    absent = [f"{label} in {m['dice'].left_out}" for label, m in comparison.summary.items() if m["dice"].left_out]
    if absent:
        notes.append(f"on neither side, and left out of {len(comparison.cases)} cases: {', '.join(absent)}")
    if comparison.disjoint:
        notes.append(
            f"no label is on both sides, by name or value, in {len(comparison.disjoint)} of {len(comparison.cases)}, "
            f"such as {comparison.disjoint[0]}; say with --groups which values belong together, or give both sides "
            "the same names"
        )
    pairing = comparison.pairing
    notes += [f"{path} has no reference" for path in pairing.without_reference]
    notes += [f"{path} has no prediction" for path in pairing.without_prediction]
    notes += [f"{pair.name} has no image" for pair in pairing.pairs if images and pair.image is None]
    notes += [f"{case} failed: {message}" for case, message in comparison.failed.items()]
    return [*notes, f"{len(comparison.cases)} compared, {len(comparison.failed)} failed"]


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))] if rows else []
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
