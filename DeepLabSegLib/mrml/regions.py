"""Markups ROIs: the box that a run is restricted to."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer

from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.mrml.nodes import describe, is_a, node_affine, world_from_node
from DeepLabSegLib.region import Region

__all__ = ["fit_region", "read_region"]


def read_region(roi_node: Any) -> Region:
    """The box of a markups ROI in world RAS. Raises `InvalidInput` where it has no size or no regular shape."""
    if not is_a(roi_node, "MarkupsROI"):
        raise InvalidInput(f"the region is {describe(roi_node)}; choose a markups ROI")
    name = roi_node.GetName()
    world_from_node(roi_node, "region")
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


def fit_region(roi_node: Any, volume_node: Any) -> None:
    """Put a markups ROI around all voxels of a volume node, along its axes and under its transform."""
    affine = node_affine(volume_node)
    axes = np.linalg.qr(affine[:3, :3])[0]
    axes[:, 2] *= np.linalg.det(axes)  # a box is the same whichever way an axis points; a ROI's are right-handed
    shape = np.array(volume_node.GetImageData().GetDimensions())[::-1]
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = axes, (affine @ [*(shape - 1) / 2, 1])[:3]
    roi_node.SetAndObserveTransformNodeID(volume_node.GetTransformNodeID())
    roi_node.SetAndObserveObjectToNodeMatrix(slicer.util.vtkMatrixFromArray(matrix))
    roi_node.SetSize(*(np.abs(axes.T @ affine[:3, :3]) @ shape))
