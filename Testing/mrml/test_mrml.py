from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
import vtk
import vtk.util.numpy_support
from helpers import make_scan, make_segmenter

from DeepLabSegLib.errors import Cancelled, InvalidInput
from DeepLabSegLib.files import read_image, write_labels
from DeepLabSegLib.image import Geometry, Image
from DeepLabSegLib.mrml import read_volume, segment_volume

OBLIQUE = ((0.0, 0.6, 0.8), (0.0, 0.8, -0.6), (-1.0, 0.0, 0.0))


def oblique_scan(rng) -> Image:
    image = make_scan(rng)
    return Image(image.array, Geometry(image.geometry.shape, image.geometry.spacing, (5.0, -6.0, 7.0), OBLIQUE))


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


@pytest.mark.parametrize("dims", [2, 3])
def test_a_file_and_a_node_give_the_same_labels_voxel_for_voxel(scene, tmp_path, rng, dims):
    from test_files import itk

    image = oblique_scan(rng)
    sitk.WriteImage(itk(image), tmp_path / "scan.nrrd")
    segmenter = make_segmenter(dims, orientation="ASR")
    from_file = segmenter.segment(read_image(tmp_path / "scan.nrrd"))
    node, output = add_volume(scene, image), add_output(scene)
    from_node = segment_volume(node, output, segmenter)
    np.testing.assert_array_equal(from_node.array, from_file.array)
    for segment in from_file.segments:
        np.testing.assert_array_equal(masks(output)[segment.id], from_file.mask(segment))


def test_names_colours_values_and_terminology_arrive(scene, scan):
    output = add_output(scene)
    labels = segment_volume(add_volume(scene, scan), output, make_segmenter(2))
    segmentation = output.GetSegmentation()
    assert segmentation.GetNumberOfLayers() == 1
    for segment in labels.segments:
        node_segment = segmentation.GetSegment(segment.id)
        assert node_segment.GetName() == segment.name
        assert node_segment.GetLabelValue() == segment.value
        np.testing.assert_allclose(node_segment.GetColor(), np.array(segment.color) / 255, atol=1e-6)
        tag = vtk.mutable("")
        assert node_segment.GetTag("TerminologyEntry", tag)
        assert "SCT^12738006^Brain" in str(tag)


def test_a_segmentation_lies_under_the_volumes_transform_and_where_the_volume_is(scene, rng):
    volume = add_volume(scene, oblique_scan(rng))
    outer = add_transform(scene, turn(30, (10, 20, 30)), name="Outer")
    inner = add_transform(scene, turn(-12, (1, 2, 3)), outer, "Inner")
    volume.SetAndObserveTransformNodeID(inner.GetID())
    output = add_output(scene)
    output.SetAndObserveTransformNodeID(outer.GetID())  # somebody put it elsewhere before
    segment_volume(volume, output, make_segmenter(2, classes=2))
    assert output.GetTransformNodeID() == inner.GetID()
    image = output.GetSegmentation().GetNthSegment(0).GetRepresentation("Binary labelmap")
    expected, found = vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(expected)
    image.GetImageToWorldMatrix(found)
    np.testing.assert_allclose(
        slicer.util.arrayFromVTKMatrix(found), slicer.util.arrayFromVTKMatrix(expected), atol=1e-6
    )
    assert image.GetDimensions() == volume.GetImageData().GetDimensions()


def test_the_model_sees_a_transformed_volume_where_the_transform_puts_it(scene, rng):
    image = make_scan(rng)
    volume = add_volume(scene, image)
    quarter = turn(90, (5, 6, 7))
    volume.SetAndObserveTransformNodeID(add_transform(scene, quarter).GetID())
    geometry = read_volume(volume).geometry
    np.testing.assert_allclose(geometry.affine, quarter @ image.geometry.affine, atol=1e-6)
    # The same voxels, placed there without a transform, give the same labels.
    moved = Image(image.array, Geometry.from_affine(image.geometry.shape, quarter @ image.geometry.affine))
    segmenter = make_segmenter(2, orientation="ASR")
    labels = segment_volume(volume, add_output(scene), segmenter)
    np.testing.assert_array_equal(labels.array, segmenter.segment(moved).array)


def test_a_result_survives_slicers_own_file_format(scene, tmp_path, rng):
    segmenter = make_segmenter(3, classes=3, activation="sigmoid")
    image = oblique_scan(rng)
    labels = segmenter.segment(image)
    write_labels(labels, tmp_path / "r.seg.nrrd")
    storage = scene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
    storage.SetFileName(str(tmp_path / "r.seg.nrrd"))
    read, direct = add_output(scene, "Read"), add_output(scene, "Direct")
    assert storage.ReadData(read)
    segment_volume(add_volume(scene, image), direct, segmenter)
    bounds = [np.zeros(6), np.zeros(6)]
    for node, box in zip((read, direct), bounds, strict=True):
        node.GetRASBounds(box)
    np.testing.assert_allclose(*bounds, atol=1e-3)
    for segment in labels.segments:
        assert read.GetSegmentation().GetSegment(segment.id).GetName() == segment.name
        assert masks(read)[segment.id].sum() == masks(direct)[segment.id].sum() == labels.mask(segment).sum()


def test_a_second_run_replaces_the_segments(scene, scan):
    volume, output = add_volume(scene, scan), add_output(scene)
    segment_volume(volume, output, make_segmenter(2, classes=4))
    segment_volume(volume, output, make_segmenter(2, classes=2))
    assert list(output.GetSegmentation().GetSegmentIDs()) == ["Segment_1"]


def test_a_colour_volume_is_segmented(scene, rng):
    image = Image(rng.integers(0, 255, (3, 2, 30, 40)).astype(np.uint8), Geometry((2, 30, 40)))
    volume = add_volume(scene, image, "Photo", "vtkMRMLVectorVolumeNode")
    np.testing.assert_array_equal(read_volume(volume).array, image.array)
    labels = segment_volume(volume, add_output(scene), make_segmenter(2, channels=3, orientation=None))
    assert labels.array.shape == (2, 30, 40)


def test_a_cancelled_run_leaves_the_nodes_as_they_were(scene, scan):
    volume, output = add_volume(scene, scan), add_output(scene)
    segment_volume(volume, output, make_segmenter(2, classes=2))
    before = masks(output)
    with pytest.raises(Cancelled):
        segment_volume(volume, output, make_segmenter(2), on_progress=lambda step: step.stage != "restore")
    assert list(masks(output)) == list(before)
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(volume), scan.array[0])


def test_what_is_no_volume_is_refused_in_words(scene, scan):
    volume, output, segmenter = add_volume(scene, scan), add_output(scene), make_segmenter(2)
    empty = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Empty")
    label_map = add_volume(scene, scan, "Map", "vtkMRMLLabelMapVolumeNode")
    for node, words in [
        (None, "the input is missing"),
        (output, "Result, a vtkMRMLSegmentationNode"),
        (empty, "Empty is empty"),
        (label_map, "Map is a label map"),
    ]:
        with pytest.raises(InvalidInput, match=words):
            segment_volume(node, output, segmenter)
    with pytest.raises(InvalidInput, match="choose a segmentation node"):
        segment_volume(volume, volume, segmenter)


def test_a_non_linear_transform_is_refused_not_ignored(scene, scan):
    volume = add_volume(scene, scan)
    warp = scene.AddNewNodeByClass("vtkMRMLBSplineTransformNode", "Warp")
    volume.SetAndObserveTransformNodeID(warp.GetID())
    with pytest.raises(InvalidInput, match="non-linear transform Warp; harden"):
        read_volume(volume)


def test_a_shearing_transform_is_refused_with_the_volumes_name(scene, scan):
    shear = np.eye(4)
    shear[0, 1] = 0.3
    volume = add_volume(scene, scan)
    volume.SetAndObserveTransformNodeID(add_transform(scene, shear).GetID())
    with pytest.raises(InvalidInput, match=r"the volume Head: .*sheared"):
        read_volume(volume)
