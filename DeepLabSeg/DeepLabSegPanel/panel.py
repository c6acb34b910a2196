"""The panel: widgets in, calls out."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import qt
import slicer
import vtk
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from DeepLabSegLib.errors import DeepLabSegError, InvalidInput
from DeepLabSegLib.texts import parse_sizes
from DeepLabSegPanel import combo, torch_setup
from DeepLabSegPanel.model_section import FILE, SAID, ModelSection, typed_path
from DeepLabSegPanel.node_section import NodeSection
from DeepLabSegPanel.run import RunRequest, RunResult, SegmentationRun
from DeepLabSegPanel.sample import load_sample
from DeepLabSegPanel.tones import BAD, DOUBT, GOOD, PLAIN, repaint, tell
from DeepLabSegPanel.worker_process import Answer, WorkerProcess

COMBOS = {
    "modelComboBox": "model",
    "encoderComboBox": "encoder",
    "depthComboBox": "depth",
    "activationComboBox": "activation",
    "deviceComboBox": "device",
    "precisionComboBox": "precision",
    "sliceAxisComboBox": "sliceAxis",
}
"""Combo box -> the parameter that it sets."""

KERAS_ENDINGS = (".h5", ".keras")


class Panel(VTKObservationMixin):
    """The module's widgets and what they do. At any time it is idle, installs PyTorch, or runs."""

    def __init__(self, resourcePath: Callable[[str], str], logic: Any) -> None:
        VTKObservationMixin.__init__(self)
        self.logic = logic
        self.worker = WorkerProcess(self._log)
        self.widget = slicer.util.loadUI(resourcePath("UI/DeepLabSeg.ui"))
        self.ui = slicer.util.childWidgetVariables(self.widget)
        self._requirements = torch_setup.read_requirements(resourcePath("requirements.txt"))
        self._parameters: Any = None
        self._guiTag: Any = None
        self._run: SegmentationRun | None = None
        self._installer: torch_setup.TorchInstaller | None = None
        self._clickedAt = 0.0
        self._is3DEmpty = False
        self._stageStarted = ("", 0.0)
        self._notes: list[str] = []
        self._isRefusal = False

    # --- coming and going --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Fill the widgets and connect everything."""
        ui = self.ui
        self.model = ModelSection(ui, self.worker, self._missing, self._update)
        self.nodes = NodeSection(ui, self._onChoice)
        combo.fill(ui.deviceComboBox, [(_("Automatic"), "auto"), (_("CPU"), "cpu")])
        precisions = {"auto": _("Automatic"), "fp32": "fp32", "bf16": "bf16", "fp16": _("fp16 (graphics card)")}
        combo.fill(ui.precisionComboBox, [(text, value) for value, text in precisions.items()])
        axes = {"": _("Automatic"), "axial": _("axial"), "coronal": _("coronal"), "sagittal": _("sagittal")}
        combo.fill(ui.sliceAxisComboBox, [(text, value) for value, text in axes.items()])
        ui.progressBar.visible = False
        for name, parameter in COMBOS.items():
            widget = getattr(ui, name)
            widget.connect("currentIndexChanged(int)", lambda _index, w=widget, p=parameter: self._onCombo(w, p))
        ui.normalizationComboBox.connect("editTextChanged(QString)", self._onNormalization)
        ui.weightsPathLineEdit.connect("currentPathChanged(QString)", self._onWeightsPath)
        ui.weightsPathLineEdit.connect("validInputChanged(bool)", self._onWeightsPathValid)
        ui.segmentButton.connect("clicked()", self._onSegmentButton)
        ui.unloadButton.connect("clicked()", self._onUnload)
        ui.copyLogButton.connect("clicked()", self._onCopyLog)
        ui.sampleButton.connect("clicked()", self._onSample)
        self.widget.setMRMLScene(slicer.mrmlScene)
        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, self._onSceneStartClose)
        self.addObserver(scene, scene.EndCloseEvent, self._onSceneThere)
        self.addObserver(scene, scene.StartImportEvent, self._onSceneStartImport)
        self.addObserver(scene, scene.EndImportEvent, self._onSceneThere)
        self.addObserver(scene, scene.NodeAboutToBeRemovedEvent, self._onNodeLeaves)
        for event in (scene.NodeAddedEvent, scene.NodeRemovedEvent, scene.EndBatchProcessEvent):
            self.addObserver(scene, event, self._onNodesChanged)
        slicer.app.connect("aboutToQuit()", self.worker.stop)
        slicer.app.connect("paletteChanged(QPalette)", self._onPalette)
        self._connectParameters()
        self._greet()

    def stop(self) -> None:
        """End the worker and let go of the scene."""
        if self._run is not None:
            self._run.cancel()
        if self._installer is not None:
            self._installer.cancel()
        slicer.app.disconnect("aboutToQuit()", self.worker.stop)
        slicer.app.disconnect("paletteChanged(QPalette)", self._onPalette)
        self.model.stop()
        self.worker.stop()
        self._disconnectParameters()
        self.removeObservers()

    def enter(self) -> None:
        """The module was opened: see which models, volumes and devices are there now."""
        if self._parameters is None:
            self._connectParameters()
        self.model.refresh()
        self.nodes.chooseFirstVolume()
        self._update()
        if not self._missing():
            self.worker.request("hello", self._onDevices)

    def _connectParameters(self) -> None:
        self._disconnectParameters()
        self._parameters = self.logic.getParameterNode()
        self.model.refresh()
        self.nodes.start(self._parameters)
        self._guiTag = self._parameters.connectGui(self.ui)
        self.addObserver(self._parameters, vtk.vtkCommand.ModifiedEvent, self._onChoice)
        self._update()

    def _disconnectParameters(self) -> None:
        if self._parameters is not None:
            self._parameters.disconnectGui(self._guiTag)
            self.removeObserver(self._parameters, vtk.vtkCommand.ModifiedEvent, self._onChoice)
            self.nodes.stop()
            self._parameters = None

    def _onSceneStartClose(self, *_args: Any) -> None:
        if self._run is not None:
            self._run.cancel("SceneClosed", _("the scene was closed during the run; there is no result"))
        elif self._installer is None:
            self._say("")  # what was said of this scene
        self.worker.stop()
        self._disconnectParameters()

    def _onSceneStartImport(self, *_args: Any) -> None:
        self._disconnectParameters()  # until the selectors list the nodes that it brings

    def _onSceneThere(self, *_args: Any) -> None:
        self._connectParameters()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _onNodeLeaves(self, _scene: Any, _event: Any, node: Any) -> None:
        if self._parameters is not None:
            self.nodes.leaveOut(node)

    def _onNodesChanged(self, *_args: Any) -> None:
        if self._parameters is not None and not slicer.mrmlScene.IsBatchProcessing():
            self.nodes.chooseFirstVolume()
            self._update()

    def _greet(self) -> None:
        waiting = torch_setup.recall_run()
        if waiting is not None:
            self._say(
                _("PyTorch is ready. Before the restart you were about to segment {volume} with {model}.").format(
                    **waiting
                )
            )

    # --- keeping the widgets true ------------------------------------------------------------------------------------

    def _update(self, *_args: Any) -> None:
        """Bring the panel up to the parameters."""
        parameters, ui = self._parameters, self.ui
        if parameters is None or slicer.mrmlScene.IsBatchProcessing():  # at whose end it comes again
            return
        self.model.show(parameters)
        device = parameters.device
        combo.choose(ui.deviceComboBox, device, _("{name} (not seen here)").format(name=device))
        combo.choose(ui.precisionComboBox, parameters.precision)
        combo.choose(ui.sliceAxisComboBox, parameters.sliceAxis)
        card = self.model.card
        ui.sliceAxisComboBox.enabled = card is None or (card.network.dims == 2 and card.input.orientation is not None)
        ui.mirrorCheckBox.enabled = card is None or card.input.mirror_axes != ()
        ui.thresholdSlider.enabled = card is None or card.network.classifier_activation == "sigmoid"
        idle = self._run is None and self._installer is None
        self.nodes.show(card, idle)
        ui.segmentButton.text = _("Segment") if idle else _("Cancel")
        for name in (
            "inputCollapsibleButton",
            "modelCollapsibleButton",
            "outputCollapsibleButton",
            "runCollapsibleButton",
        ):
            getattr(ui, name).enabled = idle
        ui.unloadButton.enabled = self.worker.isRunning

    def _onChoice(self, *_args: Any) -> None:
        if self._isRefusal:  # of what was chosen before
            self._say("")
        self._update()

    def _onCombo(self, widget: Any, parameter: str) -> None:
        value = combo.chosen(widget)
        if self._parameters is not None and value is not None:
            setattr(self._parameters, parameter, value)

    def _onNormalization(self, text: str) -> None:
        if self._parameters is not None:
            self._parameters.normalization = text

    def _onWeightsPath(self, path: str) -> None:
        if self._parameters is not None and path != self._parameters.weightsPath:
            self._parameters.weightsPath = path
            for name, nothing in SAID.items():
                setattr(self._parameters, name, nothing)  # what was said of another file
            if path:
                self._parameters.model = FILE

    def _onWeightsPathValid(self, isValid: bool) -> None:
        if not isValid:  # an emptied field tells no path
            self._onWeightsPath("")

    def _onDevices(self, answer: Answer) -> None:
        if "error" in answer:
            self._log(answer["error"]["message"])
            return
        entries = [
            (_("Automatic"), "auto"),
            *((_device(entry), entry["name"]) for entry in answer["result"]["devices"]),
        ]
        combo.fill(self.ui.deviceComboBox, entries)
        self._log(_("PyTorch {version} is ready.").format(version=answer["result"]["torch"]))
        self._update()

    # --- the button --------------------------------------------------------------------------------------------------

    def _onSegmentButton(self) -> None:
        if time.monotonic() < self._clickedAt + slicer.app.doubleClickInterval / 1000:
            return  # the second half of a double click
        if self._run is not None:
            self._say(_("Cancelling …"))
            self._run.cancel()
        elif self._installer is not None:
            self._installer.cancel()
        else:
            self._attempt(self._install if self._missing() else self._startRun)
        self._clickedAt = time.monotonic()  # not before: what was done may have held up the second click

    def _attempt(self, action: Callable[[RunRequest], None]) -> None:
        """Do it with what is chosen, or say why it can't be done."""
        try:
            action(self._request())
        except (DeepLabSegError, OSError) as error:
            self._say(str(error), BAD)
            self._isRefusal = True
            self._log(str(error))

    def _startRun(self, request: RunRequest) -> None:
        run = SegmentationRun(request, self.worker, self._onProgress, self._onEnd)
        run.start()
        self._run = run  # not before: what can't start never ends
        self._is3DEmpty = not any(map(_isSeenIn3D, slicer.util.getNodesByClass("vtkMRMLSegmentationNode")))
        self._stageStarted = ("", 0.0)
        self._notes = []
        self._sayBusy(_("Starting …"))
        self._log(_("Segmenting {name} …").format(name=self._parameters.inputVolume.GetName()))
        self._log(self.ui.modelMessageLabel.text)
        self._update()

    def _request(self) -> RunRequest:
        parameters = self._parameters
        if parameters.inputVolume is None:
            raise InvalidInput(_("no volume is chosen; choose the scan to segment, or load the sample head"))
        choice = self.model.choice()
        problem = self.nodes.problem()
        if problem:
            raise InvalidInput(problem)
        self.nodes.keepEdits()
        options = {
            "overlap": parameters.overlap,
            "mirror": parameters.mirror and self.ui.mirrorCheckBox.enabled,
            "uncertainty": parameters.uncertainty,
        }
        if self.ui.thresholdSlider.enabled:
            options["threshold"] = parameters.threshold
        if parameters.tile.strip():
            options["tile"] = list(parse_sizes(parameters.tile))
        if parameters.sliceAxis and self.ui.sliceAxisComboBox.enabled:
            options["slice_axis"] = parameters.sliceAxis
        return RunRequest(
            self.nodes.volumes, parameters.outputSegmentation, parameters.roi, choice, options, parameters.show3D
        )

    def _onProgress(self, progress: Mapping[str, Any]) -> None:
        stage, done, total = progress["stage"], progress["done"], progress["total"]
        if progress.get("note"):
            self._notes.append(progress["note"])
            self._log(progress["note"])
        if stage != self._stageStarted[0]:
            self._stageStarted = (stage, time.monotonic())
        bar = self.ui.progressBar
        bar.setRange(0, total if total > 1 else 0)
        bar.value = done
        text = STAGES.get(stage, stage)
        if total > 1:
            text = f"{text}: {done} / {total}" + _timeLeft(time.monotonic() - self._stageStarted[1], done, total)
        self._say(text)

    def _onEnd(self, result: RunResult) -> None:
        self._run = None
        self.ui.progressBar.visible = False
        if result.errorKind:
            self._say(result.errorMessage, PLAIN if result.errorKind == "Cancelled" else BAD)
            self._log(result.errorMessage)
        else:
            self._showResult(result)
        self._update()

    def _showResult(self, result: RunResult) -> None:
        report, name = result.report, result.segmentation.GetName()
        ready = _(
            "{name} is ready: {seconds:.1f} s, {inference:.1f} s of it on {device} in {precision}, {gb:.1f} GB at most."
        ).format(
            name=name,
            seconds=result.seconds,
            inference=report["seconds"],
            device=report["device"],
            precision=report["precision"],
            gb=report["peak_bytes"] / 1e9,
        )
        empty = "" if any(report["volumes_ml"].values()) else _("None of the model's segments was found.")
        said = filter(None, [ready, empty, result.note, *self._notes])
        self._say(" ".join(said), DOUBT if empty else GOOD)
        self._log("\n".join([self.ui.statusLabel.text, *(f"{k}: {v:.1f} ml" for k, v in report["volumes_ml"].items())]))
        result.segmentation.GetDisplayNode().SetVisibility(True)
        if self._parameters is not None:
            self.nodes.takeResult(result.segmentation)
        if "surfaces" in report and self._is3DEmpty:  # else someone may have turned it
            _centre3D()

    def _onUnload(self) -> None:
        self.worker.stop()
        self._say(_("The model is unloaded and its memory free."))
        self._update()

    def _onSample(self) -> None:
        self._parameters.inputVolume = load_sample()

    # --- PyTorch -----------------------------------------------------------------------------------------------------

    def _needed(self) -> list[Any]:
        """What the chosen model needs of Slicer's Python."""
        ending = typed_path(self._parameters.weightsPath).suffix.lower()
        isKeras = self._parameters.model == FILE and ending in KERAS_ENDINGS
        return [requirement for requirement in self._requirements if requirement.name != "h5py" or isKeras]

    def _missing(self) -> list[str]:
        return torch_setup.missing(self._needed())

    def _install(self, _request: RunRequest) -> None:
        wanted = self._missing()
        torch_setup.check_platform(wanted)
        question = _(
            "DeepLabSeg needs packages that are not installed yet: {packages}.\n\nThey are downloaded once (0.2 to "
            "3 GB) into Slicer's Python; Slicer's own packages stay as they are. Install them now?"
        ).format(packages=", ".join(wanted))
        if not torch_setup.has_pytorch_extension():
            question += _(
                "\n\n(To use a graphics card under Windows, answer No and install the extension PyTorch first.)"
            )
        if not slicer.util.confirmYesNoDisplay(question, windowTitle=_("DeepLabSeg")):
            self._say(
                _("{packages} is needed to segment; nothing was installed.").format(packages=", ".join(wanted)), BAD
            )
            return
        self._installer = torch_setup.TorchInstaller(self._onInstallLine, self._onInstalled)
        self._sayBusy(_("Installing {packages} …").format(packages=", ".join(wanted)))
        self._update()
        self._installer.start(wanted)

    def _onInstallLine(self, line: str) -> None:
        self._log(line)
        self._say(line[:120])

    def _onInstalled(self, error: str) -> None:
        self._installer = None
        if self._parameters is None:  # the module was closed
            return
        self.ui.progressBar.visible = False
        wanted = self._missing()
        if error:
            self._say(_("The installation failed: {error}").format(error=error), BAD)
        elif wanted:
            self._offerRestart(wanted)
        else:
            self._log(_("Installed."))
            self.model.refresh()
            self._attempt(self._startRun)
        self._update()

    def _offerRestart(self, wanted: list[str]) -> None:
        """The packages are there, but this Slicer doesn't see them yet."""
        volume = self._parameters.inputVolume
        model = self._parameters.model or typed_path(self._parameters.weightsPath).name
        torch_setup.remember_run(volume.GetName() if volume else _("a volume"), model)
        self._say(_("Restart Slicer, so that it finds {packages}.").format(packages=", ".join(wanted)), BAD)
        if slicer.util.confirmYesNoDisplay(_("Slicer must restart to find PyTorch. Restart now?")):
            slicer.util.restart()

    # --- telling -----------------------------------------------------------------------------------------------------

    def _say(self, text: str, tone: str = PLAIN) -> None:
        self._isRefusal = False
        tell(self.ui.statusLabel, text, tone)

    def _sayBusy(self, text: str) -> None:
        """Say what has begun, over a bar that shows no end yet."""
        self.ui.progressBar.setRange(0, 0)
        self.ui.progressBar.visible = True
        self._say(text)

    def _onPalette(self, palette: Any) -> None:
        repaint(self.widget, palette)

    def _log(self, text: str) -> None:
        if text:
            self.ui.logTextEdit.appendPlainText(f"{time.strftime('%H:%M:%S')}  {text}")

    def _onCopyLog(self) -> None:
        qt.QApplication.clipboard().setText(self.ui.logTextEdit.plainText)


STAGES = {
    "load": _("Loading the model"),
    "prepare": _("Preparing the scan"),
    "segment": _("Segmenting"),
    "restore": _("Bringing the labels back"),
    "surface": _("Making surfaces"),
}


def _timeLeft(elapsed: float, done: int, total: int) -> str:
    if done < 1 or elapsed < 1:
        return ""
    seconds = elapsed * (total - done) / done
    if seconds < 60:
        return _(", about {n:.0f} s left").format(n=max(1, seconds))
    return _(", about {n:.0f} min left").format(n=seconds / 60)


def _isSeenIn3D(segmentation: Any) -> bool:
    display = segmentation.GetDisplayNode()
    hasSurfaces = segmentation.GetSegmentation().ContainsRepresentation("Closed surface")
    return hasSurfaces and display is not None and bool(display.GetVisibility() and display.GetVisibility3D())


def _centre3D() -> None:
    if slicer.app.layoutManager() is not None:
        slicer.util.resetThreeDViews()


def _device(entry: Mapping[str, Any]) -> str:
    if "total_bytes" not in entry:
        return entry["title"]
    return _("{title}, {free:.1f} of {total:.1f} GB free").format(
        title=entry["title"], free=entry["free_bytes"] / 1e9, total=entry["total_bytes"] / 1e9
    )
