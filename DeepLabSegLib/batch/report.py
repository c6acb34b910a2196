"""The table of a batch: what became of each scan, and how each result was made."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from DeepLabSegLib.errors import OutputError
from DeepLabSegLib.outputs import replacing

__all__ = ["REPORT", "Case", "is_older", "is_result", "read_report", "renew_report", "rows_of", "write_report"]

REPORT = "report.csv"
VOLUME_COLUMN = " (ml)"


@dataclass(frozen=True)
class Case:
    """What became of one scan: `status` is "done", "kept" (its output was there already) or "failed".

    `result` is the name of its file, and `made_with` the model and options of what lies there, "" where they aren't
    known. `older` says of a kept result that its scan was written after it; the table doesn't keep it.
    """

    name: str
    status: str
    seconds: float = 0.0
    volumes_ml: dict[str, float] = field(default_factory=dict)
    message: str = ""
    result: str = ""
    made_with: str = ""
    older: bool = False


def write_report(cases: Sequence[Case], path: str | os.PathLike[str]) -> None:
    """A table of all cases as CSV: name, status, seconds, a column of millilitres per segment, and the other fields."""
    names = list(dict.fromkeys(name for case in cases for name in case.volumes_ml))
    with (
        replacing(Path(path)) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="replace") as file,
    ):
        writer = csv.writer(file)
        columns = [f"{name}{VOLUME_COLUMN}" for name in names]
        writer.writerow(["case", "status", "seconds", *columns, "message", "result", "made with"])
        for case in cases:
            volumes = [f"{case.volumes_ml[name]:.3f}" if name in case.volumes_ml else "" for name in names]
            others = (case.message, case.result, case.made_with)
            writer.writerow([case.name, case.status, f"{case.seconds:.2f}", *volumes, *others])


def read_report(path: str | os.PathLike[str]) -> list[Case]:
    """The cases of a table of `write_report`, none where there is no file. Raises `OutputError` for any other file."""
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            return [_case_of(row) for row in csv.DictReader(file)]
    except FileNotFoundError:
        return []
    except PermissionError as error:
        raise OutputError(f"{path} can't be read ({error.strerror}); close it in other programs") from None
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        raise OutputError(f"{path} is no table of a batch, and would be lost; move it, or use another folder") from None


def rows_of(report: Path, folder: Path) -> dict[str, Case]:
    """Result -> case of the report, as far as these results are in `folder`."""
    rows = {}
    for case in read_report(report):
        result = folder / case.result
        if case.result and is_result(result):
            # Written since, by hand or by a run that was killed: nobody knows with what, or what it holds.
            known = not is_older(report, result)
            rows[case.result] = case if known else replace(case, made_with="", volumes_ml={})
    return rows


def renew_report(report: Path, folder: Path, cases: Sequence[Case]) -> None:
    """Write `cases`, and what the table has of other results that are there: of earlier runs, or of one beside ours."""
    rows = rows_of(report, folder)
    for case in cases:
        there = rows.get(case.result, case)
        # Of what another process has made meanwhile, the table says more.
        if case.made_with or not there.made_with:
            # A case that failed has left what was there.
            rows[case.result] = replace(case, volumes_ml=there.volumes_ml) if case.status == "failed" else case
    write_report([*rows.values()], report)


def is_result(path: Path) -> bool:
    """Whether there is more than an empty file."""
    with suppress(OSError):
        return path.stat().st_size > 0
    return False


def is_older(path: Path, other: Path) -> bool:
    """Whether `path` was written before `other`, or, if that is a folder, before one of its files."""
    with suppress(OSError):
        parts = other.iterdir() if other.is_dir() else [other]
        return path.stat().st_mtime_ns < max((part.stat().st_mtime_ns for part in parts), default=0)
    return False


def _case_of(row: dict[str, str]) -> Case:
    volumes = {
        column.removesuffix(VOLUME_COLUMN): float(value)
        for column, value in row.items()
        if column and column.endswith(VOLUME_COLUMN) and value
    }
    others = (row["message"] or "", row.get("result") or "", row.get("made with") or "")  # new columns, short rows
    return Case(row["case"], row["status"], float(row["seconds"]), volumes, *others)
