"""One training at a time in a folder, whatever became of the one before."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from DeepLabSegLib.errors import OutputError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = ["held"]

LOCK = "lock"
TAKEN = (errno.EACCES, errno.EAGAIN)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep trainings of other processes out of `folder`, which is made where it is missing.

    The system's own lock on a file, which ends with this process, however that ends. The file stays; where nothing has
    come into `folder` beside it, both go. On file systems that have no locks, as some of clusters, nobody is kept out.

    Raises `OutputError` where another training is at work in `folder`, or it can't be made or written to.
    """
    with _locked(folder) as file:
        try:
            yield
        finally:
            if sys.platform == "win32":
                file.close()  # Windows deletes no open file, so none that another training has opened by now
            with suppress(OSError):
                if [path.name for path in folder.iterdir()] == [LOCK]:
                    (folder / LOCK).unlink()
                    folder.rmdir()


def _locked(folder: Path, attempts: int = 5) -> BinaryIO:
    """The file, locked; another one where a training that ended has just deleted the first, which would lock no one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("ab")
    except OSError as error:
        raise OutputError(
            f"the folder {folder} can't be made or written to ({error.strerror}); choose another place"
        ) from None
    try:
        _lock(file.fileno())
    except OSError as error:
        if error.errno in TAKEN:
            file.close()
            raise OutputError(
                f"another training is at work in {folder}; wait until it ends or stop it, or give another output"
            ) from None
    if attempts == 1 or sys.platform == "win32" or _is_at(file, folder / LOCK):
        return file
    file.close()
    return _locked(folder, attempts - 1)


def _is_at(file: BinaryIO, path: Path) -> bool:
    with suppress(OSError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def _lock(file: int) -> None:
    if sys.platform == "win32":
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
    else:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock, which processes that load images would keep
