"""Getting PyTorch into Slicer's Python: with consent, without touching Slicer's own packages, with the window alive."""

import importlib.metadata
import importlib.util
import json
import platform
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import qt
import slicer
from packaging.requirements import Requirement
from slicer.i18n import tr as _

from DeepLabSegLib.errors import InvalidInput
from DeepLabSegPanel.worker_process import new_process, not_started, python_executable

KEPT = ("numpy", "SimpleITK", "vtk", "scipy")
"""Slicer's own, which its other modules are built against."""

PROGRAM = """
import os, runpy, sys, threading
window = os.dup(0)
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # what pip starts has nothing to read, and doesn't wait for us
threading.Thread(target=lambda: (os.read(window, 1), os._exit(1)), daemon=True).start()
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
"""Runs a module until standard input ends. Slicer's Python is a launcher's child; killing the launcher spares it."""

END_WITHIN_MS = 3000

RESUME_KEY = "DeepLabSeg/Resume"


def read_requirements(path: str) -> list[Requirement]:
    """The requirements of a requirements.txt; what follows a # is a remark."""
    lines = (line.partition("#")[0].strip() for line in Path(path).read_text(encoding="utf-8").splitlines())
    return [Requirement(line) for line in lines if line]


def missing(requirements: list[Requirement]) -> list[str]:
    """Those that are not installed in the right version. Nothing is imported."""
    importlib.invalidate_caches()
    return [str(requirement) for requirement in requirements if not _isInstalled(requirement)]


def has_pytorch_extension() -> bool:
    """Whether the PyTorch extension is there, which knows the right torch for the graphics card."""
    return hasattr(slicer.modules, "pytorchutils")


def _isInstalled(requirement: Requirement) -> bool:
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return importlib.util.find_spec(requirement.name) is not None and not requirement.specifier
    return requirement.specifier.contains(version, prereleases=True)


def check_platform(wanted: list[str]) -> None:
    """Raise `InvalidInput` where there is no PyTorch to install: its last release for Macs with Intel is 2.2.

    A Slicer made for these runs on Apple's own processors too, and looks for the same PyTorch.
    """
    torch = [requirement for requirement in wanted if Requirement(requirement).name == "torch"]
    if torch and sys.platform == "darwin" and platform.machine() == "x86_64":
        raise InvalidInput(
            _(
                "{torch} doesn't exist for this Slicer, which is made for Macs with Intel processors; use a Slicer "
                "made for Apple silicon, or another computer"
            ).format(torch=torch[0])
        )


class TorchInstaller:
    """Installs requirements. `onLine(text)` gets the progress; `onEnd(error)` the end, with no text if all is well."""

    def __init__(self, onLine: Callable[[str], None], onEnd: Callable[[str], None]) -> None:
        self._onLine = onLine
        self._onEnd = onEnd
        self._process: Any = None
        self._folder: Any = None
        self._steps: list[list[str]] = []
        self._isCancelled = False

    def start(self, wanted: list[str]) -> None:
        """Install `wanted`: torch as the PyTorch extension does, where it is there, everything else by pip."""
        self._folder = tempfile.TemporaryDirectory(prefix="DeepLabSeg-")
        self._steps = _steps(wanted)
        self._next()

    def cancel(self) -> None:
        """End the installation; `onEnd` is called."""
        if self._process is not None:
            self._isCancelled = True
            self._process.closeWriteChannel()  # at which PROGRAM ends
            qt.QTimer.singleShot(END_WITHIN_MS, self._endByForce)

    def _endByForce(self) -> None:
        if self._process is not None:
            self._process.kill()

    def _next(self) -> None:
        constraints = _writeConstraints(self._folder.name)
        self._process = new_process({"PIP_CONSTRAINT": constraints, "PIP_PROGRESS_BAR": "off"})
        self._process.setProcessChannelMode(qt.QProcess.MergedChannels)
        self._process.connect("readyReadStandardOutput()", self._onOutput)
        self._process.connect("finished(int,QProcess::ExitStatus)", self._onFinished)
        self._process.connect("errorOccurred(QProcess::ProcessError)", self._onError)
        self._process.start(python_executable(), ["-c", PROGRAM, *self._steps.pop(0)])

    def _onOutput(self) -> None:
        if self._process is not None:
            text = bytes(self._process.readAllStandardOutput().data()).decode(errors="replace")
            for line in text.splitlines():
                self._onLine(line)

    def _onFinished(self, exitCode: int, _exitStatus: int) -> None:
        self._onOutput()
        if self._isCancelled:
            self._end(_("the installation was ended; nothing is usable of it, so start it again"))
        elif exitCode != 0:
            self._end(_("pip ended with code {code}; the log says why").format(code=exitCode))
        elif self._steps:
            self._letGo()
            self._next()
        else:
            self._end("")

    def _onError(self, error: int) -> None:
        if error == qt.QProcess.FailedToStart:  # everything else is followed by finished()
            self._end(not_started())

    def _end(self, error: str) -> None:
        self._letGo()
        self._folder.cleanup()
        self._onEnd(error)

    def _letGo(self) -> None:
        process, self._process = self._process, None
        process.deleteLater()


def _steps(wanted: list[str]) -> list[list[str]]:
    """The modules to run one after another, each with its arguments."""
    install = ["pip", "install", "--no-warn-script-location"]
    torch = [requirement for requirement in wanted if Requirement(requirement).name == "torch"]
    if not (torch and has_pytorch_extension()):
        return [[*install, *wanted]]
    # What the extension does in its own way, which holds up the window until pip says something.
    others = [requirement for requirement in wanted if requirement not in torch]
    steps = [[*install, "light-the-torch>=0.5"], ["light_the_torch", "install", *torch]]
    return [*steps, [*install, *others]] if others else steps


def _writeConstraints(folder: str) -> str:
    """The address of a file in `folder` by which pip keeps Slicer's own packages as they are."""
    path = Path(folder) / "constraints.txt"
    path.write_text(_constraints(), encoding="utf-8")
    return path.as_uri()  # pip takes a path with a space, from its environment, for two


def _constraints() -> str:
    lines = []
    for name in KEPT:
        try:
            lines.append(f"{name}=={importlib.metadata.version(name)}\n")
        except importlib.metadata.PackageNotFoundError:
            continue
    return "".join(lines)


# --- over a restart --------------------------------------------------------------------------------------------------


def remember_run(volume: str, model: str) -> None:
    """Keep what was about to be done, for the time after a restart."""
    qt.QSettings().setValue(RESUME_KEY, json.dumps({"volume": volume, "model": model}))


def recall_run() -> dict[str, str] | None:
    """What was about to be done before the restart; it is told once."""
    settings = qt.QSettings()
    text = settings.value(RESUME_KEY)
    if not text:
        return None
    settings.remove(RESUME_KEY)
    return json.loads(text)
