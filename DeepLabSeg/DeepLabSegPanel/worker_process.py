"""The worker process behind QProcess: requests out, answers in, nothing ever waited for."""

import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

import DeepLabSegLib
from DeepLabSegLib.worker import ENVIRONMENT

Answer = dict[str, Any]
"""One of `DeepLabSegLib.worker`'s answers: it has `progress`, `result` or `error`."""

LIBRARY = str(Path(DeepLabSegLib.__file__).parents[1])
END_WITHIN_MS = 1000


def python_executable() -> str:
    """Slicer's Python as a program of its own; outside Slicer the Python that runs this."""
    return shutil.which("PythonSlicer") or sys.executable


def new_process(variables: Mapping[str, str]) -> Any:
    """A QProcess for Slicer's Python, in Slicer's environment and `variables`. What it prints is UTF-8.

    It imports nothing of the folder in which Slicer was started, where a file may be called like a module of Python's.
    It has a parent: one that Python alone holds is deleted with its name, be it within its own signal.
    """
    environment = qt.QProcessEnvironment.systemEnvironment()
    own = {"PYTHONUTF8": "1", "PYTHONSAFEPATH": "1"}  # the first says Slicer itself from 5.12 on
    for name, value in {**own, **variables}.items():
        environment.insert(name, value)
    process = qt.QProcess(slicer.app)
    process.setProcessEnvironment(environment)
    process.setWorkingDirectory(_working_folder())
    return process


def not_started() -> str:
    """What is said where that program can't be started."""
    return _("{program} can't be started; is Slicer complete?").format(program=python_executable())


class WorkerProcess:
    """`DeepLabSegLib.worker` in a process of its own, started with the first request and again when it has ended.

    `onLog(text)` gets what it prints.
    """

    def __init__(self, onLog: Callable[[str], None]) -> None:
        self._onLog = onLog
        self._ids = itertools.count(1)
        self._waiting: dict[int, Callable[[Answer], None]] = {}
        self._process: Any = None
        self._partialLine = b""

    @property
    def isRunning(self) -> bool:
        """Whether there is a process."""
        return self._process is not None

    @property
    def processId(self) -> int:
        """The system's number of the process, 0 without one."""
        return 0 if self._process is None else self._process.processId()

    def request(self, do: str, onAnswer: Callable[[Answer], None], **content: Any) -> int:
        """Send a request; `onAnswer` gets every answer to it. Returns its id."""
        if self._process is None:
            self._start()
        number = next(self._ids)
        self._waiting[number] = onAnswer
        self._send({"id": number, "do": do, **content})
        return number

    def cancel(self, number: int) -> None:
        """Ask for the end of a request; it answers with an error of kind Cancelled."""
        if self._process is not None:
            self._send({"id": number, "do": "cancel"})

    def stop(self, reason: str = "Cancelled", message: str = "") -> None:
        """End the process now. What was asked of it is answered by an error of kind `reason`."""
        self._onErrorOutput()
        process, self._process = self._process, None
        if process is not None:
            process.disconnect("finished(int,QProcess::ExitStatus)", self._onFinished)
            process.disconnect("errorOccurred(QProcess::ProcessError)", self._onError)
            process.disconnect("readyReadStandardOutput()", self._onOutput)
            process.disconnect("readyReadStandardError()", self._onErrorOutput)
            process.kill()
            process.waitForFinished(END_WITHIN_MS)
            process.deleteLater()
        self._failWaiting(reason, message or _("the background process was ended"))

    def _start(self) -> None:
        self._partialLine = b""
        self._process = new_process({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
        self._process.connect("finished(int,QProcess::ExitStatus)", self._onFinished)
        self._process.connect("errorOccurred(QProcess::ProcessError)", self._onError)
        self._process.connect("readyReadStandardOutput()", self._onOutput)
        self._process.connect("readyReadStandardError()", self._onErrorOutput)
        self._process.start(python_executable(), ["-c", _program()])

    def _send(self, request: dict[str, Any]) -> None:
        self._process.write(json.dumps(request).encode() + b"\n")

    def _onOutput(self) -> None:
        if self._process is None:
            return
        *lines, self._partialLine = (self._partialLine + _bytes(self._process.readAllStandardOutput())).split(b"\n")
        for line in lines:
            answer = json.loads(line)
            number = answer["id"]
            onAnswer = self._waiting.get(number) if "progress" in answer else self._waiting.pop(number, None)
            if onAnswer is not None:  # else `stop`, which an answer before has called, has told it of the end
                onAnswer(answer)

    def _onErrorOutput(self) -> None:
        if self._process is not None:
            self._onLog(_bytes(self._process.readAllStandardError()).decode(errors="replace").rstrip())

    def _onFinished(self, exitCode: int, _exitStatus: int) -> None:
        self._onErrorOutput()
        process, self._process = self._process, None
        if process is not None:
            process.deleteLater()
        self._failWaiting(
            "WorkerDied",
            _(
                "the background process ended unexpectedly (code {code}), perhaps because the computer ran out of "
                "memory; a new one starts with the next run. Try a smaller tile, a region or a smaller model"
            ).format(code=exitCode),
        )

    def _onError(self, error: int) -> None:
        if error == qt.QProcess.FailedToStart:  # everything else is followed by finished()
            qt.QTimer.singleShot(0, self._onNotStarted)  # on Windows this is told within start()

    def _onNotStarted(self) -> None:
        self.stop("WorkerDied", not_started())

    def _failWaiting(self, kind: str, message: str) -> None:
        waiting, self._waiting = self._waiting, {}
        for number, onAnswer in waiting.items():
            onAnswer({"id": number, "error": {"kind": kind, "message": message}})


def _working_folder() -> str:
    """Slicer's, or its temporary one: it works in a deleted folder, where Python can't start, after a damaged .mrb."""
    try:
        return str(Path.cwd())
    except OSError:
        return slicer.app.temporaryPath


def _program() -> str:
    """What the process runs, in ASCII: on Windows the launcher of Slicer 5.10 garbles other letters."""
    return f"import sys; sys.path.insert(0, {LIBRARY!a}); from DeepLabSegLib.worker import main; main()"


def _bytes(array: Any) -> bytes:
    return bytes(array.data())
