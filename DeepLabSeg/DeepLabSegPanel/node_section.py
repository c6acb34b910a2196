"""The panel's part on nodes: which are chosen as input and output, and what is to be said of them."""

from collections.abc import Callable
from typing import Any

import qt
import slicer
import vtk
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from DeepLabSegLib import mrml
from DeepLabSegLib.catalog import ModelCard
from DeepLabSegLib.errors import InvalidInput
from DeepLabSegPanel.channels import ChannelSelectors
from DeepLabSegPanel.tones import BAD, DOUBT, tell_or_hide

NOTHING: tuple[Any, Any] = (None, None)
SELECTORS = {"inputSelector": "inputVolume", "roiSelector": "roi", "outputSelector": "outputSegmentation"}
"""Selector of nodes -> the parameter that it sets."""

CHOSEN_AS = "DeepLabSeg.chosenAs"
"""Attribute of an output: its digest when it was chosen. A scene may be edited before there is a panel to see it."""

INPUT_CLASSES = ("vtkMRMLScalarVolumeNode", "vtkMRMLVectorVolumeNode")


class NodeSection(VTKObservationMixin):
    """Shows what the parameter node chooses. `onChanged()` is called when a chosen node becomes another or changes."""

    def __init__(self, ui: Any, onChanged: Callable[[], None]) -> None:
        VTKObservationMixin.__init__(self)
        self.ui = ui
        self._onChanged = onChanged
        self._channels = ChannelSelectors(ui.channelsFrame, onChanged)
        self._parameters: Any = None
        self._card: ModelCard | None = None
        self._lastInput = NOTHING
        self._chosen = NOTHING
        self._kept: Any = None
        self._watched: list[Any] = []
        for name, parameter in SELECTORS.items():
            # With Qt 6 a selector tells of no change from a node to its namesake, such as an earlier scan's series.
            getattr(ui, name).connect("nodeActivated(vtkMRMLNode*)", lambda node, p=parameter: self._onPicked(p, node))
        ui.roiSelector.connect("nodeAddedByUser(vtkMRMLNode*)", self._onNewRegion)

    @property
    def volumes(self) -> list[Any]:
        """The chosen volumes, a channel or more each, in the model's order."""
        return [node for node in (self._parameters.inputVolume, *self._channels.nodes) if node is not None]

    def start(self, parameters: Any) -> None:
        """Take what `parameters` choose, but no output that was edited since, and the first volume where there is no
        other choice.
        """
        self._parameters = parameters
        self.chooseFirstVolume()
        self._lastInput = _input(parameters)
        output = parameters.outputSegmentation
        chosenAs = None if output is None else output.GetAttribute(CHOSEN_AS)
        if chosenAs and chosenAs != mrml.segmentation_digest(output):
            self._kept, parameters.outputSegmentation = output, None

    def stop(self) -> None:
        """Let go of all nodes."""
        self._parameters = None
        self._chosen, self._kept = NOTHING, None
        self._watch([])

    def takeResult(self, segmentation: Any) -> None:
        """Choose a run's result as output, so that the next run replaces it, unless someone edits it before."""
        if not _holdsAnother(segmentation, self._parameters.inputVolume):
            self._choose(segmentation)
            self._parameters.outputSegmentation = segmentation

    def chooseFirstVolume(self) -> None:
        """Choose a volume where none is."""
        volumes = _listedVolumes()
        if self._parameters.inputVolume is None and volumes:
            self._parameters.inputVolume = volumes[0]

    def leaveOut(self, node: Any) -> None:
        """Choose nothing where `node` is, which leaves: a selector would choose its neighbour, which the next run then
        replaces.
        """
        for name in ("roi", "outputSegmentation"):
            if getattr(self._parameters, name) is node:
                setattr(self._parameters, name, None)
        if self._kept is node:
            self._kept = None
        self._channels.leaveOut(node)

    def show(self, card: ModelCard | None, isIdle: bool) -> None:
        """Bring this part of the panel up to the parameters and to the model that they name."""
        parameters, ui = self._parameters, self.ui
        self._card = card
        self._lookAtInput()
        if isIdle:
            self._lookAtOutput()
        wanted = () if card is None else card.input.channels
        self._channels.show(wanted, _components(parameters.inputVolume), parameters.parameterNode)
        ui.sampleButton.visible = not _listedVolumes()
        tell_or_hide(ui.inputMessageLabel, self.problem(), BAD)
        tell_or_hide(ui.outputMessageLabel, self._remark(), DOUBT)
        self._watch([*self.volumes, parameters.roi, parameters.outputSegmentation, self._kept])

    def problem(self) -> str:
        """What is wrong with the input; empty where nothing is."""
        parameters, card = self._parameters, self._card
        if parameters.inputVolume is None:
            return ""
        try:
            mrml.volume_voxels(parameters.inputVolume)
            if parameters.roi is not None:
                mrml.read_region(parameters.roi)
        except InvalidInput as error:
            return str(error)
        if card is None:
            return ""
        given, wanted = sum(map(_components, self.volumes)), len(card.input.channels)
        colours = _components(parameters.inputVolume)
        if colours > wanted:
            return _(
                "{volume} has {n} values per voxel, as colours do, and {model} takes {wanted}; make grey ones of them "
                "in the module Vector to Scalar Volume first."
            ).format(volume=parameters.inputVolume.GetName(), n=colours, model=card.name, wanted=wanted)
        if given != wanted:
            return _("{name} takes {wanted} ({channels}); chosen: {given}.").format(
                name=card.name,
                wanted=_("one image") if wanted == 1 else _("{n} images").format(n=wanted),
                channels=", ".join(card.input.channels),
                given=given,
            )
        if card.network.dims == 3 and min(parameters.inputVolume.GetImageData().GetDimensions()) == 1:
            return _("{model} is 3D, and {volume} is a single slice; choose a 2D model.").format(
                model=card.name, volume=parameters.inputVolume.GetName()
            )
        return ""

    def keepEdits(self) -> None:
        """An output that is edited after it was chosen is kept: it is replaced only where it is chosen again."""
        output, (chosen, state) = self._parameters.outputSegmentation, self._chosen
        if output is not chosen:
            self._choose(output)
        elif output is not None:
            now = mrml.segmentation_state(output)
            if now == state:
                self._chosen = (output, now)  # which lets go of images that others have replaced
            else:
                self._chosen, self._kept = NOTHING, output
                self._parameters.outputSegmentation = None

    def _lookAtInput(self) -> None:
        """The result of a new scan, or of another frame in the same volume, must not replace the one before."""
        parameters, last, now = self._parameters, self._lastInput, _input(self._parameters)
        if now == last:
            return
        self._lastInput = now
        volume, output = parameters.inputVolume, parameters.outputSegmentation
        if volume is last[0]:
            isOfBefore = _hasSegments(output)
        else:
            self._kept, isOfBefore = None, _holdsAnother(output, volume)
        if isOfBefore:
            parameters.outputSegmentation = None

    def _lookAtOutput(self) -> None:
        output, (chosen, state) = self._parameters.outputSegmentation, self._chosen
        if output is not None and output is chosen and mrml.has_other_layers(output, state):
            qt.QTimer.singleShot(0, self._onLayersThere)  # Slicer may be in the midst of saving it
        else:
            self.keepEdits()

    def _onLayersThere(self) -> None:
        if self._parameters is not None:
            self.keepEdits()

    def _choose(self, output: Any) -> None:
        if output is not None:
            self._chosen, self._kept = (output, mrml.segmentation_state(output)), None
            output.SetAttribute(CHOSEN_AS, mrml.segmentation_digest(output))
        else:
            self._chosen = NOTHING

    def _remark(self) -> str:
        output = self._parameters.outputSegmentation
        if self._kept is not None:
            return _("{name} was edited and is kept; choose it to have it replaced.").format(name=self._kept.GetName())
        count = 0 if output is None else output.GetSegmentation().GetNumberOfSegments()
        if count == 1:
            return _("Its segment will be replaced.")
        return _("Its {n} segments will be replaced.").format(n=count) if count else ""

    def _watch(self, nodes: list[Any]) -> None:
        """What is said of nodes must follow them: voxels come, a region is drawn, segments are added."""
        nodes = list(dict.fromkeys(node for node in nodes if node is not None))  # one may be two channels
        if nodes != self._watched:
            self.removeObservers()
            self._watched = nodes
            for node in nodes:
                for event in _events(node):
                    self.addObserver(node, event, self._onNodeChanged)

    def _onPicked(self, parameter: str, node: Any) -> None:
        if self._parameters is not None and getattr(self._parameters, parameter) is not node:
            setattr(self._parameters, parameter, node)

    def _onNewRegion(self, roi: Any) -> None:
        volume = self._parameters.inputVolume
        if volume is not None and volume.GetImageData() is not None:  # else it is to be drawn
            mrml.fit_region(roi, volume)
            roi.CreateDefaultDisplayNodes()
            roi.GetDisplayNode().SetFillVisibility(False)  # it would tint the whole scan

    def _onNodeChanged(self, *_args: Any) -> None:
        self._onChanged()


def _listedVolumes() -> list[Any]:
    """What the selector of the input lists: neither label maps nor series."""
    nodes = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
    return [node for node in nodes if node.GetClassName() in INPUT_CLASSES and not node.GetHideFromEditors()]


def _input(parameters: Any) -> tuple[Any, Any]:
    """The chosen volume, and what changes with its voxels."""
    volume = parameters.inputVolume
    return volume, None if volume is None else mrml.volume_state(volume)


def _hasSegments(segmentation: Any) -> bool:
    return segmentation is not None and segmentation.GetSegmentation().GetNumberOfSegments() > 0


def _holdsAnother(segmentation: Any, volume: Any) -> bool:
    """Whether a segmentation has segments, and not of this volume."""
    return _hasSegments(segmentation) and mrml.segmented_volume(segmentation) is not volume


def _components(volume: Any) -> int:
    data = None if volume is None else volume.GetImageData()
    return 1 if data is None else data.GetNumberOfScalarComponents()


def _events(node: Any) -> tuple[int, ...]:
    events = (vtk.vtkCommand.ModifiedEvent, slicer.vtkMRMLTransformableNode.TransformModifiedEvent)
    if not node.IsA("vtkMRMLSegmentationNode"):
        return events
    segmentation = slicer.vtkSegmentation
    return (
        *events,
        segmentation.SegmentAdded,
        segmentation.SegmentRemoved,
        segmentation.SegmentModified,
        segmentation.SegmentsOrderModified,
        segmentation.SourceRepresentationModified,
    )
