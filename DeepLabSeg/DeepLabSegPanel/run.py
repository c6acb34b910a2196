"""One click: arrays out to the worker, the result into the scene. Until it is complete the scene stays as it is."""

import errno
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import qt
import slicer
from slicer.i18n import tr as _

from DeepLabSegLib import mrml
from DeepLabSegLib.errors import DeepLabSegError, InvalidInput, OutputError
from DeepLabSegLib.image import SCORE_MAPS, Geometry, Labels, Segment
from DeepLabSegLib.schema import from_json
from DeepLabSegPanel.worker_process import Answer, WorkerProcess

CANCEL_WITHIN_MS = 3000

TORCH_ERRORS = ("RuntimeError", "AcceleratorError")
"""Kinds of error that torch raises, after which a graphics card may refuse everything else that its process asks."""


@dataclass(frozen=True)
class RunRequest:
    """What is to be done.

    `volumes` are the channels in their order; `output` None makes a new segmentation. `choice` and `options` are the
    JSON of `ModelChoice` and `SegmentOptions`, without the region, which is `roi`'s.
    """

    volumes: Sequence[Any]
    output: Any = None
    roi: Any = None
    choice: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    show3D: bool = False


@dataclass(frozen=True)
class RunResult:
    """What came of it: the node, or `errorKind` and `errorMessage`. `note` is what else should be said."""

    segmentation: Any = None
    note: str = ""
    report: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    errorKind: str = ""
    errorMessage: str = ""


class SegmentationRun:
    """A run in the worker process. `onProgress(progress)` is called on the way, `onEnd(result)` once at the end.

    `start` raises `DeepLabSegError` where the request can't be carried out; nothing has happened then.
    """

    def __init__(
        self,
        request: RunRequest,
        worker: WorkerProcess,
        onProgress: Callable[[Mapping[str, Any]], None],
        onEnd: Callable[[RunResult], None],
    ) -> None:
        self._request = request
        self._worker = worker
        self._onProgress = onProgress
        self._onEnd = onEnd
        self._reason: tuple[str, str] | None = None
        self._folder: Path | None = None

    def start(self) -> None:
        """Check, hand the arrays over, and ask the worker."""
        request = self._request
        if request.output is not None:
            mrml.check_output_node(request.output)
        voxels = [mrml.volume_voxels(node) for node in request.volumes]
        self._geometry = voxels[0][1]
        options = dict(request.options)
        if request.roi is not None:
            region = mrml.read_region(request.roi)
            region.box(self._geometry)
            options["region"] = asdict(region)
        self._states = [mrml.volume_state(node) for node in request.volumes]
        self._outputState = None if request.output is None else mrml.segmentation_state(request.output)
        self._started = time.monotonic()
        self._folder = Path(tempfile.mkdtemp(prefix="DeepLabSeg-", dir=slicer.app.temporaryPath))
        try:
            channels = [self._save(f"{n}.npy", *channel) for n, channel in enumerate(voxels)]
        except BaseException:
            self._removeFolder()
            raise
        self._observer = slicer.mrmlScene.AddObserver(slicer.vtkMRMLScene.NodeRemovedEvent, self._onNodeRemoved)
        self._id = self._worker.request(
            "segment",
            self._onAnswer,
            folder=str(self._folder),
            channels=channels,
            choice=dict(request.choice),
            options=options,
            surfaces=request.show3D,
        )

    def cancel(self, kind: str = "Cancelled", message: str = "") -> None:
        """Stop between two tiles, or by force after 3 s; the run then ends with an error of `kind`."""
        if self._reason is None and self._folder is not None:
            self._reason = (kind, message or _("cancelled; nothing was changed"))
            self._worker.cancel(self._id)
            qt.QTimer.singleShot(CANCEL_WITHIN_MS, self._endByForce)

    def _endByForce(self) -> None:
        if self._folder is not None:
            self._worker.stop()

    def _onNodeRemoved(self, *_args: Any) -> None:
        gone = [node for node in (*self._request.volumes, self._request.output) if node and not _isInScene(node)]
        if gone:
            names = ", ".join(node.GetName() for node in gone)
            self.cancel("NodeRemoved", _("{names} was deleted during the run; nothing was changed").format(names=names))

    def _changed(self) -> str:
        """What is to be said where a volume is another by now; empty where none is."""
        states = zip(self._request.volumes, self._states, strict=True)
        names = [node.GetName() for node, state in states if mrml.volume_state(node) != state]
        if not names:
            return ""
        return _("the volume {name} was changed during the run; run again").format(name=names[0])

    def _onAnswer(self, answer: Answer) -> None:
        if "progress" in answer:
            changed = self._changed()
            if changed:  # a result would be of voxels that are gone, so that nobody need wait for it
                self.cancel("InvalidInput", changed)
            if self._reason is None:
                self._onProgress(answer["progress"])
            return
        slicer.mrmlScene.RemoveObserver(self._observer)
        try:
            result = self._result(answer)
        finally:
            self._removeFolder()
        self._onEnd(result)

    def _result(self, answer: Answer) -> RunResult:
        if self._reason is not None:
            return self._failed(*self._reason)
        if "error" in answer:
            if answer["error"]["kind"] in TORCH_ERRORS:
                self._worker.stop()  # the next run gets a process of its own
            return self._failed(answer["error"]["kind"], answer["error"]["message"])
        try:
            return self._write(answer["result"])
        except Exception as error:  # whatever it is, the panel must hear of the end
            if not isinstance(error, DeepLabSegError | OSError):
                traceback.print_exc()
            return self._failed(type(error).__name__, str(error) or type(error).__name__)

    def _write(self, report: Mapping[str, Any]) -> RunResult:
        from DeepLabSegLib.surface import read_surface

        request, volume = self._request, self._request.volumes[0]
        changed = self._changed()
        if changed:
            raise InvalidInput(changed)
        labels = Labels(
            np.load(self._folder / report["labels"]),
            self._geometry,
            tuple(from_json(Segment, segment) for segment in report["segments"]),
            **{name: np.load(self._folder / report[name]) for name in SCORE_MAPS if name in report},
        )
        surfaces = None
        if "surfaces" in report:
            surfaces = {name: read_surface(self._folder / file) for name, file in report["surfaces"].items()}
        output, note = request.output, ""
        if output is not None and mrml.segmentation_state(output) != self._outputState:
            note = _("{name} was edited during the run, and is kept.").format(name=output.GetName())
            output = None
        with slicer.util.RenderBlocker():  # else every view is drawn anew for every segment
            segmentation = mrml.write_result(labels, volume, output, surfaces)
        return RunResult(segmentation, note, report, time.monotonic() - self._started)

    def _failed(self, kind: str, message: str) -> RunResult:
        return RunResult(errorKind=kind, errorMessage=message, seconds=time.monotonic() - self._started)

    def _save(self, name: str, array: np.ndarray, geometry: Geometry) -> dict[str, Any]:
        try:
            np.save(self._folder / name, array)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise OutputError(
                _(
                    "the disk of {folder} is full: {size:.0f} MB are needed to hand the volume over; free some space"
                ).format(folder=self._folder.parent, size=array.nbytes / 1e6)
            ) from None
        return {"file": name, "affine": geometry.affine.tolist()}

    def _removeFolder(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def _isInScene(node: Any) -> bool:
    return node.GetScene() is not None and node.GetScene().IsNodePresent(node) > 0
