"""Which files belong together: segmentations, references and scans, by order or by name."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from DeepLabSegLib import files
from DeepLabSegLib.errors import InvalidInput

__all__ = ["LABEL_MARK", "Pair", "Pairing", "list_files", "match", "pair_files", "stem", "unique"]

SourcePath = str | os.PathLike[str]

LABEL_FILES = tuple(suffix for suffix in files.IMAGE_SUFFIXES if suffix not in files.JPEG_SUFFIXES)
ENDINGS = tuple(sorted({*files.LABEL_SUFFIXES, *files.IMAGE_SUFFIXES}, key=len, reverse=True))
PARTS = (
    "seg segmentation segmentations dseg label labels labelmap mask masks "
    "pred prediction predictions result results gt truth ref reference references 0000"
)
ROLE = re.compile(rf"([-_. ]({PARTS.replace(' ', '|')}))+$", re.IGNORECASE)
"""What names say of a file's part and not of the case; 0000 is the first channel in nnU-Net's folders."""

LABEL_MARK = re.compile(r"[_\-. ](seg|segmentation|dseg|labels?|labelmap|masks?|gt|manual)$", re.IGNORECASE)
"""What is behind a scan's name in that of its label; dseg is BIDS'."""


@dataclass(frozen=True)
class Pair:
    """A case: its name, from the prediction's file, and its files."""

    name: str
    prediction: Path
    reference: Path
    image: Path | None = None


@dataclass(frozen=True)
class Pairing:
    """Cases, and the files of either side that have no counterpart.

    `against_names` are those of `pairs` that were given in another order than their names tell.
    """

    pairs: tuple[Pair, ...]
    without_reference: tuple[Path, ...] = ()
    without_prediction: tuple[Path, ...] = ()
    against_names: tuple[Pair, ...] = ()


def pair_files(
    predictions: Sequence[SourcePath], references: Sequence[SourcePath], images: Sequence[SourcePath] = ()
) -> Pairing:
    """Files are paired in their order; where either side has a folder, by name (see `match`), less scans that lie
    beside their `.seg.nrrd` in it.

    `images` are paired in their order where the others are, and they are as many files; else by name with either.

    Raises
    ------
    InvalidInput : a folder that doesn't exist or has no label maps, files of different number, names that fit several
        files, no pair.
    """
    ours, theirs = _segmentations(predictions), _segmentations(references)
    by_name = any(Path(path).is_dir() for path in (*predictions, *references))
    if not by_name and len(ours) != len(theirs):
        raise InvalidInput(
            f"{len(ours)} predictions and {len(theirs)} references are given; "
            "give one reference per prediction, in the same order, or folders"
        )
    found = list(match(ours, theirs).items()) if by_name else list(zip(ours, theirs, strict=True))
    if not found:
        raise InvalidInput(
            f"no prediction has a reference of its name ({ours[0].name} and {theirs[0].name}, for example); "
            "rename them, or give files in the same order"
        )
    scans = _scans(found, images, by_name)
    names = unique(_names([ours for ours, _ in found]))
    pairs = [Pair(name, *both, scan) for name, both, scan in zip(names, found, scans, strict=True)]
    used = [{pair.prediction for pair in pairs}, {pair.reference for pair in pairs}]
    return Pairing(
        tuple(pairs),
        tuple(path for path in ours if path not in used[0]),
        tuple(path for path in theirs if path not in used[1]),
        () if by_name else _against_names(pairs),
    )


def list_files(paths: Iterable[SourcePath], suffixes: tuple[str, ...]) -> list[Path]:
    """`paths`, with a folder replaced by its files of one of `suffixes`, sorted.

    Raises `InvalidInput` for a folder without any, or one that doesn't exist; a file that doesn't is left to its case.
    """
    listed: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            if not path.exists() and not path.name.lower().endswith(suffixes):
                raise InvalidInput(f"{path} does not exist; check the path")
            listed.append(path)
            continue
        inside = [file for file in sorted(path.iterdir()) if _visible(file) and file.name.lower().endswith(suffixes)]
        if not inside:
            raise InvalidInput(f"{path} holds no file that can be read here; known are {', '.join(suffixes)}")
        listed += inside
    return listed


def _segmentations(paths: Sequence[SourcePath]) -> list[Path]:
    """`list_files`, less scans in a folder beside the `.seg.nrrd` that was drawn on them, as Slicer saves both."""
    listed = list_files(paths, LABEL_FILES)
    given = {Path(path) for path in paths}
    drawn = {(path.parent, LABEL_MARK.sub("", stem(path))) for path in listed if files.is_segmentation(path)}
    return [p for p in listed if p in given or files.is_segmentation(p) or (p.parent, stem(p)) not in drawn]


def match(ours: Sequence[Path], theirs: Sequence[Path]) -> dict[Path, Path]:
    """From each of `ours` to the one of `theirs` that is called alike, in the order of `ours`.

    First come equal stems, then stems that are equal without words such as `_seg`, then those that differ by one
    ending which most of the rest share, as in `case1` and `case1_atlas`. A name that fits several files is refused.

    >>> match([Path("a.seg.nrrd"), Path("b.nii.gz")], [Path("b_seg.png"), Path("a_seg.png")])[Path("a.seg.nrrd")].name
    'a_seg.png'
    """
    found: dict[Path, Path] = {}
    for rule in (stem, _plain_stem):
        _join(*_rest(ours, theirs, found), rule, found)
    rest = _rest(ours, theirs, found)
    ending = _shared_ending([_plain_stem(path) for path in rest[0]], [_plain_stem(path) for path in rest[1]])
    if ending:
        _join(*rest, lambda path: _plain_stem(path).removesuffix(ending), found)
    return {path: found[path] for path in ours if path in found}


def stem(path: Path) -> str:
    """The file's name without its ending, `.nii.gz` and `.seg.nrrd` counting as one."""
    name = path.name
    return next((name[: -len(end)] for end in ENDINGS if name.lower().endswith(end) and len(name) > len(end)), name)


def unique(names: Sequence[str]) -> list[str]:
    """`names`, with numbers behind those that came before; upper and lower case count alike, as on many disks.

    >>> unique(["a", "b", "A", "a"])
    ['a', 'b', 'A-2', 'a-3']
    """
    taken: set[str] = set()
    result = []
    for name in names:
        candidate, number = name, 1
        while candidate.lower() in taken:
            number += 1
            candidate = f"{name}-{number}"
        taken.add(candidate.lower())
        result.append(candidate)
    return result


def _visible(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".")


def _plain_stem(path: Path) -> str:
    return ROLE.sub("", stem(path)) or stem(path)


def _rest(ours: Sequence[Path], theirs: Sequence[Path], found: dict[Path, Path]) -> tuple[list[Path], list[Path]]:
    taken = set(found.values())
    return [path for path in ours if path not in found], [path for path in theirs if path not in taken]


def _join(ours: list[Path], theirs: list[Path], rule: Callable[[Path], str], found: dict[Path, Path]) -> None:
    """Add to `found` what `rule` calls alike."""
    left, right = _by_key(ours, rule), _by_key(theirs, rule)
    for key in left.keys() & right.keys():
        if len(left[key]) > 1 or len(right[key]) > 1:
            several = ", ".join(str(path) for path in (*left[key], *right[key]))
            raise InvalidInput(f"it is open which of these belong together: {several}; leave one of each side")
        found[left[key][0]] = right[key][0]


def _against_names(pairs: Sequence[Pair]) -> tuple[Pair, ...]:
    """Those whose prediction is called like the reference of another one."""
    try:
        named = match([pair.prediction for pair in pairs], [pair.reference for pair in pairs])
    except InvalidInput:  # the names leave it open
        return ()
    given = {(pair.prediction, pair.reference) for pair in pairs}
    return tuple(p for p in pairs if (p.prediction, named.get(p.prediction, p.reference)) not in given)


def _by_key(paths: list[Path], rule: Callable[[Path], str]) -> dict[str, list[Path]]:
    keyed: dict[str, list[Path]] = {}
    for path in dict.fromkeys(paths):
        keyed.setdefault(rule(path), []).append(path)
    return keyed


def _shared_ending(ours: list[str], theirs: list[str]) -> str:
    """The ending by which most names of one side continue those of the other; none where several are as frequent.

    It starts at a separator and has a letter, so that `case1` never meets `case10` or `case1_2`.
    """
    counts: Counter[str] = Counter()
    for short, long in ((ours, theirs), (theirs, ours)):
        starts = set(short)
        for name in long:
            for separator in re.finditer(r"[-_. ]", name):
                start, ending = name[: separator.start()], name[separator.start() :]
                if start in starts and any(letter.isalpha() for letter in ending):
                    counts[ending] += 1
    best = counts.most_common(2)
    return best[0][0] if best and (len(best) == 1 or best[0][1] > best[1][1]) else ""


def _names(predictions: list[Path]) -> list[str]:
    """Stems; where they repeat, with the folder's name before them."""
    counts = Counter(stem(path) for path in predictions)
    return [stem(path) if counts[stem(path)] == 1 else f"{path.parent.name}-{stem(path)}" for path in predictions]


def _scans(found: list[tuple[Path, Path]], images: Sequence[SourcePath], by_name: bool) -> list[Path | None]:
    if not images:
        return [None] * len(found)
    # What was segmented in them lies beside scans where Slicer or a batch has put it.
    scans = [path for path in list_files(images, files.IMAGE_SUFFIXES) if not files.is_segmentation(path)]
    if not by_name and len(scans) == len(found) and not any(Path(image).is_dir() for image in images):
        return list(scans)
    by_prediction = match([ours for ours, _ in found], scans)
    by_reference = match([theirs for ours, theirs in found if ours not in by_prediction], scans)
    return [by_prediction.get(ours) or by_reference.get(theirs) for ours, theirs in found]
