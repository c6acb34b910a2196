"""What tells whether a volume or a segmentation was changed since."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import slicer
import vtk
import vtk.util.numpy_support  # loaded lazily from Slicer 5.13 on
from numpy.typing import NDArray

from DeepLabSegLib.mrml.nodes import node_affine, segment_ids

__all__ = ["has_other_layers", "segmentation_digest", "segmentation_state", "volume_state"]


def volume_state(volume_node: Any) -> tuple[Any, ...]:
    """Changes when the volume's grid or voxels do, as another time point's; a result belongs to what it was made of."""
    data = volume_node.GetImageData()
    scalars = data.GetPointData().GetScalars() if data else None
    voxels = (data.GetDimensions(), scalars.GetMTime()) if scalars else None
    return (voxels, *node_affine(volume_node).ravel().tolist())


def segmentation_state(segmentation_node: Any) -> tuple[Any, ...]:
    """Changes when segments come, go, change places, are drawn in, named, coloured, coded or marked as completed.

    It doesn't when Slicer puts them into other layers, as it does with overlapping ones when it saves them. To compare
    states may take a second then; in the midst of it they differ, so look at `has_other_layers` first.
    """
    segmentation = segmentation_node.GetSegmentation()
    source = segmentation.GetSourceRepresentationName()
    segments = [(name, segmentation.GetSegment(name)) for name in segment_ids(segmentation)]
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


def segmentation_digest(segmentation_node: Any) -> str:
    """`segmentation_state` for a later session: the same after the scene is saved and opened, which renews the images.

    Of a segment's voxels it knows how many they are, and of its colour what a file keeps.
    """
    told = [
        (segment_id, name, [round(255 * part) for part in color], *tags, drawing.size())
        for segment_id, name, color, *tags, drawing in segmentation_state(segmentation_node)
    ]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


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

    def size(self) -> int:
        """The number of voxels; of surfaces, that of points."""
        if not isinstance(self.image, slicer.vtkOrientedImageData):
            return self.image.GetNumberOfPoints() if self.image else 0
        return _size(_image_voxels(self.image), self.value)

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
    sizes = [_size(array, drawing.value) for drawing, array in zip((one, two), arrays, strict=True)]
    shared = sum(np.count_nonzero((a == one.value) & (b == two.value)) for a, b in zip(*common, strict=True))
    return sizes == [shared, shared]


def _size(array: NDArray, value: int) -> int:
    return sum(int(np.count_nonzero(plane == value)) for plane in array)


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


def _tags(segment: Any) -> list[str]:
    """The terminology of a segment, and how far work on it is, as the Segment Editor keeps it."""
    tags = [vtk.mutable(""), vtk.mutable("")]
    for name, text in zip(("TerminologyEntry", "Segmentation.Status"), tags, strict=True):
        segment.GetTag(name, text)
    return [str(text) for text in tags]
