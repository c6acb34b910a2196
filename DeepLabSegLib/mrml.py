"""Slicer's nodes: a volume node in, a segmentation node out. The only module that imports slicer and vtk.

It needs a scene and the MRML classes, no window and no application: it runs in Slicer and on `slicer-core` alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import slicer
import vtk
import vtk.util.numpy_support  # loaded lazily from Slicer 5.13 on
from numpy.typing import NDArray

from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.image import Geometry, Image, Labels
from DeepLabSegLib.region import Region

if TYPE_CHECKING:  # a panel uses this module before torch is here
    from DeepLabSegLib.segmenter import OnProgress, Segmenter, SegmentOptions

__all__ = [
    "check_output_node",
    "has_other_layers",
    "read_region",
    "read_volumes",
    "segment_volumes",
    "segmentation_state",
    "segmented_volume",
    "volume_state",
    "volume_voxels",
    "write_map",
    "write_result",
    "write_segmentation",
]


BODY_SUBSTANCE = ("SCT", "91720002")
FLUID_OPACITY = 0.15
ROLE_PREFIX = "DeepLabSeg."
"""Before uncertainty and probabilities, the roles in which a segmentation refers to its maps."""
FOUR_DIMENSIONAL = ("DiffusionWeightedVolume", "DiffusionImageVolume", "MultiVolume")


def segment_volumes(
    volume_nodes: Sequence[Any],
    segmentation_node: Any,
    segmenter: Segmenter,
    options: SegmentOptions | None = None,
    on_progress: OnProgress | None = None,
) -> Labels:
    """Segment a scan, a volume node per channel, into `segmentation_node`, whose segments are replaced.

    The segmentation comes to lie under the first volume's transform, with that volume as its reference geometry. All
    nodes must be in a scene. Until the result is complete no node is changed. Returns the labels.

    Raises
    ------
    InvalidInput : what `read_volumes` and `Segmenter.segment` raise, or an output that is no segmentation.
    Cancelled : `on_progress` returned False.
    """
    check_output_node(segmentation_node)
    labels = segmenter.segment(read_volumes(volume_nodes), options, on_progress)
    write_segmentation(labels, segmentation_node, volume_nodes[0])
    return labels


# --- reading ---------------------------------------------------------------------------------------------------------


def read_volumes(volume_nodes: Sequence[Any]) -> Image:
    """The voxels of scalar or colour volume nodes as `(C, k, j, i)`, a copy, with parent transforms applied.

    Channels come in the order of the nodes, on the grid of the first; others are resampled in physical space.

    Raises `InvalidInput` for no node, and what `volume_voxels` raises.
    """
    from DeepLabSegLib.preprocess import stack_channels

    if not volume_nodes:
        raise InvalidInput("no volume is given; choose a scalar or colour volume")
    images = []
    for node in volume_nodes:
        array, geometry = volume_voxels(node)
        channels_first = np.moveaxis(array, -1, 0) if array.ndim == 4 else array
        images.append(Image(channels_first.copy(), geometry))
    return stack_channels(images)


def volume_voxels(volume_node: Any) -> tuple[NDArray, Geometry]:
    """Voxels `(k, j, i)` or `(k, j, i, C)`, a view into the node, and where they lie in world RAS.

    Raises `InvalidInput` for a node that is no volume, is empty, 4D or a label map, or lies under a transform that
    leaves no regular grid.
    """
    if not _is_a(volume_node, "ScalarVolume"):
        raise InvalidInput(f"the input is {_describe(volume_node)}; choose a scalar or colour volume")
    name = volume_node.GetName()
    if volume_node.IsA("vtkMRMLLabelMapVolumeNode"):
        raise InvalidInput(f"the input {name} is a label map; choose the image that it belongs to")
    if any(volume_node.IsA(f"vtkMRML{kind}Node") for kind in FOUR_DIMENSIONAL):
        raise InvalidInput(f"the input {name} is 4D; extract one time point or direction as a scalar volume first")
    data = volume_node.GetImageData()
    if data is None or data.GetNumberOfPoints() == 0 or data.GetPointData().GetScalars() is None:
        raise InvalidInput(f"the volume {name} is empty; load or create its voxels first")
    i, j, k = data.GetDimensions()
    array = vtk.util.numpy_support.vtk_to_numpy(data.GetPointData().GetScalars())
    array = array.reshape((k, j, i) if array.ndim == 1 else (k, j, i, array.shape[1]))
    affine = _world_from_node(volume_node, "volume") @ _node_affine(volume_node)
    try:
        return array, Geometry.from_affine((k, j, i), affine)
    except InvalidInput as error:
        raise InvalidInput(f"the volume {name}: {error}") from None


def volume_state(volume_node: Any) -> tuple[Any, ...]:
    """Changes when the volume's grid or voxels do, as another time point's; a result belongs to what it was made of."""
    data = volume_node.GetImageData()
    scalars = data.GetPointData().GetScalars() if data else None
    voxels = (data.GetDimensions(), scalars.GetMTime()) if scalars else None
    return (voxels, *_node_affine(volume_node).ravel().tolist())


def segmentation_state(segmentation_node: Any) -> tuple[Any, ...]:
    """Changes when segments come, go, change places, are drawn in, named, coloured, coded or marked as completed.

    It doesn't when Slicer puts them into other layers, as it does with overlapping ones when it saves them. To compare
    states may take a second then; in the midst of it they differ, so look at `has_other_layers` first.
    """
    segmentation = segmentation_node.GetSegmentation()
    source = segmentation.GetSourceRepresentationName()
    segments = [(name, segmentation.GetSegment(name)) for name in _segment_ids(segmentation)]
    return tuple(
        (name, segment.GetName(), segment.GetColor(), *_tags(segment), _Drawing(segment, source))
        for name, segment in segments
    )


def has_other_layers(segmentation_node: Any, state: tuple[Any, ...]) -> bool:
    """Whether the segments are those of an earlier `segmentation_state`, but some lie in another image."""
    now = segmentation_state(segmentation_node)
    return [segment[0] for segment in now] == [segment[0] for segment in state] and any(
        new[-1].image is not old[-1].image for new, old in zip(now, state, strict=True)
    )


def segmented_volume(segmentation_node: Any) -> Any:
    """The volume node that a segmentation was made of, None where it names none."""
    return segmentation_node.GetNodeReference(segmentation_node.GetReferenceImageGeometryReferenceRole())


def read_region(roi_node: Any) -> Region:
    """The box of a markups ROI in world RAS. Raises `InvalidInput` where it has no size or no regular shape."""
    if not _is_a(roi_node, "MarkupsROI"):
        raise InvalidInput(f"the region is {_describe(roi_node)}; choose a markups ROI")
    name = roi_node.GetName()
    _world_from_node(roi_node, "region")
    matrix = slicer.util.arrayFromVTKMatrix(roi_node.GetObjectToWorldMatrix())
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    try:
        return Region(
            tuple(matrix[:3, 3].tolist()),
            tuple((np.array(roi_node.GetSize()) * lengths).tolist()),
            tuple(map(tuple, (matrix[:3, :3] / lengths).T.tolist())),
        )
    except InvalidInput as error:
        raise InvalidInput(f"{name}: {error}; place the ROI's corners in a slice view first") from None


# --- writing ---------------------------------------------------------------------------------------------------------


def check_output_node(segmentation_node: Any) -> None:
    """Raise `InvalidInput` unless the node can take a result."""
    if not _is_a(segmentation_node, "Segmentation"):
        raise InvalidInput(f"the output is {_describe(segmentation_node)}; choose a segmentation node")


def write_result(
    labels: Labels, volume_node: Any, segmentation_node: Any = None, surfaces: Mapping[str, Any] | None = None
) -> Any:
    """Put a result into the scene of `volume_node`, all of it or nothing, and return its segmentation node.

    `segmentation_node` None makes a new one, named after the volume, as for uncertainty and probabilities; these have a
    component per class, and take the place of those that belong to the segmentation already, if it was of this volume.
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
    node_from_world = _node_affine(volume_node) @ np.linalg.inv(labels.geometry.affine)
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
        if surfaces is not None:  # an empty segment has an empty one, or Slicer would make them all again
            surface = surfaces.get(segment.id, vtk.vtkPolyData())
            vtk_segment.AddRepresentation(_closed_surface(), _moved(surface, node_from_world))
        segments.append((vtk_segment, segment.id))

    hidden = _hidden_segments(segmentation_node)
    target = segmentation_node.GetSegmentation()
    # Scripts give a new segmentation its geometry before anyone has put it anywhere.
    was_of_volume = segmented_volume(segmentation_node) is volume_node and target.GetNumberOfSegments() > 0
    target.RemoveAllSegments()  # told at once, so that views and subject hierarchy let go of them
    modifying = segmentation_node.StartModify()
    try:
        # The transform first: geometry and labels below are in the volume's own frame.
        segmentation_node.SetAndObserveTransformNodeID(volume_node.GetTransformNodeID())
        target.SetSourceRepresentationName(_binary_labelmap())
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


# --- pieces ----------------------------------------------------------------------------------------------------------


class _Drawing:
    """The voxels of a segment, equal to the same ones in another image; of surfaces, when they were last changed."""

    def __init__(self, segment: Any, representation: str) -> None:
        self.image = segment.GetRepresentation(representation)
        self.value = segment.GetLabelValue()
        self.time = self.image.GetMTime() if self.image else None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Drawing):
            return NotImplemented
        if self.image is other.image:
            return (self.value, self.time) == (other.value, other.time)
        return self._is_as_it_was() and other._is_as_it_was() and _same_voxels(self, other)

    __hash__ = None  # type: ignore[assignment]

    def _is_as_it_was(self) -> bool:
        return isinstance(self.image, slicer.vtkOrientedImageData) and self.image.GetMTime() == self.time


def _same_voxels(one: _Drawing, two: _Drawing) -> bool:
    """Whether two segments are as large as what they have in common. Plane by plane, in the processor's cache."""
    if not np.allclose(_image_affine(one.image), _image_affine(two.image), rtol=0, atol=1e-6):
        return False
    extents = [np.reshape(drawing.image.GetExtent(), (3, 2))[::-1] for drawing in (one, two)]
    first, last = np.maximum(*extents)[:, 0], np.minimum(*extents)[:, 1]
    arrays, common = [_image_voxels(drawing.image) for drawing in (one, two)], []
    for array, extent in zip(arrays, extents, strict=True):
        box = zip(first - extent[:, 0], np.maximum(last - extent[:, 0] + 1, 0), strict=True)
        common.append(array[tuple(slice(start, stop) for start, stop in box)])
    sizes = [
        sum(np.count_nonzero(plane == drawing.value) for plane in array)
        for drawing, array in zip((one, two), arrays, strict=True)
    ]
    shared = sum(np.count_nonzero((a == one.value) & (b == two.value)) for a, b in zip(*common, strict=True))
    return sizes == [shared, shared]


def _image_voxels(image: Any) -> NDArray:
    """`(k, j, i)`, a view of a vtkOrientedImageData."""
    scalars = image.GetPointData().GetScalars()
    shape = image.GetDimensions()[::-1]
    return np.zeros(shape) if scalars is None else vtk.util.numpy_support.vtk_to_numpy(scalars).reshape(shape)


def _image_affine(image: Any) -> NDArray[np.float64]:
    """4x4 from (i, j, k) of a vtkOrientedImageData to RAS."""
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


def _check_size(labels: Labels, volume_node: Any) -> None:
    data = volume_node.GetImageData()
    if data is None or data.GetDimensions() != labels.geometry.shape[::-1]:
        raise InvalidInput(f"the volume {volume_node.GetName()} was changed meanwhile; run again")


def _node_affine(volume_node: Any) -> NDArray[np.float64]:
    """4x4 from (k, j, i) to the node's own RAS."""
    matrix = vtk.vtkMatrix4x4()
    volume_node.GetIJKToRASMatrix(matrix)
    ijk = slicer.util.arrayFromVTKMatrix(matrix)
    return ijk[:, [2, 1, 0, 3]]


def _world_from_node(node: Any, what: str) -> NDArray[np.float64]:
    """4x4 of all transforms above `node`; raises `InvalidInput` where one of them is not linear."""
    transform = node.GetParentTransformNode()
    if transform is None:
        return np.eye(4)
    if not transform.IsTransformToWorldLinear():
        while transform.IsLinear():  # it is one of those above
            transform = transform.GetParentTransformNode()
        raise InvalidInput(
            f"the {what} {node.GetName()} lies under the non-linear transform {transform.GetName()}; harden the "
            "transform on it first (Transforms module), so that it is straight in space"
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


def _segment_ids(segmentation: Any) -> list[str]:
    return [segmentation.GetNthSegmentID(n) for n in range(segmentation.GetNumberOfSegments())]


def _tags(segment: Any) -> list[str]:
    """The terminology of a segment, and how far work on it is, as the Segment Editor keeps it."""
    tags = [vtk.mutable(""), vtk.mutable("")]
    for name, text in zip(("TerminologyEntry", "Segmentation.Status"), tags, strict=True):
        segment.GetTag(name, text)
    return [str(text) for text in tags]


def _hidden_segments(segmentation_node: Any) -> set[str]:
    """Names of the segments that someone has hidden: ids are numbers, which mean others in another model."""
    display, segmentation = segmentation_node.GetDisplayNode(), segmentation_node.GetSegmentation()
    if display is None:
        return set()
    hidden = [name for name in _segment_ids(segmentation) if not display.GetSegmentVisibility(name)]
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
    if factory.ConstructRepresentationObjectByRepresentation(_binary_labelmap()) is None:
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


def _is_a(node: Any, kind: str) -> bool:
    return hasattr(node, "IsA") and bool(node.IsA(f"vtkMRML{kind}Node"))


def _describe(node: Any) -> str:
    if node is None:
        return "missing"
    return f"{node.GetName()}, a {node.GetClassName()}" if _is_a(node, "") else f"{node!r}, and no node"
