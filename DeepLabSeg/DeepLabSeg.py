"""The Slicer module DeepLabSeg: choose a volume and a model, click Segment."""

import importlib.util
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)

if importlib.util.find_spec("DeepLabSegLib") is None:  # a source checkout, where the library lies beside this folder
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from DeepLabSegLib import mrml
from DeepLabSegLib.catalog import DEFAULT_MODEL
from DeepLabSegLib.errors import InvalidInput
from DeepLabSegPanel.panel import Panel
from DeepLabSegPanel.parameters import DeepLabSegParameterNode
from DeepLabSegPanel.sample import load_sample, register_sample


class DeepLabSeg(ScriptedLoadableModule):
    """What Slicer lists."""

    def __init__(self, parent: Any) -> None:
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("DeepLabSeg")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        self.parent.dependencies = []
        self.parent.contributors = ["The DeepLabSeg developers"]
        self.parent.helpText = _(
            "<p>Segments medical images with DeepLabV3+ networks, in 2D and 3D. Choose a volume, click <b>Segment</b>. "
            "It comes with models for whole-head MRI and cardiac cine MR, and opens your own.</p>"
            "<p>In the Python console:</p><pre>"
            "from DeepLabSeg import DeepLabSegLogic\n"
            "logic = DeepLabSegLogic()\n"
            "segmentation = logic.segment(getNode('MRHead'))\n"
            "cases = logic.segmentAll('/path/to/scans', outputFolder='/path/to/results')</pre>"
            "<p>Not a medical device: do not use results for diagnosis.</p>"
        )
        self.parent.acknowledgementText = _(
            "DeepLabV3+: Chen et al., ECCV 2018. The sample head is the average of 27 scans of one person "
            "(Holmes et al., 1998), whose licence lies beside it."
        )
        slicer.app.connect("startupCompleted()", register_sample)


class DeepLabSegWidget(ScriptedLoadableModuleWidget):
    """The module's place in Slicer's window; what happens there is `Panel`'s."""

    def setup(self) -> None:
        """Called once, when the module is opened for the first time."""
        ScriptedLoadableModuleWidget.setup(self)
        self.logic = DeepLabSegLogic()
        self.panel = Panel(self.resourcePath, self.logic)
        self.layout.addWidget(self.panel.widget)
        self.ui = self.panel.ui
        self.panel.start()

    def cleanup(self) -> None:
        """Called when Slicer closes or the module is reloaded."""
        self.panel.stop()

    def enter(self) -> None:
        """Called each time the module is opened."""
        self.panel.enter()

    def exit(self) -> None:
        """Called each time another module is opened; a run goes on."""


class DeepLabSegLogic(ScriptedLoadableModuleLogic):
    """Segmentation without any widget: from the console, in batch, and from `Slicer --python-script`."""

    def __init__(self) -> None:
        ScriptedLoadableModuleLogic.__init__(self)
        self._warm: Any = None

    def getParameterNode(self) -> DeepLabSegParameterNode:
        """The panel's choices in the scene."""
        return DeepLabSegParameterNode(super().getParameterNode())

    def segment(
        self,
        inputVolume: Any,
        outputSegmentation: Any = None,
        *,
        model: str = DEFAULT_MODEL,
        device: str = "auto",
        precision: str = "auto",
        furtherVolumes: Sequence[Any] = (),
        roi: Any = None,
        show3D: bool = False,
        onProgress: Callable[[Any], bool | None] | None = None,
        **options: Any,
    ) -> Any:
        """Segment `inputVolume`, and return the vtkMRMLSegmentationNode; it blocks until then.

        Parameters
        ----------
        inputVolume : scalar or colour volume node, under any linear transform.
        outputSegmentation : node whose segments are replaced; None makes one named after the volume.
        model : name of a model, or path of a model or weights file.
        device, precision : see `DeepLabSegLib.load_model`.
        furtherVolumes : the other channels, for models that take several; any geometry.
        roi : markups ROI; only what lies in it is segmented.
        show3D : also make surfaces.
        onProgress : called with `DeepLabSegLib.Progress`; returning False cancels.
        options : further fields of `DeepLabSegLib.SegmentOptions`, such as `overlap` or `mirror`. With
            `uncertainty=True` or `probabilities=True` a volume named after the input is added to the scene; the latter
            has a component per class.

        Raises
        ------
        DeepLabSegError : what can't be done, in words; the scene is as it was.
        ModuleNotFoundError : PyTorch is missing; click Segment in the panel once, which installs it.
        """
        if outputSegmentation is not None:
            mrml.check_output_node(outputSegmentation)
        segmenter, settings = self._prepare(model, device, precision, roi, options)
        volumes = [inputVolume, *furtherVolumes]
        node, _labels = _segment(volumes, outputSegmentation, segmenter, settings, show3D, onProgress)
        return node

    def segmentAll(
        self,
        scans: str | Path | Iterable[Any],
        outputFolder: str | Path | None = None,
        *,
        model: str = DEFAULT_MODEL,
        device: str = "auto",
        precision: str = "auto",
        roi: Any = None,
        show3D: bool = False,
        onProgress: Callable[[Any], bool | None] | None = None,
        onCase: Callable[[Any], object] | None = None,
        **options: Any,
    ) -> list[Any]:
        """Segment many scans with one model; one that fails doesn't stop the rest.

        `scans` is a folder or paths of scans, whose results go as `.seg.nrrd` into `outputFolder` with a `report.csv`;
        what is there already is kept, so that an interrupted batch goes on. Or it is volume nodes, whose results are
        new segmentations in the scene, with surfaces where `show3D`. Returns a `DeepLabSegLib.batch.Case` each, which
        `onCase` gets as it is finished. The rest is as in `segment`, for every scan.
        """
        from DeepLabSegLib import batch

        scans = batch.find_scans(scans) if isinstance(scans, str | Path) else list(scans)
        paths = [scan for scan in scans if isinstance(scan, str | Path)]
        if paths and outputFolder is None:
            raise InvalidInput("outputFolder is missing; say where the segmentations of the scans go")
        if outputFolder is not None and len(paths) < len(scans):
            raise InvalidInput("outputFolder is for files, and nodes' segmentations go into the scene; leave it out")
        segmenter, settings = self._prepare(model, device, precision, roi, options)
        if outputFolder is not None:
            report = Path(outputFolder) / batch.REPORT
            return batch.segment_files(
                segmenter, paths, outputFolder, settings, on_case=onCase, on_progress=onProgress, report=report
            )

        def case(volume: Any) -> Any:
            name = volume.GetName() if hasattr(volume, "GetName") else repr(volume)
            return batch.run_case(name, lambda: _segment([volume], None, segmenter, settings, show3D, onProgress)[1])

        return batch.collect(map(case, scans), onCase)

    def unload(self) -> None:
        """Let go of the model that the last call has left loaded."""
        if self._warm is not None:
            self._warm.unload()

    def _prepare(self, model: str, device: str, precision: str, roi: Any, options: dict[str, Any]) -> tuple[Any, Any]:
        from DeepLabSegLib.segmenter import SegmentOptions
        from DeepLabSegLib.session import ModelChoice, WarmModel

        region = None if roi is None else mrml.read_region(roi)
        settings = SegmentOptions(region=region, **options)
        self._warm = self._warm or WarmModel()
        return self._warm.get(ModelChoice(str(model), device, precision)), settings


def _segment(
    volumes: Sequence[Any], output: Any, segmenter: Any, options: Any, show3D: bool, onProgress: Any
) -> tuple[Any, Any]:
    """The segmentation node that was filled, and the `Labels` in it."""
    from DeepLabSegLib.surface import closed_surfaces

    image = mrml.read_volumes(volumes)
    if volumes[0].GetScene() is None:
        raise InvalidInput(f"the volume {volumes[0].GetName()} is in no scene; add it first: slicer.mrmlScene.AddNode")
    labels = segmenter.segment(image, options, onProgress)
    surfaces = closed_surfaces(labels) if show3D else None
    with slicer.util.RenderBlocker():  # else every view is drawn anew for every segment
        return mrml.write_result(labels, volumes[0], output, surfaces), labels


class DeepLabSegTest(ScriptedLoadableModuleTest):
    """The module's self-test: it segments the sample head."""

    def setUp(self) -> None:
        """An empty scene."""
        slicer.mrmlScene.Clear()

    def runTest(self) -> None:
        """All of it."""
        self.setUp()
        self.test_the_sample_head_is_segmented()

    def test_the_sample_head_is_segmented(self) -> None:
        """Volumes of the brain's parts lie where those of an adult do."""
        self.delayDisplay("Segmenting the sample head")
        volume = load_sample()
        segmentation = DeepLabSegLogic().segment(volume, device="cpu", show3D=True)
        names = [segmentation.GetSegmentation().GetNthSegment(n).GetName() for n in range(5)]
        self.assertIn("Cerebral white matter", names)
        bounds = [0.0] * 6
        segmentation.GetRASBounds(bounds)
        sizes = [high - low for low, high in zip(bounds[::2], bounds[1::2], strict=True)]
        for size in sizes:
            self.assertGreater(size, 100.0)
            self.assertLess(size, 260.0)
        self.delayDisplay("The sample head is segmented")
