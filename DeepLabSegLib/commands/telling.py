"""What a command tells: progress, notes and tables, and what was written when it was cut off."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO

from DeepLabSegLib.errors import DeepLabSegError

if TYPE_CHECKING:
    from DeepLabSegLib.batch import Case
    from DeepLabSegLib.segmenter import Progress

__all__ = [
    "ProgressBar",
    "Report",
    "heard_or_not",
    "let_go",
    "note",
    "progress_bar",
    "table",
    "telling",
    "warnings_as_notes",
]

Report = tuple[Any, str]
"""Data for programs, and the same as text."""

TRAINING_LINES = 50  # of a training without a terminal


class ProgressBar:
    """A bar per stage on a terminal; elsewhere nothing but a line per case and, of a training, now and then."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.stage = ""
        self.bar: Any = None
        self.loss = 0.0
        self.cases = 0

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def show(self, stage: str, done: int, total: int, said: str | None = None) -> None:
        if stage != self.stage:
            self.__exit__()
            self.stage = stage
            self.bar = progress_bar(stage, self.options, total=total, initial=max(0, done - 1), mininterval=1)
        if said is not None:
            note(said)
        self.bar.total = total  # smaller windows are more
        self.bar.update(done - self.bar.n)

    def of_run(self, progress: Progress) -> None:
        self.show(progress.stage, progress.done, progress.total, progress.note)

    def of_case(self, case: Case) -> None:
        self.cases += 1
        self.show(self.stage, self.cases, self.bar.total)
        if self.bar.disable:
            said = case.message or f"{case.seconds:.1f} s"
            text = f"deeplabseg: {self.cases} of {self.bar.total}, {case.name} {case.status}: {said}"
            _log(text, sys.stderr if self.options.json else sys.stdout)

    def of_training(self, stage: str, done: int, total: int, loss: float | None) -> None:
        self.show(stage, done, total)
        if loss is None:
            return
        self.loss = 0.95 * self.loss + 0.05 * loss if self.loss else loss
        self.bar.set_postfix(loss=f"{self.loss:.3f}", refresh=False)
        if self.bar.disable and not self.options.json and done % max(1, total // TRAINING_LINES) == 0:
            _log(f"deeplabseg: step {done} of {total}, loss {self.loss:.3f}", sys.stderr)


def progress_bar(description: str, options: argparse.Namespace, **more: Any) -> Any:
    """A bar of tqdm, which `more` is for; nothing is shown with `--json`, or where no terminal is."""
    from tqdm import tqdm

    # None: a bar only where standard error is a terminal.
    return tqdm(desc=description, leave=False, disable=True if options.json else None, **more)


@contextmanager
def telling() -> Iterator[list[str]]:
    """What ends the work within, be it Ctrl-C, also says what the list that is given holds: what was written."""
    written: list[str] = []
    try:
        yield written
    except (KeyboardInterrupt, DeepLabSegError) as error:
        if not written:
            raise
        until_then = f"written until then: {', '.join(written)}"
        raise type(error)("; ".join(filter(None, (str(error), until_then)))) from None


@contextmanager
def warnings_as_notes() -> Iterator[None]:
    """What the work within warns of is told at once as notes, the same but once."""
    told = set()

    def tell(message: Warning | str, *_: Any, **__: Any) -> None:
        if str(message) not in told:
            told.add(str(message))
            note(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = tell
        yield


def note(text: str) -> None:
    """A line on standard error, above a bar that is there."""
    _log(f"deeplabseg: note: {text}", sys.stderr)


def _log(text: str, stream: TextIO) -> None:
    from tqdm import tqdm

    with heard_or_not(stream):
        tqdm.write(" ".join(text.splitlines()), file=stream)  # one line, though names and errors may have several
        stream.flush()


@contextmanager
def heard_or_not(stream: TextIO) -> Iterator[None]:
    """Within, what can't be printed on `stream` is let go: a log that nobody keeps any longer stops nothing."""
    try:
        yield
    except OSError:
        let_go(stream)


def let_go(stream: TextIO) -> None:
    """Send what is left of `stream` nowhere. Python would try it again at its end, and exit with 120."""
    with suppress(OSError, AttributeError):  # of a stream that is no file nothing is left
        number = stream.fileno()
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows as lines, in columns as wide as their widest cell."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))] if rows else []
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)
