"""Writing so that nothing is lost: what is there is kept, and a file appears only when it is complete."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from DeepLabSegLib.errors import OutputError

__all__ = ["check_output", "replacing"]

PAUSES_S = (0.1, 0.3, 1.0)
"""How long to wait, again and again, for who holds a file: on Windows a virus scanner does for a moment."""


def check_output(path: str | os.PathLike[str], suffixes: tuple[str, ...], overwrite: bool = False) -> Path:
    """`path` if a file of one of `suffixes` can be written there; raise `OutputError` otherwise."""
    target = Path(path)
    if not target.name.lower().endswith(suffixes):
        raise OutputError(f"{target} has no known ending; choose one of {', '.join(suffixes)}")
    if not target.parent.is_dir():
        raise OutputError(f"the folder {target.parent} does not exist; make it first")
    if not os.access(target.parent, os.W_OK):
        raise OutputError(f"the folder {target.parent} can't be written to; choose another one")
    if target.is_dir():
        raise OutputError(f"{target} is a folder; give the name of a file")
    if target.exists() and not overwrite:
        raise OutputError(f"{target} exists and is kept; give another name, or --overwrite (overwrite=True)")
    return target


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; it takes the place of `path` only when all went well.

    Raises `OutputError` where `path` can't be replaced, as on Windows while another program has it open.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        yield temporary
        _move(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
            f"{path} can't be replaced ({error.strerror}); close it in other programs, or give another name"
        ) from None
