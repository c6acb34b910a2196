"""What the panel keeps in the scene."""

from typing import Annotated

from slicer import vtkMRMLMarkupsROINode, vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode, vtkMRMLVectorVolumeNode
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper

from DeepLabSegLib.catalog import DEFAULT_MODEL


@parameterNodeWrapper
class DeepLabSegParameterNode:
    """The panel's choices. Those of a list that changes, such as devices, are kept as text.

    inputVolume, roi, outputSegmentation - nodes; no output means a new one.
    model - a model's name; empty where a file is chosen.
    weightsPath - that file, or a model's folder.
    labels, normalization, spacing, orientation, activation, dilationRates, encoder, depth - what a person says of bare
        weights; empty (0) where nothing.
    device, precision, overlap, mirror, tile, sliceAxis, threshold - how to run.
    show3D, uncertainty - what else to make.
    """

    inputVolume: vtkMRMLScalarVolumeNode | vtkMRMLVectorVolumeNode | None  # what the selector then lists
    roi: vtkMRMLMarkupsROINode | None
    outputSegmentation: vtkMRMLSegmentationNode | None
    model: str = DEFAULT_MODEL
    weightsPath: str = ""
    labels: str = ""
    normalization: str = ""
    spacing: str = ""
    orientation: str = ""
    activation: str = ""
    dilationRates: str = ""
    encoder: str = ""
    depth: int = 0
    device: str = "auto"
    precision: str = "auto"
    overlap: Annotated[float, WithinRange(0.0, 0.9)] = 0.25
    mirror: bool = False
    tile: str = ""
    sliceAxis: str = ""
    threshold: Annotated[float, WithinRange(0.05, 0.95)] = 0.5
    show3D: bool = True
    uncertainty: bool = False
