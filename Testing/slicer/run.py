"""The tests that need Slicer, inside a real one; the exit code is 0 where all is well.

    Slicer --no-main-window --testing --python-script Testing/slicer/run.py

Arguments after the script's name go to pytest, for example `-k region`. The tests are those of `Testing/mrml` and
`Testing/gui`, which elsewhere run on slicer-core and a stand-in for the window.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import slicer

TESTING = Path(__file__).resolve().parents[1]


def find_pytest():
    """pytest, from Slicer's own Python or else fetched into a folder of its own, which leaves Slicer as it is."""
    try:
        import pytest
    except ModuleNotFoundError:
        folder = tempfile.mkdtemp(prefix="pytest-")
        command = ["PythonSlicer", "-m", "pip", "install", "--quiet", "--target", folder, "pytest"]
        subprocess.run(command, check=True)
        sys.path.append(folder)
        import pytest
    return pytest


def run() -> int:
    """Run them all; gives pytest's exit code."""
    os.chdir(TESTING.parent)
    own = [argument for argument in sys.argv[1:] if not argument.endswith("run.py")]
    # The project's own settings are for the development environment; here only its tests are wanted.
    settings = [
        "-c",
        str(TESTING / "slicer" / "pytest.ini"),
        "--rootdir",
        str(TESTING.parent),
        "--confcutdir",
        str(TESTING),
    ]
    ignored = [f"--ignore={TESTING / name}" for name in ("unit", "parity", "benchmarks")]
    return int(find_pytest().main([*settings, *ignored, "-v", *own, str(TESTING)]))


if __name__ == "__main__":
    slicer.util.exit(run())
