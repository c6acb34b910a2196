"""`deeplabseg segment`, `batch` and `demo`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import DeepLabSegLib
from DeepLabSegLib.commands.arguments import Commands, engine_options, run_options
from DeepLabSegLib.commands.telling import ProgressBar, Report, note, table, telling
from DeepLabSegLib.image import SCORE_MAPS, Image, Labels
from DeepLabSegLib.outputs import check_apart, check_output, make_folder, replacing
from DeepLabSegLib.schema import to_json
from DeepLabSegLib.startup import load_torch

__all__ = ["COMMANDS"]

# What a batch that is interrupted leaves.
KEPT = "finished cases are kept, and the same command, without --overwrite, goes on"
RENEWED = "finished cases are new and the others as they were; the same command begins again with all"


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
    with telling() as written:
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
        note(
            f"scans in {len(nested)} of the subfolders are left out, such as those in {nested[0]}; run `deeplabseg "
            "batch` on each"
        )
    segmenter, settings = _load(options), _settings(options)
    report = Path(options.output) / batches.REPORT
    try:
        with ProgressBar(options) as bar, kept_pages():
            bar.show("batch", 0, len(scans))
            cases = batches.segment_files(
                segmenter,
                scans,
                options.output,
                settings,
                suffix=options.suffix,
                overwrite=options.overwrite,
                on_case=bar.of_case,
                report=report,
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(RENEWED if options.overwrite else KEPT) from None
    older = [case.result for case in cases if case.older]
    if older:
        note(
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
    make_folder(folder)
    sample = catalog.sample_scan()
    name = sample.name.removesuffix(".nii.gz")
    output = check_output(folder / f"{name}.seg.nrrd", files.LABEL_SUFFIXES, options.overwrite)
    picture = check_output(folder / f"{name}.png", (".png",), options.overwrite)
    with telling() as written:
        report, image, labels = _segment_file([sample], output, options)
        written.append(str(output))
        with replacing(picture) as temporary:
            overlay.render(image, labels).save(temporary)
    report["picture"] = str(picture)
    volumes = _volume_table(report["volumes_ml"])
    return report, f"{volumes}\nsegmented in {report['seconds']:.1f} s\n{output}\n{picture}"


def _segment_file(
    sources: Sequence[str | Path], output: Path, options: argparse.Namespace
) -> tuple[dict[str, Any], Image, Labels]:
    load_torch()
    from DeepLabSegLib import files
    from DeepLabSegLib.devices import kept_pages
    from DeepLabSegLib.preprocess import stack_channels

    image = stack_channels([DeepLabSegLib.read_image(source) for source in sources])
    files.check_slices(output, image.geometry)
    segmenter = _load(options)
    files.check_overlap(output, segmenter.bundle.overlapping)
    settings = _settings(options)
    started = time.perf_counter()
    with ProgressBar(options) as bar, kept_pages():
        labels = segmenter.segment(image, settings, bar.of_run)
    seconds = time.perf_counter() - started
    report = {
        "inputs": [str(source) for source in sources],
        "output": str(output),
        "model": segmenter.bundle.name,
        "device": str(segmenter.device),
        "precision": segmenter.precision,
        "seconds": round(seconds, 3),
        "volumes_ml": {name: round(ml, 3) for name, ml in labels.volumes_ml().items()},
    }
    DeepLabSegLib.write_labels(labels, output, overwrite=options.overwrite)
    return report, image, labels


def _load(options: argparse.Namespace) -> DeepLabSegLib.Segmenter:
    return DeepLabSegLib.load_model(options.model, options.device, options.precision, compiled=options.compile)


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


def _volume_table(volumes: dict[str, float]) -> str:
    return table([("structure", "ml"), *((name, f"{ml:.{1 if ml >= 1 else 3}f}") for name, ml in volumes.items())])


def _segment_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "input",
        nargs="+",
        help="an image file, or a folder with one DICOM series; several are the channels of one scan",
    )
    sub.add_argument(
        "-o",
        "--output",
        required=True,
        help="where to write; the ending decides: .seg.nrrd, or a plain label map (.nii.gz, .nrrd, ...)",
    )
    run_options(sub)
    engine_options(sub)
    sub.add_argument("--uncertainty", metavar="FILE", help="also write how uncertain each voxel is, 0 to 1")
    sub.add_argument("--probabilities", metavar="FILE", help="also write each class's probability, as components")


def _batch_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("folder", help="folder of scans or pictures, or of folders with a DICOM series each")
    sub.add_argument("-o", "--output", required=True, help="folder to write to, with report.csv")
    sub.add_argument(
        "--suffix", default=".seg.nrrd", help="ending of the results, which decides their format (default: %(default)s)"
    )
    run_options(sub)
    engine_options(sub)


def _demo_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("-o", "--output", default="demo", help="folder to write to (default: %(default)s)")
    run_options(sub)


COMMANDS: Commands = {
    segment: _segment_arguments,
    batch: _batch_arguments,
    demo: _demo_arguments,
}
