"""What reading, writing and comparing nodes have in common."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray

from DeepLabSegLib.errors import InvalidInput

__all__ = ["binary_labelmap", "describe", "is_a", "node_affine", "segment_ids", "segmented_volume", "world_from_node"]


def is_a(node: Any, kind: str) -> bool:
    """Whether `node` is a node of class `vtkMRML<kind>Node`, and not a string or anything else."""
    return hasattr(node, "IsA") and bool(node.IsA(f"vtkMRML{kind}Node"))


def describe(node: Any) -> str:
    """What was given where another node was wanted, for a message."""
    if node is None:
        return "missing"
    return f"{node.GetName()}, a {node.GetClassName()}" if is_a(node, "") else f"{node!r}, and no node"


def node_affine(volume_node: Any) -> NDArray[np.float64]:
    """4x4 from (k, j, i) to the node's own RAS."""
    matrix = vtk.vtkMatrix4x4()
    volume_node.GetIJKToRASMatrix(matrix)
    ijk = slicer.util.arrayFromVTKMatrix(matrix)
    return ijk[:, [2, 1, 0, 3]]


def world_from_node(node: Any, what: str) -> NDArray[np.float64]:
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


def binary_labelmap() -> str:
    """The name of the representation of segments as voxels."""
    return slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()


def segment_ids(segmentation: Any) -> list[str]:
    """The ids of a vtkSegmentation's segments, in their order."""
    return [segmentation.GetNthSegmentID(n) for n in range(segmentation.GetNumberOfSegments())]


def segmented_volume(segmentation_node: Any) -> Any:
    """The volume node that a segmentation was made of, None where it names none."""
    return segmentation_node.GetNodeReference(segmentation_node.GetReferenceImageGeometryReferenceRole())
