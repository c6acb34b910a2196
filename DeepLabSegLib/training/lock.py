"""One training at a time in a folder, whatever became of the one before."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

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
    """Keep trainings of other processes out of `folder`.

    The system's own lock on a file, which ends with this process, however that ends. The file stays; where nothing has
    come into `folder` beside it, both go. On file systems that have no locks, as some of clusters, nobody is kept out.

    Raises `OutputError` where another training is at work in `folder`, or it can't be written to.
    """
    try:
        file = (folder / LOCK).open("ab")
    except OSError as error:
        raise OutputError(f"the folder {folder} can't be written to ({error.strerror}); choose another place") from None
    with file:
        try:
            _lock(file.fileno())
        except OSError as error:
            if error.errno in TAKEN:
                raise OutputError(
                    f"another training is at work in {folder}; wait until it ends or stop it, or give another output"
                ) from None
        try:
            yield
        finally:
            file.close()  # Windows deletes no open file
            with suppress(OSError):
                if [path.name for path in folder.iterdir()] == [LOCK]:
                    (folder / LOCK).unlink()
                    folder.rmdir()


def _lock(file: int) -> None:
    if sys.platform == "win32":
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
    else:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock, which processes that load images would keep
