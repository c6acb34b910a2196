"""Writing so that nothing is lost: what is there is kept, and a file appears only when it is complete."""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from DeepLabSegLib.errors import OutputError

__all__ = ["check_apart", "check_output", "leftovers", "make_folder", "replacing"]

TEMPORARY = re.compile(r"\.[0-9a-f]{8}-")
"""How names of temporary files begin."""

PAUSES_S = (0.1, 0.3, 1.0)
"""How long to wait, again and again, for who holds a file: on Windows a virus scanner does for a moment."""


def check_output(path: str | os.PathLike[str], suffixes: tuple[str, ...], overwrite: bool = False) -> Path:
    """`path` if a file of one of `suffixes` can be written there; raise `OutputError` otherwise."""
    target = Path(path)
    if not target.name.lower().endswith(suffixes):
        raise OutputError(f"{target} has no known ending; choose one of {', '.join(suffixes)}")
    end = _leads_to(target)
    if end.is_symlink():
        raise OutputError(f"{target} is a link that leads round in a circle; give another name")
    folder = end.parent
    if not folder.is_dir():
        raise OutputError(f"the folder {folder} does not exist; make it first")
    if target.is_dir():
        raise OutputError(f"{target} is a folder; give the name of a file")
    if target.exists() and not target.is_file():
        raise OutputError(f"{target} leads to a device or pipe, which would be lost; give the name of a file")
    if target.exists() and not overwrite:
        raise OutputError(f"{target} exists and is kept; give another name, or --overwrite (overwrite=True)")
    if not _takes_files(folder):
        raise OutputError(f"the folder {folder} can't be written to; choose another one")
    return target


def _takes_files(folder: Path) -> bool:
    """Whether a file can be made in `folder`, found out by trying: of a folder on Windows `os.access` knows nothing."""
    probe = folder / f".{uuid.uuid4().hex[:8]}"
    try:
        probe.touch(exist_ok=False)
    except OSError:
        return False
    with suppress(OSError):  # a virus scanner looks at it
        probe.unlink()
    return True


def _leads_to(path: Path) -> Path:
    # Path.resolve raises an error of its own where links lead round in a circle, until Python 3.13.
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def make_folder(folder: Path, parents: bool = False) -> None:
    """Make `folder` where it isn't there, and with `parents` those above it. Raises `OutputError`."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; give a folder")
    try:
        folder.mkdir(parents=parents, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"the folder {folder} can't be made ({error.strerror}); make its parent first, or choose another place"
        ) from None


def check_apart(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Raise `OutputError` where an output is one of `inputs`, or two outputs are one file."""
    sources, taken = [*inputs], set()
    places, files = set(map(_place, sources)), set(map(_file, sources)) - {None}
    for path in outputs:
        place = _place(path)
        if place in places or _file(path) in files:
            raise OutputError(f"{path} is an input, which would be lost; write to another name or folder")
        if place in taken:
            raise OutputError(f"{path} is given for two outputs; give each a name of its own")
        taken.add(place)


def _place(path: Path) -> str:
    return os.path.normcase(os.path.realpath(path))


def _file(path: Path) -> tuple[int, int] | None:
    """What all names of a file that is there have in common, such as capital and small letters on a Mac."""
    with suppress(OSError):
        found = path.stat()
        return (found.st_dev, found.st_ino) if found.st_ino else None
    return None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; it takes the place of `path` only when all went well.

    Where `path` is a symbolic link, it stays one, and what it leads to is replaced.

    Raises `OutputError` where it can't be written, or `path` can't be replaced, as on Windows while another program
    has it open.
    """
    target = _leads_to(path)
    temporary = target.with_name(f".{uuid.uuid4().hex[:8]}{_tail(path)}")
    try:
        yield temporary
        _move(temporary, target)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            f"{path} can't be written ({error.strerror or error}); make room, or choose another place or name"
        ) from None
    finally:
        with suppress(OSError):  # where it can't be deleted either, what went wrong before is what to tell
            temporary.unlink(missing_ok=True)


def leftovers(folder: Path) -> list[Path]:
    """The temporary files that writing into `folder` has left where a process was killed."""
    return [path for path in folder.iterdir() if TEMPORARY.match(path.name)] if folder.is_dir() else []


def _tail(path: Path) -> str:
    """The end of a temporary name, without dots but for those of the ending.

    By these libraries choose the format, some only in small letters; and all of a name may be too long.
    """
    ending = "".join(path.suffixes[-2:]) if path.suffix.lower() == ".gz" else path.suffix
    stem = path.name.removesuffix(ending).replace(".", "-")
    return f"-{stem[-20:]}{ending[-20:].lower()}"


def _move(temporary: Path, path: Path) -> None:
    for pause in PAUSES_S:
        with suppress(PermissionError):
            temporary.replace(path)
            return
        time.sleep(pause)
    try:
        temporary.replace(path)
    except PermissionError as error:
        raise OutputError(
            f"{path} can't be replaced ({error.strerror}); close it in other programs, allow writing to it, or give "
            "another name"
        ) from None
