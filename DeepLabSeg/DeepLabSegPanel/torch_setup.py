"""Getting PyTorch into Slicer's Python: with consent, without touching Slicer's own packages, with the window alive."""

import importlib.metadata
import importlib.util
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import qt
import slicer
from packaging.requirements import Requirement
from slicer.i18n import tr as _

from DeepLabSegPanel.worker_process import python_executable

KEPT = ("numpy", "SimpleITK", "vtk", "scipy")
"""Slicer's own, which its other modules are built against."""

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


class TorchInstaller:
    """Installs requirements. `onLine(text)` gets the progress; `onEnd(error)` the end, with no text if all is well."""

    def __init__(self, onLine: Callable[[str], None], onEnd: Callable[[str], None]) -> None:
        self._onLine = onLine
        self._onEnd = onEnd
        self._process: Any = None
        self._folder: Any = None

    def start(self, requirements: list[Requirement]) -> None:
        """Install what is missing: torch by the PyTorch extension where it is there, everything else by pip."""
        torch = [requirement for requirement in requirements if requirement.name == "torch"]
        if missing(torch) and has_pytorch_extension():
            self._onLine(_("Installing PyTorch with the PyTorch extension …"))
            try:
                self._useExtension(torch[0])
            except Exception as error:  # the extension's own; what it says is what the user needs
                self._onEnd(str(error))
                return
        wanted = missing(requirements)
        if not wanted:
            self._onEnd("")
            return
        self._folder = tempfile.TemporaryDirectory(prefix="DeepLabSeg-")
        self._process = qt.QProcess()
        self._process.setProcessChannelMode(qt.QProcess.MergedChannels)
        self._process.connect("readyReadStandardOutput()", self._onOutput)
        self._process.connect("finished(int,QProcess::ExitStatus)", self._onFinished)
        arguments = ["-m", "pip", "install", "--progress-bar", "off", "--no-warn-script-location"]
        self._process.start(python_executable(), [*arguments, "-c", _writeConstraints(self._folder.name), *wanted])

    def cancel(self) -> None:
        """End pip; `onEnd` is called."""
        if self._process is not None:
            self._process.kill()

    def _useExtension(self, torch: Requirement) -> None:
        import PyTorchUtils

        with tempfile.TemporaryDirectory(prefix="DeepLabSeg-") as folder:
            before = os.environ.get("PIP_CONSTRAINT")
            os.environ["PIP_CONSTRAINT"] = _writeConstraints(folder)
            try:
                PyTorchUtils.PyTorchUtilsLogic().installTorch(
                    askConfirmation=False, torchVersionRequirement=str(torch.specifier)
                )
            finally:
                if before is None:
                    del os.environ["PIP_CONSTRAINT"]
                else:
                    os.environ["PIP_CONSTRAINT"] = before

    def _onOutput(self) -> None:
        text = bytes(self._process.readAllStandardOutput().data()).decode(errors="replace")
        for line in text.splitlines():
            self._onLine(line)

    def _onFinished(self, exitCode: int, exitStatus: int) -> None:
        self._process.deleteLater()
        self._process = None
        self._folder.cleanup()
        if exitStatus == qt.QProcess.CrashExit:
            self._onEnd(_("the installation was ended; nothing is usable of it, so start it again"))
        elif exitCode != 0:
            self._onEnd(_("pip ended with code {code}; the log says why").format(code=exitCode))
        else:
            self._onEnd("")


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
