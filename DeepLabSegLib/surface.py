"""Surfaces of segments, made where they don't hold up a window. Needs vtk, which Slicer has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import vtk
import vtk.util.numpy_support  # loaded lazily from Slicer 5.13 on

from DeepLabSegLib.image import Geometry, Labels, Segment

__all__ = ["closed_surface", "closed_surfaces", "read_surface", "write_surface"]

SMOOTHING_STEPS = 20
PASS_BAND = 0.01
"""Of the windowed sinc filter (Taubin et al., ECCV 1996), which smooths steps between slices and keeps the volume."""

LARGEST = 2**22
"""Voxels of the box around a segment; of a larger one the surface is made in steps of several. No screen shows more."""

LOST = 0.05
"""The share of a segment's volume that steps may lose. Vessels lose more, and keep their voxels."""


def closed_surfaces(labels: Labels) -> dict[str, Any]:
    """The `closed_surface` of every segment that is not empty, by segment id."""
    made = {segment.id: closed_surface(labels, segment) for segment in labels.segments}
    return {segment_id: surface for segment_id, surface in made.items() if surface is not None}


def closed_surface(labels: Labels, segment: Segment) -> Any:
    """A smoothed closed vtkPolyData in RAS mm around a segment of `labels`; None where it is empty.

    The surface is a surface net (Frisken, Journal of Computer Graphics Techniques 2022), as in vtkSurfaceNets3D.
    """
    mask = labels.mask(segment)
    box = _bounding_box(mask)
    if box is None:
        return None
    steps, coarse = _coarser(mask[box], labels.geometry.spacing)
    # The middle of the first voxel, which np.pad puts around.
    start = [side.start - step + (step - 1) / 2 for side, step in zip(box, steps, strict=True)]
    return _closed_surface(np.pad(coarse, 1), start, steps, labels.geometry)


def write_surface(surface: Any, path: Path) -> None:
    """Write a vtkPolyData as `.vtp`, uncompressed, so that reading takes no time."""
    writer = vtk.vtkXMLPolyDataWriter()
    writer.SetInputData(surface)
    writer.SetFileName(str(path))
    writer.SetCompressorTypeToNone()
    writer.SetDataModeToAppended()
    writer.EncodeAppendedDataOff()
    failures = []  # of which neither Write() nor, in Slicer, the error code tells
    writer.GetExecutive().AddObserver("ErrorEvent", lambda *_: failures.append(path))
    writer.Write()
    if failures:
        raise OSError(f"{path} can't be written; is the disk full?")


def read_surface(path: Path) -> Any:
    """The vtkPolyData of a `.vtp` file."""
    reader = vtk.vtkXMLPolyDataReader()
    reader.SetFileName(str(path))
    reader.Update()
    return reader.GetOutput()


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...] | None:
    box = []
    for axis in range(3):
        occupied = np.flatnonzero(mask.any(axis=tuple(n for n in range(3) if n != axis)))
        if not len(occupied):
            return None
        box.append(slice(int(occupied[0]), int(occupied[-1]) + 1))
    return tuple(box)


def _coarser(mask: np.ndarray, spacing: Sequence[float]) -> tuple[list[int], np.ndarray]:
    """Voxels per step along each axis, and `mask` in such steps: those of which at least half is inside."""
    ones = [1, 1, 1]
    pitch = np.cbrt(mask.size * np.prod(spacing) / LARGEST)
    steps = [max(1, round(pitch / size)) for size in spacing]
    if mask.size <= LARGEST or steps == ones:
        return ones, mask
    whole = np.pad(mask, [(0, -size % step) for size, step in zip(mask.shape, steps, strict=True)])
    k, j, i = (size // step for size, step in zip(whole.shape, steps, strict=True))
    inside = whole.reshape(k, steps[0], j, steps[1], i, steps[2]).sum(axis=(1, 3, 5), dtype=np.int32)
    coarse = 2 * inside >= np.prod(steps)
    kept = coarse.sum() * np.prod(steps) / mask.sum()
    return (steps, coarse) if abs(kept - 1) <= LOST else (ones, mask)


def _closed_surface(mask: np.ndarray, start: Sequence[float], steps: Sequence[int], geometry: Geometry) -> Any:
    """Surface of `(k, j, i)` in steps of several voxels of `geometry`, the first of which has its middle at `start`."""
    image = vtk.vtkImageData()
    image.SetDimensions(*mask.shape[::-1])
    image.SetSpacing(*(np.array(steps) * geometry.spacing)[::-1])
    image.SetOrigin(*(np.array(start) * geometry.spacing)[::-1])
    scalars = vtk.util.numpy_support.numpy_to_vtk(mask.astype(np.uint8).ravel(), deep=True)
    image.GetPointData().SetScalars(scalars)
    nets = vtk.vtkSurfaceNets3D()
    nets.SetInputData(image)
    nets.SetValue(0, 1)
    nets.SmoothingOff()
    nets.SetOutputMeshTypeToTriangles()
    smooth = vtk.vtkWindowedSincPolyDataFilter()
    smooth.SetInputConnection(nets.GetOutputPort())
    smooth.SetNumberOfIterations(SMOOTHING_STEPS)
    smooth.SetPassBand(PASS_BAND)
    smooth.BoundarySmoothingOff()
    smooth.FeatureEdgeSmoothingOff()
    smooth.NonManifoldSmoothingOn()
    smooth.NormalizeCoordinatesOn()
    placed = vtk.vtkTransformPolyDataFilter()
    placed.SetInputConnection(smooth.GetOutputPort())
    placed.SetTransform(_to_ras(geometry))
    turned = placed
    if np.linalg.det(geometry.affine[:3, :3]) > 0:  # (k, j, i) the other way round: a mirror image, inside out
        turned = vtk.vtkReverseSense()
        turned.SetInputConnection(placed.GetOutputPort())
    normals = vtk.vtkPolyDataNormals()
    normals.SetInputConnection(turned.GetOutputPort())
    normals.SplittingOff()
    normals.ConsistencyOff()  # the nets are consistent; where sheets touch, this filter would turn them wrongly
    normals.Update()
    surface = normals.GetOutput()
    surface.GetCellData().Initialize()  # the nets' own labels
    return surface


def _to_ras(geometry: Geometry) -> Any:
    """From mm along (i, j, k) to RAS mm."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(geometry.direction)[::-1].T
    matrix[:3, 3] = geometry.origin
    transform = vtk.vtkTransform()
    transform.SetMatrix(matrix.ravel().tolist())
    return transform
