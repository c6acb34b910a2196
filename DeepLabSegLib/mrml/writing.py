"""Into nodes: segments with their names, colours, terminology and surfaces, and maps of numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import slicer
import vtk
import vtk.util.numpy_support  # loaded lazily from Slicer 5.13 on
from numpy.typing import NDArray

from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.image import SCORE_MAPS, Labels
from DeepLabSegLib.mrml.nodes import binary_labelmap, describe, is_a, node_affine, segment_ids, segmented_volume

__all__ = ["check_output_node", "write_map", "write_result", "write_segmentation"]

BODY_SUBSTANCE = ("SCT", "91720002")
FLUID_OPACITY = 0.15
ROLE_PREFIX = "DeepLabSeg."
"""Before uncertainty and probabilities, the roles in which a segmentation refers to its maps."""


def check_output_node(segmentation_node: Any) -> None:
    """Raise `InvalidInput` unless the node can take a result."""
    if not is_a(segmentation_node, "Segmentation"):
        raise InvalidInput(f"the output is {describe(segmentation_node)}; choose a segmentation node")


def write_result(
    labels: Labels, volume_node: Any, segmentation_node: Any = None, surfaces: Mapping[str, Any] | None = None
) -> Any:
    """Put a result into the scene of `volume_node`, all of it or nothing, and return its segmentation node.

    `segmentation_node` None makes a new one, named after the volume, as for uncertainty and probabilities; these have a
    component per class, and take the place of those that belong to the segmentation already, if it was of this volume.
    Maps that nothing takes the place of are kept, and named as of an earlier run.

    Raises what `write_segmentation` raises.
    """
    _check_size(labels, volume_node)
    scene = volume_node.GetScene()
    added = []

    def add(node_class: str, what: str) -> Any:
        node = scene.AddNewNodeByClass(node_class, scene.GenerateUniqueName(f"{volume_node.GetName()} {what}"))
        added.append(node)
        return node

    def add_map(array: NDArray, node_class: str, what: str) -> None:
        role = f"{ROLE_PREFIX}{what}"
        node = (segmentation.GetNodeReference(role) if same else None) or add(node_class, what)
        write_map(array, node, volume_node)
        segmentation.SetNodeReferenceID(role, node.GetID())

    try:
        segmentation = segmentation_node or add("vtkMRMLSegmentationNode", "segmentation")
        same = segmented_volume(segmentation) is volume_node
        former = {what: segmentation.GetNodeReference(f"{ROLE_PREFIX}{what}") for what in SCORE_MAPS}
        if labels.uncertainty is not None:
            add_map(labels.uncertainty, "vtkMRMLScalarVolumeNode", "uncertainty")
        if labels.probabilities is not None:
            components = np.moveaxis(labels.probabilities, 0, -1).astype(np.float32)
            add_map(components, "vtkMRMLVectorVolumeNode", "probabilities")
        write_segmentation(labels, segmentation, volume_node, surfaces)
    except BaseException:
        for node in added:
            scene.RemoveNode(node)
        raise
    for what, node in former.items():
        role = f"{ROLE_PREFIX}{what}"
        if getattr(labels, what) is None:
            segmentation.SetNodeReferenceID(role, None)
        if node is not None and segmentation.GetNodeReference(role) is not node:
            node.SetName(scene.GenerateUniqueName(f"{node.GetName()} of an earlier run"))
    return segmentation


def write_segmentation(
    labels: Labels, segmentation_node: Any, volume_node: Any, surfaces: Mapping[str, Any] | None = None
) -> None:
    """Replace the segments of `segmentation_node` by `labels`, which lie on the grid of `volume_node`.

    A segment that was there and hidden stays hidden, and a segmentation that had segments of this volume stays where it
    is in the subject hierarchy; any other comes beside the volume. `surfaces` are vtkPolyData in world RAS by segment
    id (see `surface.closed_surfaces`), shown in 3D.

    Raises `InvalidInput` where the volume has another size by now.
    """
    _check_size(labels, volume_node)
    _register_representations()
    matrix = vtk.vtkMatrix4x4()
    volume_node.GetIJKToRASMatrix(matrix)
    layers = [_oriented_image(layer, matrix) for layer in labels.layers]
    # The world of then: the volume may have got another transform since the labels were made.
    node_from_world = node_affine(volume_node) @ np.linalg.inv(labels.geometry.affine)
    segments = []
    for segment in labels.segments:
        vtk_segment = slicer.vtkSegment()
        vtk_segment.SetName(segment.name)
        vtk_segment.SetColor(*(part / 255 for part in segment.color))
        vtk_segment.SetLabelValue(segment.value)
        if segment.terminology is not None:
            vtk_segment.SetTag("TerminologyEntry", segment.terminology.entry)
        # Segments of one layer share its image, told apart by their label values.
        vtk_segment.AddRepresentation(binary_labelmap(), layers[segment.layer])
        if surfaces is not None:  # an empty segment has an empty one, or Slicer would make them all again
            surface = surfaces.get(segment.id, vtk.vtkPolyData())
            vtk_segment.AddRepresentation(_closed_surface(), _moved(surface, node_from_world))
        segments.append((vtk_segment, segment.id))

    hidden = _hidden_segments(segmentation_node)
    target = segmentation_node.GetSegmentation()
    # Scripts give a new segmentation its geometry before anyone has put it anywhere.
    was_of_volume = segmented_volume(segmentation_node) is volume_node and target.GetNumberOfSegments() > 0
    for segment_id in segment_ids(target):  # told at once, so that views and subject hierarchy let go of them
        # From an image that several share, Slicer would cut the segment out first: 0.1 to 0.3 s each on 78 M voxels.
        segment = target.GetSegment(segment_id)
        segment.RemoveObservers("ModifiedEvent")  # views that hear of a segment without voxels fill the error log
        segment.RemoveAllRepresentations()
        target.RemoveSegment(segment_id)
    modifying = segmentation_node.StartModify()
    try:
        # The transform first: geometry and labels below are in the volume's own frame.
        segmentation_node.SetAndObserveTransformNodeID(volume_node.GetTransformNodeID())
        target.SetSourceRepresentationName(binary_labelmap())
        segmentation_node.SetReferenceImageGeometryParameterFromVolumeNode(volume_node)
        for vtk_segment, segment_id in segments:
            target.AddSegment(vtk_segment, segment_id)
        if segmentation_node.GetDisplayNode() is None and segmentation_node.GetScene() is not None:
            segmentation_node.CreateDefaultDisplayNodes()
    finally:
        segmentation_node.EndModify(modifying)  # the display node now knows the segments
    display = segmentation_node.GetDisplayNode()
    if display is not None:
        for segment in labels.segments:
            if segment.name in hidden:
                display.SetSegmentVisibility(segment.id, False)
        if surfaces is not None:
            _show_in_3d(display, labels)
    if not was_of_volume:  # else someone may have put it elsewhere
        _place_beside(segmentation_node, volume_node)


def write_map(array: NDArray, node: Any, volume_node: Any) -> None:
    """Put numbers `(k, j, i)`, or `(k, j, i, components)`, into a volume node, where `volume_node` lies."""
    matrix = vtk.vtkMatrix4x4()
    volume_node.GetIJKToRASMatrix(matrix)
    is_new = node.GetImageData() is None
    node.SetAndObserveTransformNodeID(volume_node.GetTransformNodeID())
    node.SetIJKToRASMatrix(matrix)
    slicer.util.updateVolumeFromArray(node, array)
    if node.GetDisplayNode() is None and node.GetScene() is not None:
        node.CreateDefaultDisplayNodes()
    if is_new:
        _place_beside(node, volume_node)


def _check_size(labels: Labels, volume_node: Any) -> None:
    data = volume_node.GetImageData()
    if data is None or data.GetDimensions() != labels.geometry.shape[::-1]:
        raise InvalidInput(f"the volume {volume_node.GetName()} was changed meanwhile; run again")


def _oriented_image(layer: NDArray, ijk_to_ras: Any) -> Any:
    """`(k, j, i)` as a vtkOrientedImageData with the grid of `ijk_to_ras`."""
    image = slicer.vtkOrientedImageData()
    image.SetDimensions(*layer.shape[::-1])
    scalars = vtk.util.numpy_support.numpy_to_vtk(np.ascontiguousarray(layer).ravel(), deep=True)
    image.GetPointData().SetScalars(scalars)
    image.SetImageToWorldMatrix(ijk_to_ras)
    return image


def _hidden_segments(segmentation_node: Any) -> set[str]:
    """Names of the segments that someone has hidden: ids are numbers, which mean others in another model."""
    display, segmentation = segmentation_node.GetDisplayNode(), segmentation_node.GetSegmentation()
    if display is None:
        return set()
    hidden = [name for name in segment_ids(segmentation) if not display.GetSegmentVisibility(name)]
    return {segmentation.GetSegment(name).GetName() for name in hidden}


def _show_in_3d(display_node: Any, labels: Labels) -> None:
    """Surfaces in the 3D view; through a fluid one sees what lies in it."""
    display_node.SetPreferredDisplayRepresentationName3D(_closed_surface())
    display_node.SetVisibility3D(True)
    for segment in labels.segments:
        if segment.terminology is not None and segment.terminology.category[:2] == BODY_SUBSTANCE:
            display_node.SetSegmentOpacity3D(segment.id, FLUID_OPACITY)


def _closed_surface() -> str:
    return slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()


def _moved(surface: Any, matrix: NDArray[np.float64]) -> Any:
    """A surface under a 4x4 matrix."""
    if np.allclose(matrix, np.eye(4), rtol=0, atol=1e-6):
        return surface
    transform = vtk.vtkTransform()
    transform.SetMatrix(matrix.ravel().tolist())
    moved = vtk.vtkTransformPolyDataFilter()
    moved.SetInputData(surface)
    moved.SetTransform(transform)
    moved.Update()
    return moved.GetOutput()


def _register_representations() -> None:
    """Outside Slicer's application nobody has told vtkSegmentation how a binary label map is made."""
    factory = slicer.vtkSegmentationConverterFactory.GetInstance()
    if factory.ConstructRepresentationObjectByRepresentation(binary_labelmap()) is None:
        # The logic registers the rules for the whole process when it meets a scene; the user's stays untouched.
        logic = slicer.vtkSlicerSegmentationsModuleLogic()
        logic.SetMRMLScene(slicer.vtkMRMLScene())


def _place_beside(node: Any, volume_node: Any) -> None:
    """Put the node into the folder or study of the volume in the subject hierarchy."""
    scene = node.GetScene()
    if scene is None:
        return
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    if hierarchy is None:
        return
    volume_item = hierarchy.GetItemByDataNode(volume_node)
    item = hierarchy.GetItemByDataNode(node)
    if volume_item and item:  # a scene without the hierarchy's plugins has no items
        hierarchy.SetItemParent(item, hierarchy.GetItemParent(volume_item))
