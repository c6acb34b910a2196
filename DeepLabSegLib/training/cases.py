"""Which image belongs to which label: folders and tables to cases, with everything that has no partner named."""

from __future__ import annotations

import csv
import io
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.files import IMAGE_SUFFIXES, JPEG_SUFFIXES, is_picture, is_segmentation
from DeepLabSegLib.pairing import LABEL_MARK, stem, unique
from DeepLabSegLib.schema import load_json

__all__ = ["DATASET", "Case", "Fault", "find_cases"]

DATASET = "dataset.json"
"""nnU-Net's and the Medical Segmentation Decathlon's file that names channels and classes."""

IMAGE_FOLDERS = ("imagestr", "images", "image", "imgs", "scans", "volumes")
LABEL_FOLDERS = ("labelstr", "labels", "label", "masks", "mask", "segmentations", "segmentation", "annotations")
"""Names of folders, in lower case; the first that is there is taken."""

IMAGE_MARK = re.compile(r"[_\-. ](image|img|scan|volume|T1w|T2w|FLAIR)$", re.IGNORECASE)
"""What names say of a file's part and not of the case; the last three are BIDS'."""

CHANNEL_MARK = re.compile(r"^(.+)_(\d{4})$")
"""nnU-Net's mark of a channel: `case_0000.nii.gz`, `case_0001.nii.gz`."""

IMAGE_COLUMN = re.compile(r"image[_ ]?\d*$")
LABEL_COLUMNS = ("label", "mask", "segmentation")
OTHER_COLUMNS = ("name", "patient")

TABLES = (".csv", ".tsv")

LAYOUTS = (
    "a folder with imagesTr and labelsTr, a folder with images and labels, a folder in which a label has its image's "
    "name and _seg, _label, _mask or .seg.nrrd behind it, a folder per case that holds its image and its label, or a "
    ".csv or .tsv table with columns image and label; files end in " + ", ".join(IMAGE_SUFFIXES)
)


@dataclass(frozen=True)
class Case:
    """A pair to learn from.

    Attributes
    ----------
    name : unique among the cases.
    images : a file per channel, or one file that holds all of them.
    label : the label map or segmentation.
    patient : who is seen; cases of one patient are never parted between training and validation.
    channels : their names, where the data have some.
    classes : value and name of each, for labels that don't have names themselves.
    """

    name: str
    images: tuple[Path, ...]
    label: Path
    patient: str
    channels: tuple[str, ...] = ()
    classes: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class Fault:
    """What is wrong with the case or file `name`, and what to do about it."""

    name: str
    problem: str


def find_cases(data: str | os.PathLike[str], patient: str | None = None) -> tuple[list[Case], list[Fault]]:
    """The cases in `data`, sorted by name, and what has no partner. No file is opened but a table or `DATASET`.

    Parameters
    ----------
    data : one of `LAYOUTS`: the Medical Segmentation Decathlon's and nnU-Net's folders (with `_0000` for channels),
        a folder each for images and labels with equal names, one folder for both, a folder per case, or a table. What
        a `DATASET` says names channels and classes. In a case's folder the label is known by its name; several images
        are channels where most folders have images of these names. A table has a column `label`, one column `image` or
        several for channels, which it names, and may have `patient` (in every row, or `patient` below finds it) and
        `name`; its relative paths start from the table's folder.
    patient : regular expression that finds the patient in a case's name: its first group, or all that it matches. By
        default every case is a patient. A table's column goes before it.

    Raises
    ------
    InvalidInput : a path that doesn't exist or is laid out in another way; an expression that is none.
    """
    root = Path(data)
    if not root.exists():
        raise InvalidInput(f"{root} does not exist; give {LAYOUTS}")
    try:
        pattern = None if patient is None else re.compile(patient)
    except re.error as error:
        raise InvalidInput(
            f"patient is {patient!r}, no regular expression ({error}); write for example '(.+)-IM-'"
        ) from None
    if root.is_file():
        cases, faults = _from_table(root)
    else:
        images, labels = _folders(root)
        cases, faults = _pairs(images, labels)
        if not cases:
            cases, others = _from_case_folders(root)
            faults += others
        if not cases and not faults:
            raise InvalidInput(f"{root} holds no pairs; give {LAYOUTS}")
        cases, unclear = _named(cases, root / DATASET)
        faults += unclear
    some_named = any(case.patient for case in cases)
    found = [_lossy(case) or _with_patient(case, pattern, some_named) for case in cases]
    faults += [item for item in found if isinstance(item, Fault)]
    apart, shared = _with_own_files(_in_one_spelling([item for item in found if isinstance(item, Case)]))
    return sorted(apart, key=lambda case: case.name), faults + shared


def _with_patient(case: Case, pattern: re.Pattern[str] | None, some_named: bool) -> Case | Fault:
    if case.patient:
        return case
    if pattern is None:
        if some_named:
            return Fault(
                case.name, "its row names no patient, and others do; fill it in, with a name of its own if new"
            )
        return replace(case, patient=case.name)
    match = pattern.search(case.name)
    found = (match[1] if pattern.groups else match[0]) if match else None
    if not found:
        return Fault(case.name, f"the patient expression {pattern.pattern!r} finds nothing in it; correct either")
    return replace(case, patient=found)


def _in_one_spelling(cases: Sequence[Case]) -> list[Case]:
    """The cases, a patient whose names differ in capitals alone being one, by the first of them."""
    spelling: dict[str, str] = {}
    return [replace(case, patient=spelling.setdefault(case.patient.casefold(), case.patient)) for case in cases]


def _with_own_files(cases: Sequence[Case]) -> tuple[list[Case], list[Fault]]:
    """The cases less those with another patient's label or images, which training and validation might share."""
    first: dict[tuple[str, tuple[Path, ...]], Case] = {}
    kept, faults = [], []
    for case in cases:
        parts = {"label": (case.label,), "image": case.images}
        others = {
            what: first.setdefault((what, tuple(map(Path.resolve, files))), case) for what, files in parts.items()
        }
        shared = next((what for what, other in others.items() if other.patient != case.patient), None)
        if shared is None:
            kept.append(case)
        else:
            problem = f"it has the {shared} of {others[shared].name}, {parts[shared][0].name}; remove one of them"
            faults.append(Fault(case.name, f"{problem}, or give both the same patient"))
    return kept, faults


def _lossy(case: Case) -> Fault | None:
    if not case.label.name.lower().endswith(JPEG_SUFFIXES):
        return None
    return Fault(case.name, f"{case.label} is a JPEG, which doesn't keep a label's values; save it anew, as PNG")


# --- folders ---------------------------------------------------------------------------------------------------------


def _folders(root: Path) -> tuple[list[Path], list[Path]]:
    """The files that are images, and those that are labels."""
    folders = {path.name.lower(): path for path in root.iterdir() if path.is_dir()}
    images = next((folders[name] for name in IMAGE_FOLDERS if name in folders), None)
    labels = next((folders[name] for name in LABEL_FOLDERS if name in folders), None)
    if images is not None and labels is not None:
        return _files(images), _files(labels)
    if images is not None or labels is not None:
        there, other = ("images", "labels") if images is not None else ("labels", "images")
        raise InvalidInput(f"{root} has a folder {images or labels} of {there} and none of {other}; give {LAYOUTS}")
    files = _files(root)
    marked = {path for path in files if _is_marked_label(path)}
    return [path for path in files if path not in marked], [path for path in files if path in marked]


def _files(folder: Path) -> list[Path]:
    # A file that starts with a dot is another program's.
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name.lower().endswith(IMAGE_SUFFIXES) and not path.name.startswith(".")
    ]


def _is_marked_label(path: Path) -> bool:
    return is_segmentation(path) or LABEL_MARK.search(f"_{stem(path)}") is not None


def _stem(path: Path) -> str:
    """`stem`, with each accent in its letter: some programs of a Mac write it behind, which looks the same."""
    return unicodedata.normalize("NFC", stem(path))


def _pairs(images: Sequence[Path], labels: Sequence[Path]) -> tuple[list[Case], list[Fault]]:
    by_stem = defaultdict(list)
    for path in images:
        by_stem[_stem(path)].append(path)
    label_of = defaultdict(list)
    for path in labels:
        own = _stem(path)
        # Slicer exports the label map of case-segmentation as case-segmentation-label.
        while own not in by_stem and LABEL_MARK.search(own):
            own = LABEL_MARK.sub("", own)
        label_of[own].append(path)

    marks = {own: CHANNEL_MARK.match(own) for own in by_stem}
    # What lies among them without a mark, such as a picture of them, changes nothing.
    channelled = any(mark and mark[1] in label_of for mark in marks.values()) and not any(
        mark and own in label_of for own, mark in marks.items()
    )
    groups: dict[str, dict[str, list[Path]]] = defaultdict(dict)
    for own, paths in by_stem.items():
        mark = marks[own]
        if channelled and mark is not None:
            groups[mark[1]][mark[2]] = paths
        else:
            groups[own if own in label_of else IMAGE_MARK.sub("", own)][own] = paths
    usual = Counter(tuple(sorted(group)) for group in groups.values()).most_common(1) if channelled else []
    return _joined(groups, label_of, usual[0][0] if usual else None)


def _from_case_folders(root: Path) -> tuple[list[Case], list[Fault]]:
    """A case per folder in `root`; none where no folder holds a label."""
    groups: dict[str, dict[str, list[Path]]] = {}
    label_of: dict[str, list[Path]] = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        files = [] if folder.name.lower() in IMAGE_FOLDERS + LABEL_FOLDERS else _files(folder)
        labels = [path for path in files if _is_marked_label(path)]
        scans = [path for path in files if path not in labels]
        # A picture beside volumes is a view of them, as Slicer saves one with a scene.
        scans = [path for path in scans if not is_picture(path)] or scans
        if labels:
            label_of[folder.name] = labels
        for path in scans:
            part = stem(path).removeprefix(folder.name).strip("-_. ") or stem(path)
            groups.setdefault(folder.name, {}).setdefault(part, []).append(path)
    if not label_of:
        return [], []
    usual, count = Counter(tuple(sorted(groups.get(name, {}))) for name in label_of).most_common(1)[0]
    channels = usual if len(usual) > 1 and count > 1 else None
    cases, faults = _joined(groups, label_of, channels)
    return [replace(case, channels=channels or ()) for case in cases], faults


def _joined(
    groups: Mapping[str, Mapping[str, list[Path]]], label_of: Mapping[str, list[Path]], channels: tuple[str, ...] | None
) -> tuple[list[Case], list[Fault]]:
    """The cases of images, by name and channel, and labels, by name."""
    cases, faults = [], []
    for name in sorted(set(groups) | set(label_of)):
        group, of_name = groups.get(name, {}), label_of.get(name, [])
        problem = _unpaired(group, of_name, channels)
        if problem:
            faults.append(Fault(name, problem))
        else:
            cases.append(Case(name, tuple(group[channel][0] for channel in sorted(group)), of_name[0], ""))
    return cases, faults


def _unpaired(group: Mapping[str, list[Path]], labels: list[Path], channels: tuple[str, ...] | None) -> str | None:
    """Why the images `group`, by channel, and `labels` make no case; None where they do."""
    if not group:
        return f"{_names(labels)} has no image; add one of that name, such as .nrrd or .png, or remove the label"
    paths = [path for channel in group.values() for path in channel]
    if not labels:
        return f"{_names(paths)} has no label; add one of that name, such as .seg.nrrd or .png, or remove the image"
    if len(labels) > 1:
        return f"there are {len(labels)} labels ({_names(labels)}); keep one"
    if any(len(channel) > 1 for channel in group.values()) or (channels is None and len(group) > 1):
        return f"there are {len(paths)} images ({_names(paths)}); keep one"
    if channels is not None and tuple(sorted(group)) != channels:
        return (
            f"it has the channels {', '.join(sorted(group))}, and most cases {', '.join(channels)}; "
            "add the missing files, or remove the case"
        )
    return None


def _names(paths: Iterable[Path]) -> str:
    return ", ".join(path.name for path in paths)


# --- names that a dataset.json has -----------------------------------------------------------------------------------


def _named(cases: Sequence[Case], path: Path) -> tuple[list[Case], list[Fault]]:
    """The cases with the names that the file at `path` has, if it is there, and what of it isn't understood."""
    if not path.is_file():
        return list(cases), []
    try:
        said = _object(load_json(path), "the file")
        labels = _object(said.get("labels", {}), "labels")
        names = _object(said.get("channel_names", said.get("modality", {})), "channel_names")
    except InvalidInput as error:
        problem = f"it can't be read ({error}), so that it names no class; --labels names them as well"
        return list(cases), [Fault(path.name, problem)]
    channels = tuple(unique([str(names[key]) for key in sorted(names, key=lambda key: (len(key), key))]))
    classes, others = _class_names(labels)
    problems = []
    if others:
        problems.append(
            f"its labels {', '.join(others)} have no single value of their own, so that they name no class; a voxel is "
            "trained with one class: name those that the data hold with --labels"
        )
    if "ignore" in classes.values():
        problems.append("its label ignore is trained like a class; give its voxels the value of another class")
    named = [replace(case, channels=case.channels or channels, classes=tuple(classes.items())) for case in cases]
    return named, [Fault(path.name, problem) for problem in problems]


def _object(value: object, what: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise InvalidInput(f"{what} is {value!r:.50}, no object; correct it")
    return value


def _class_names(labels: Mapping[str, object]) -> tuple[dict[int, str], list[str]]:
    """Name of each value, and the names that stand for no value or several, as those of nnU-Net's regions do."""
    classes: dict[int, str] = {}
    others = []
    for key, entry in labels.items():
        by_name = not isinstance(entry, str) or (entry.isdecimal() and not key.isdecimal())
        name, value = (key, entry) if by_name else (str(entry), key)  # nnU-Net's, the Decathlon's
        if isinstance(value, list) and len(value) == 1:
            (value,) = value
        if name.strip() and str(value).isdecimal() and int(str(value)) not in classes:
            classes[int(str(value))] = name
        else:
            others.append(name)
    return classes, others


# --- tables ----------------------------------------------------------------------------------------------------------


def _from_table(table: Path) -> tuple[list[Case], list[Fault]]:
    names, rows = _read_table(table)
    columns = {name.lower(): name for name in names if name}
    labels = [key for key in LABEL_COLUMNS if key in columns]
    images = [key for key in columns if IMAGE_COLUMN.match(key)] or [
        key for key in columns if key not in (*LABEL_COLUMNS, *OTHER_COLUMNS) and _is_image_column(key, rows.values())
    ]
    if not labels or not images:
        lacking = "image" if labels else "label"
        raise InvalidInput(f"{table} has no column {lacking} among {', '.join(columns) or 'none'}; name it so")
    if len(labels) > 1 and labels[0] != "label":
        raise InvalidInput(f"{table} has the columns {' and '.join(labels)}; call the one to learn label")
    used = (*images, labels[0])
    for key in (*used, *OTHER_COLUMNS):
        if sum(name.lower() == key for name in names) > 1:
            raise InvalidInput(
                f"{table} has several columns {columns[key]}, of which one alone would be read; give each a name of "
                "its own, channels for example image 1 and image 2"
            )
    cases: list[Case] = []
    faults: list[Fault] = []
    taken: set[str] = set()
    for number, row in rows.items():
        paths = [table.parent / row[key] if row.get(key) else None for key in used]
        name = row.get("name") or (stem(paths[0]) if paths[0] else f"row {number}")
        if name in taken and paths[0]:
            name = f"{paths[0].parent.name}-{name}"
        if name in taken:
            name = f"{name}-{number}"
        taken.add(name)
        there = [path for path in paths if path is not None and path.exists()]
        if len(there) == len(paths):
            channels = tuple(columns[key] for key in images)
            cases.append(Case(name, tuple(there[:-1]), there[-1], row.get("patient", ""), channels))
            continue
        for key, path in zip(used, paths, strict=True):
            if path is None or not path.exists():
                what = f"{path} does not exist" if path else "there is nothing"
                faults.append(Fault(name, f"{what} in column {columns[key]} of row {number}; correct {table.name}"))
    return cases, faults


def _read_table(table: Path) -> tuple[list[str], dict[int, dict[str, str]]]:
    """Names of the columns, and the rows that aren't empty by number, with a cell by each name in small letters."""
    if table.suffix.lower() not in TABLES:
        raise InvalidInput(f"{table} is no table (.csv or .tsv); give {LAYOUTS}")
    try:
        text = table.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{table} can't be read as text ({error}); save it as UTF-8") from None
    text = re.sub(r"^sep=.\n", "", text, flags=re.IGNORECASE)  # Excel's own, which it doesn't show or count
    try:
        # By the first row, which may be of several lines.
        widths = {one: len(next(csv.reader(io.StringIO(text), delimiter=one), [])) for one in "\t;,"}
        rows = list(csv.reader(io.StringIO(text), delimiter=max(widths, key=lambda one: widths[one]), strict=True))
    except csv.Error as error:
        raise InvalidInput(f"{table} can't be read as a table ({error}); correct its quotation marks") from None
    head, *others = rows or [[]]
    names = [" ".join(name.split()) for name in head]
    keys = [name.lower() for name in names]
    cells = {number: [cell.strip() for cell in row] for number, row in enumerate(others, 2)}
    return names, {number: dict(zip(keys, row, strict=False)) for number, row in cells.items() if any(row)}


def _is_image_column(key: str, rows: Iterable[Mapping[str, str]]) -> bool:
    first = next((row[key] for row in rows if row.get(key)), "")
    return first.lower().endswith(IMAGE_SUFFIXES)
