"""Nodes as Slicer's scene has them, for tests."""

from __future__ import annotations

import numpy as np
import slicer
import vtk
import vtk.util.numpy_support

from DeepLabSegLib.image import Image


def add_volume(scene, image: Image, name: str = "Head", node_class: str = "vtkMRMLScalarVolumeNode"):
    node = scene.AddNewNodeByClass(node_class, name)
    array = image.array[0] if image.channels == 1 else np.moveaxis(image.array, 0, -1)
    slicer.util.updateVolumeFromArray(node, array)
    ijk_to_ras = image.geometry.affine[:, [2, 1, 0, 3]]
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(ijk_to_ras))
    return node


def add_transform(scene, matrix: np.ndarray, parent=None, name: str = "Transform"):
    node = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", name)
    node.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    if parent is not None:
        node.SetAndObserveTransformNodeID(parent.GetID())
    return node


def turn(degrees: float, shift=(0.0, 0.0, 0.0)) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix = np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    matrix[:3, 3] = shift
    return matrix


def add_output(scene, name: str = "Result"):
    return scene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)


def masks(node) -> dict[str, np.ndarray]:
    """`(k, j, i)` mask per segment id, on the segmentation's own grid."""
    segmentation = node.GetSegmentation()
    found = {}
    for segment_id in segmentation.GetSegmentIDs():
        segment = segmentation.GetSegment(segment_id)
        image = segment.GetRepresentation("Binary labelmap")
        i, j, k = image.GetDimensions()
        values = vtk.util.numpy_support.vtk_to_numpy(image.GetPointData().GetScalars()).reshape(k, j, i)
        found[segment_id] = values == segment.GetLabelValue()
    return found
