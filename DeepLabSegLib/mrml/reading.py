"""From volume nodes: voxels and where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import vtk
import vtk.util.numpy_support  # loaded lazily from Slicer 5.13 on
from numpy.typing import NDArray

from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.image import Geometry, Image
from DeepLabSegLib.mrml.nodes import describe, is_a, node_affine, world_from_node

__all__ = ["read_volumes", "volume_voxels"]

FOUR_DIMENSIONAL = ("DiffusionWeightedVolume", "DiffusionImageVolume", "MultiVolume")


def read_volumes(volume_nodes: Sequence[Any]) -> Image:
    """The voxels of scalar or colour volume nodes as `(C, k, j, i)`, a copy, with parent transforms applied.

    Channels come in the order of the nodes, on the grid of the first; others are resampled in physical space.

    Raises `InvalidInput` for no list, or an empty one, and what `volume_voxels` raises.
    """
    from DeepLabSegLib.preprocess import stack_channels

    if is_a(volume_nodes, ""):
        raise InvalidInput(f"the input is {describe(volume_nodes)}, alone; give a list, such as [node]")
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

    Raises `InvalidInput` for a node that is no volume, is empty, 4D or a label map, begins at another voxel than the
    first, or lies under a transform that leaves no regular grid.
    """
    if not is_a(volume_node, "ScalarVolume"):
        raise InvalidInput(f"the input is {describe(volume_node)}; choose a scalar or colour volume")
    name = volume_node.GetName()
    if is_a(volume_node, "LabelMapVolume"):
        raise InvalidInput(f"the input {name} is a label map; choose the image that it belongs to")
    if any(is_a(volume_node, kind) for kind in FOUR_DIMENSIONAL):
        raise InvalidInput(f"the input {name} is 4D; extract one time point or direction as a scalar volume first")
    data = volume_node.GetImageData()
    if data is None or data.GetNumberOfPoints() == 0 or data.GetPointData().GetScalars() is None:
        raise InvalidInput(f"the volume {name} is empty; load or create its voxels first")
    first = data.GetExtent()[::2]
    if any(first):
        raise InvalidInput(
            f"the voxels of {name} begin at {first} and not at (0, 0, 0), as filters of VTK leave them; let Slicer put "
            "that right first: node.ShiftImageDataExtentToZeroStart()"
        )
    i, j, k = data.GetDimensions()
    array = vtk.util.numpy_support.vtk_to_numpy(data.GetPointData().GetScalars())
    array = array.reshape((k, j, i) if array.ndim == 1 else (k, j, i, array.shape[1]))
    affine = world_from_node(volume_node, "volume") @ node_affine(volume_node)
    try:
        return array, Geometry.from_affine((k, j, i), affine)
    except InvalidInput as error:
        raise InvalidInput(f"the volume {name}: {error}") from None
