"""Slicer's nodes: a volume node in, a segmentation node out. The only module that imports slicer and vtk.

It needs a scene and the MRML classes, no window and no application: it runs in Slicer and on `slicer-core` alike.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer
import vtk
import vtk.util.numpy_support  # loaded lazily from Slicer 5.13 on
from numpy.typing import NDArray

from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.image import Geometry, Image, Labels
from DeepLabSegLib.segmenter import OnProgress, Segmenter, SegmentOptions

__all__ = ["read_volume", "segment_volume", "write_segmentation"]


def segment_volume(
    volume_node: Any,
    segmentation_node: Any,
    segmenter: Segmenter,
    options: SegmentOptions | None = None,
    on_progress: OnProgress | None = None,
) -> Labels:
    """Segment `volume_node` into `segmentation_node`, whose segments are replaced; return the labels.

    The segmentation comes to lie under the volume's transform, with the volume as its reference geometry. Both
    nodes must be in a scene. Until the result is complete neither node is changed.

    Raises
    ------
    InvalidInput : no scalar or colour volume, an empty one, a label map, a non-linear transform above it, and
        whatever `Segmenter.segment` raises.
    Cancelled : `on_progress` returned False.
    """
    if segmentation_node is None or not segmentation_node.IsA("vtkMRMLSegmentationNode"):
        raise InvalidInput(f"the output is {_describe(segmentation_node)}; choose a segmentation node")
    labels = segmenter.segment(read_volume(volume_node), options, on_progress)
    write_segmentation(labels, segmentation_node, volume_node)
    return labels


def read_volume(volume_node: Any) -> Image:
    """The voxels of a scalar or colour volume node as `(C, k, j, i)`, a copy, with parent transforms applied.

    Raises `InvalidInput` for a node that is no volume, is empty or a label map, or lies under a non-linear transform.
    """
    if volume_node is None or not volume_node.IsA("vtkMRMLScalarVolumeNode"):
        raise InvalidInput(f"the input is {_describe(volume_node)}; choose a scalar or colour volume")
    if volume_node.IsA("vtkMRMLLabelMapVolumeNode"):
        raise InvalidInput(f"the input {volume_node.GetName()} is a label map; choose the image that it belongs to")
    data = volume_node.GetImageData()
    if data is None or data.GetNumberOfPoints() == 0:
        raise InvalidInput(f"the volume {volume_node.GetName()} is empty; load or create its voxels first")
    i, j, k = data.GetDimensions()
    scalars = vtk.util.numpy_support.vtk_to_numpy(data.GetPointData().GetScalars())
    array = np.moveaxis(scalars.reshape(k, j, i, -1), -1, 0).copy()
    affine = _world_from_node(volume_node) @ _node_affine(volume_node)
    try:
        return Image(array, Geometry.from_affine((k, j, i), affine))
    except InvalidInput as error:
        raise InvalidInput(f"the volume {volume_node.GetName()}: {error}") from None


def write_segmentation(labels: Labels, segmentation_node: Any, volume_node: Any) -> None:
    """Replace the segments of `segmentation_node` by `labels`, which lie on the grid of `volume_node`."""
    _register_representations()
    matrix = vtk.vtkMatrix4x4()
    volume_node.GetIJKToRASMatrix(matrix)
    layers = [_oriented_image(layer, matrix) for layer in labels.layers]
    segments = []
    for segment in labels.segments:
        vtk_segment = slicer.vtkSegment()
        vtk_segment.SetName(segment.name)
        vtk_segment.SetColor(*(part / 255 for part in segment.color))
        vtk_segment.SetLabelValue(segment.value)
        if segment.terminology is not None:
            vtk_segment.SetTag("TerminologyEntry", segment.terminology.entry)
        # Segments of one layer share its image, told apart by their label values.
        vtk_segment.AddRepresentation(_binary_labelmap(), layers[segment.layer])
        segments.append((vtk_segment, segment.id))

    modifying = segmentation_node.StartModify()
    try:
        # The transform first: geometry and labels below are in the volume's own frame.
        segmentation_node.SetAndObserveTransformNodeID(volume_node.GetTransformNodeID())
        target = segmentation_node.GetSegmentation()
        target.RemoveAllSegments()
        target.SetSourceRepresentationName(_binary_labelmap())
        segmentation_node.SetReferenceImageGeometryParameterFromVolumeNode(volume_node)
        for vtk_segment, segment_id in segments:
            target.AddSegment(vtk_segment, segment_id)
        if segmentation_node.GetDisplayNode() is None and segmentation_node.GetScene() is not None:
            segmentation_node.CreateDefaultDisplayNodes()
    finally:
        segmentation_node.EndModify(modifying)
    _place_beside(segmentation_node, volume_node)


def _node_affine(volume_node: Any) -> NDArray[np.float64]:
    """4x4 from (k, j, i) to the node's own RAS."""
    matrix = vtk.vtkMatrix4x4()
    volume_node.GetIJKToRASMatrix(matrix)
    ijk = slicer.util.arrayFromVTKMatrix(matrix)
    return ijk[:, [2, 1, 0, 3]]


def _world_from_node(node: Any) -> NDArray[np.float64]:
    """4x4 of all transforms above `node`; raises `InvalidInput` where one of them is not linear."""
    transform = node.GetParentTransformNode()
    if transform is None:
        return np.eye(4)
    if not transform.IsTransformToWorldLinear():
        raise InvalidInput(
            f"the volume {node.GetName()} lies under the non-linear transform {transform.GetName()}; harden the "
            "transform on it first (Transforms module), so that its voxels lie on a regular grid"
        )
    matrix = vtk.vtkMatrix4x4()
    transform.GetMatrixTransformToWorld(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


def _oriented_image(layer: NDArray, ijk_to_ras: Any) -> Any:
    """`(k, j, i)` as a vtkOrientedImageData with the grid of `ijk_to_ras`."""
    image = slicer.vtkOrientedImageData()
    image.SetDimensions(*layer.shape[::-1])
    scalars = vtk.util.numpy_support.numpy_to_vtk(np.ascontiguousarray(layer).ravel(), deep=True)
    image.GetPointData().SetScalars(scalars)
    image.SetImageToWorldMatrix(ijk_to_ras)
    return image


def _binary_labelmap() -> str:
    return slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()


def _register_representations() -> None:
    """Outside Slicer's application nobody has told vtkSegmentation how a binary label map is made."""
    factory = slicer.vtkSegmentationConverterFactory.GetInstance()
    if factory.ConstructRepresentationObjectByRepresentation(_binary_labelmap()) is None:
        # The logic registers the rules for the whole process when it meets a scene; the user's stays untouched.
        logic = slicer.vtkSlicerSegmentationsModuleLogic()
        logic.SetMRMLScene(slicer.vtkMRMLScene())


def _place_beside(segmentation_node: Any, volume_node: Any) -> None:
    """Put the segmentation into the folder or study of the volume in the subject hierarchy."""
    scene = segmentation_node.GetScene()
    if scene is None:
        return
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    if hierarchy is None:
        return
    volume_item = hierarchy.GetItemByDataNode(volume_node)
    segmentation_item = hierarchy.GetItemByDataNode(segmentation_node)
    if volume_item and segmentation_item:  # a scene without the hierarchy's plugins has no items
        hierarchy.SetItemParent(segmentation_item, hierarchy.GetItemParent(volume_item))


def _describe(node: Any) -> str:
    return "missing" if node is None else f"{node.GetName()}, a {node.GetClassName()}"
