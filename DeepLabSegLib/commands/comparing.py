"""`deeplabseg evaluate`."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from DeepLabSegLib.commands.arguments import Commands
from DeepLabSegLib.commands.telling import Report, progress_bar, table, telling
from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.outputs import make_folder
from DeepLabSegLib.texts import some

if TYPE_CHECKING:
    from DeepLabSegLib.comparison import Comparison

__all__ = ["COMMANDS"]


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
        make_folder(folder)
        comparing.check_folder(folder, options.overwrite)
    with progress_bar("evaluate", options, total=len(pairing.pairs)) as bar:
        comparison = comparing.compare_files(pairing, groups, lambda _: bar.update())
    data, notes = comparison.report(), _comparison_notes(comparison, bool(options.images))
    if folder is not None:
        older = set(folder.glob("worst-*.png"))
        with telling() as written, progress_bar("pictures", options) as bar:
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
    return table(rows)


def _comparison_notes(comparison: Comparison, images: bool) -> list[str]:
    """What a reader of the table must know: what the interval is, what is left out, what failed."""
    from DeepLabSegLib.evaluate import INTERVAL_METHOD

    found = [measures["dice"] for measures in comparison.summary.values()]
    notes = [INTERVAL_METHOD] if any(dice.interval for dice in found) else []
    absent = [f"{label} in {m['dice'].left_out}" for label, m in comparison.summary.items() if m["dice"].left_out]
    if absent:
        notes.append(f"on neither side, and left out of {len(comparison.cases)} cases: {some(absent)}")
    found_on_both = {label: (m["hausdorff95_mm"].n, m["dice"].n) for label, m in comparison.summary.items()}
    if fewer := [f"{label} in {both} of {n}" for label, (both, n) in found_on_both.items() if both < n]:
        notes.append(f"HD95 is of the cases that have the label on both sides: {some(fewer)}")
    for side, labels in comparison.not_found.items():
        if labels:
            named = some([str(label) for label in labels])
            notes.append(f"no {side} has the label {named}, which --groups names; correct it there if it is misspelled")
    if comparison.disjoint:
        notes.append(
            f"no label is on both sides, by name or value, in {len(comparison.disjoint)} of {len(comparison.cases)}, "
            f"such as {comparison.disjoint[0]}; say with --groups which labels belong together, or give both sides "
            "the same names"
        )
    pairing = comparison.pairing
    if pairing.against_names:
        first = pairing.against_names[0]
        notes.append(
            f"paired in the order given, which {len(pairing.against_names)} names gainsay, such as "
            f"{first.prediction.name} with {first.reference.name}; give folders to pair them by name"
        )
    notes += [f"{path} has no reference" for path in pairing.without_reference]
    notes += [f"{path} has no prediction" for path in pairing.without_prediction]
    notes += [f"{pair.name} has no image" for pair in pairing.pairs if images and pair.image is None]
    notes += [f"{case} failed: {message}" for case, message in comparison.failed.items()]
    return [*notes, f"{len(comparison.cases)} compared, {len(comparison.failed)} failed"]


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _evaluate_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("prediction", nargs="+", help="segmentations, or a folder of them")
    sub.add_argument(
        "--reference",
        nargs="+",
        required=True,
        help="one reference per segmentation, in the same order; or a folder, then files are paired by name",
    )
    sub.add_argument(
        "--groups",
        metavar="FILE",
        help="JSON that says which labels, by value or name, belong together on either side, for example "
        '{"Kidneys": {"prediction": [4, 5], "reference": ["Left kidney", "Right kidney"]}}',
    )
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


COMMANDS: Commands = {
    evaluate: _evaluate_arguments,
}
