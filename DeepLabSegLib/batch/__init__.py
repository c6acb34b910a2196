"""Many scans, one model, and the table of what became of them."""

from DeepLabSegLib.batch.report import REPORT, Case, read_report, write_report
from DeepLabSegLib.batch.run import collect, run_case, segment_files
from DeepLabSegLib.batch.scans import find_nested, find_scans

__all__ = [
    "REPORT",
    "Case",
    "collect",
    "find_nested",
    "find_scans",
    "read_report",
    "run_case",
    "segment_files",
    "write_report",
]
