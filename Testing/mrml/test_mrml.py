from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
import vtk
import vtk.util.numpy_support
from helpers import OBLIQUE, itk, make_scan, make_segmenter, physically_equal
from mrml_scenes import add_output, add_transform, add_volume, masks, turn

import DeepLabSegLib.surface as surface_module
from DeepLabSegLib.errors import Cancelled, InvalidInput
from DeepLabSegLib.files import read_image, write_labels
from DeepLabSegLib.image import Geometry, Image, Labels, Segment, Terminology
from DeepLabSegLib.mrml import (
    check_output_node,
    fit_region,
    has_other_layers,
    read_region,
    read_volumes,
    segment_volumes,
    segmentation_digest,
    segmentation_state,
    write_map,
    write_result,
    write_segmentation,
)
from DeepLabSegLib.segmenter import SegmentOptions
from DeepLabSegLib.surface import closed_surfaces, read_surface, write_surface


def oblique_scan(rng) -> Image:
    image = make_scan(rng)
    return Image(image.array, Geometry(image.geometry.shape, image.geometry.spacing, (5.0, -6.0, 7.0), OBLIQUE))


@pytest.mark.parametrize("dims", [2, 3])
def test_a_file_and_a_node_give_the_same_labels_voxel_for_voxel(scene, tmp_path, rng, dims):
    image = oblique_scan(rng)
    sitk.WriteImage(itk(image), tmp_path / "scan.nrrd")
    segmenter = make_segmenter(dims, orientation="ASR")
    from_file = segmenter.segment(read_image(tmp_path / "scan.nrrd"))
    node, output = add_volume(scene, image), add_output(scene)
    from_node = segment_volumes([node], output, segmenter)
    np.testing.assert_array_equal(from_node.array, from_file.array)
    for segment in from_file.segments:
        np.testing.assert_array_equal(masks(output)[segment.id], from_file.mask(segment))


def test_names_colours_values_and_terminology_arrive(scene, scan):
    output = add_output(scene)
    labels = segment_volumes([add_volume(scene, scan)], output, make_segmenter(2))
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
    segment_volumes([volume], output, make_segmenter(2, classes=2))
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
    geometry = read_volumes([volume]).geometry
    np.testing.assert_allclose(geometry.affine, quarter @ image.geometry.affine, atol=1e-6)
    # The same voxels, placed there without a transform, give the same labels.
    moved = Image(image.array, Geometry.from_affine(image.geometry.shape, quarter @ image.geometry.affine))
    segmenter = make_segmenter(2, orientation="ASR")
    labels = segment_volumes([volume], add_output(scene), segmenter)
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
    segment_volumes([add_volume(scene, image)], direct, segmenter)
    bounds = [np.zeros(6), np.zeros(6)]
    for node, box in zip((read, direct), bounds, strict=True):
        node.GetRASBounds(box)
    np.testing.assert_allclose(*bounds, atol=1e-3)
    for segment in labels.segments:
        assert read.GetSegmentation().GetSegment(segment.id).GetName() == segment.name
        assert masks(read)[segment.id].sum() == masks(direct)[segment.id].sum() == labels.mask(segment).sum()


def test_a_second_run_replaces_the_segments(scene, scan):
    volume, output = add_volume(scene, scan), add_output(scene)
    segment_volumes([volume], output, make_segmenter(2, classes=4))
    segment_volumes([volume], output, make_segmenter(2, classes=2))
    assert list(output.GetSegmentation().GetSegmentIDs()) == ["Segment_1"]


def test_views_hear_of_no_segment_without_voxels_while_it_is_replaced(scene, scan):
    """They would try to make them, and tell of the failure in Slicer's error log."""
    volume, output = add_volume(scene, scan), add_output(scene)
    segmentation, heard = output.GetSegmentation(), []
    segment_volumes([volume], output, make_segmenter(2))
    segmentation.AddObserver(slicer.vtkSegmentation.SegmentModified, lambda *_: heard.append("modified"))
    segmentation.AddObserver(slicer.vtkSegmentation.SegmentRemoved, lambda *_: heard.append("removed"))
    segment_volumes([volume], output, make_segmenter(2))
    assert set(heard) == {"removed"}


def test_a_segmentation_of_surfaces_becomes_one_of_voxels(scene, scan):
    output = add_output(scene)
    output.GetSegmentation().SetSourceRepresentationName("Closed surface")
    segment_volumes([add_volume(scene, scan)], output, make_segmenter(2))
    assert output.GetSegmentation().GetSourceRepresentationName() == "Binary labelmap"


def test_a_colour_volume_is_segmented(scene, rng):
    image = Image(rng.integers(0, 255, (3, 2, 30, 40)).astype(np.uint8), Geometry((2, 30, 40)))
    volume = add_volume(scene, image, "Photo", "vtkMRMLVectorVolumeNode")
    read = read_volumes([volume])
    np.testing.assert_array_equal(read.array, image.array)
    labels = segment_volumes([volume], add_output(scene), make_segmenter(2, channels=3, orientation=None))
    slicer.util.arrayFromVolume(volume)[:] = 0
    np.testing.assert_array_equal(read.array, image.array, "what was read is a copy")
    assert labels.array.shape == (2, 30, 40)


def test_a_cancelled_run_leaves_the_nodes_as_they_were(scene, scan):
    volume, output = add_volume(scene, scan), add_output(scene)
    segment_volumes([volume], output, make_segmenter(2, classes=2))
    before = masks(output)
    with pytest.raises(Cancelled):
        segment_volumes([volume], output, make_segmenter(2), on_progress=lambda step: step.stage != "restore")
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
            segment_volumes([node], output, segmenter)
    with pytest.raises(InvalidInput, match="choose a segmentation node"):
        segment_volumes([volume], volume, segmenter)
    with pytest.raises(InvalidInput, match=r"Head, a vtkMRMLScalarVolumeNode, alone; give a list, such as \[node\]"):
        segment_volumes(volume, output, segmenter)


def test_a_non_linear_transform_is_refused_not_ignored(scene, scan):
    volume = add_volume(scene, scan)
    warp = scene.AddNewNodeByClass("vtkMRMLBSplineTransformNode", "Warp")
    volume.SetAndObserveTransformNodeID(warp.GetID())
    with pytest.raises(InvalidInput, match="non-linear transform Warp; harden"):
        read_volumes([volume])
    volume.SetAndObserveTransformNodeID(add_transform(scene, turn(20), warp, "Turn").GetID())
    with pytest.raises(InvalidInput, match="non-linear transform Warp; harden"):
        read_volumes([volume])


def test_a_shearing_transform_is_refused_with_the_volumes_name(scene, scan):
    shear = np.eye(4)
    shear[0, 1] = 0.3
    volume = add_volume(scene, scan)
    volume.SetAndObserveTransformNodeID(add_transform(scene, shear).GetID())
    with pytest.raises(InvalidInput, match=r"the volume Head: .*sheared"):
        read_volumes([volume])


def test_channels_may_lie_on_other_grids_and_under_other_transforms(scene, rng):
    segmenter = make_segmenter(3, channels=2, orientation=None)
    two = make_scan(rng, (24, 40, 36), (1.5, 1.5, 1.5), channels=2)
    first, second = (Image(two.array[n : n + 1], two.geometry) for n in (0, 1))
    expected = segmenter.segment(two).array
    transform = add_transform(scene, turn(25, (30, -10, 4)))
    moved = Geometry.from_affine(second.geometry.shape, np.linalg.inv(turn(25, (30, -10, 4))) @ second.geometry.affine)
    flipped = physically_equal(Image(second.array, moved), (2, 0, 1), (1,))
    other = add_volume(scene, flipped, "Second")
    other.SetAndObserveTransformNodeID(transform.GetID())
    labels = segment_volumes([add_volume(scene, first), other], add_output(scene), segmenter)
    assert (labels.array == expected).mean() > 0.999
    ignored = segment_volumes([add_volume(scene, first), add_volume(scene, flipped)], add_output(scene), segmenter)
    assert (ignored.array == expected).mean() < 0.9, "without its transform the channel lies elsewhere"


def test_a_region_is_where_its_transforms_put_it(scene):
    roi = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Box")
    roi.SetCenter(1, 2, 3)
    roi.SetSize(10, 20, 30)
    matrix = turn(30, (5, 0, 0)) @ np.diag([2.0, 1, 1, 1])
    roi.SetAndObserveTransformNodeID(add_transform(scene, matrix).GetID())
    region = read_region(roi)
    np.testing.assert_allclose(region.center, (matrix @ [1, 2, 3, 1])[:3])
    np.testing.assert_allclose(region.size, (20, 20, 30))
    np.testing.assert_allclose(region.axes, turn(30)[:3, :3].T, atol=1e-12)


@pytest.mark.parametrize("directions", [OBLIQUE, np.array(OBLIQUE) * [-1, 1, 1], np.eye(3), np.diag([-1, 1, 1])])
def test_a_region_that_is_fitted_to_a_volume_holds_all_of_it_and_no_more(scene, rng, directions):
    scan = oblique_scan(rng)
    volume = add_volume(scene, scan)
    volume.SetIJKToRASDirections(*np.ravel(directions))
    volume.SetAndObserveTransformNodeID(add_transform(scene, turn(30, (5, 0, 0))).GetID())
    roi = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Box")
    fit_region(roi, volume)
    geometry = read_volumes([volume]).geometry
    corners = np.array(list(np.ndindex(2, 2, 2))) * geometry.shape - 0.5
    corners = corners @ geometry.affine[:3, :3].T + geometry.affine[:3, 3]
    region = read_region(roi)
    np.testing.assert_allclose(corners.mean(axis=0), region.center, atol=1e-6)
    np.testing.assert_allclose(np.abs((corners - region.center) @ np.array(region.axes).T) * 2, [region.size] * 8)
    matrix = slicer.util.arrayFromVTKMatrix(roi.GetObjectToNodeMatrix())
    assert np.linalg.det(matrix) == pytest.approx(1), "right-handed, as those that a person draws"


def test_a_region_without_size_is_refused_by_name(scene):
    roi = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Box")
    with pytest.raises(InvalidInput, match=r"Box: the region measures 0 x 0 x 0 mm.*place the ROI"):
        read_region(roi)


def test_a_region_under_a_non_linear_transform_is_refused(scene):
    roi, warp = (scene.AddNewNodeByClass(f"vtkMRML{kind}Node") for kind in ("MarkupsROI", "BSplineTransform"))
    roi.SetSize(10, 10, 10)
    roi.SetAndObserveTransformNodeID(warp.GetID())
    with pytest.raises(InvalidInput, match=r"the region .* lies under the non-linear transform"):
        read_region(roi)


def test_a_volume_that_changed_meanwhile_takes_no_labels(scene, scan):
    volume, output = add_volume(scene, scan), add_output(scene)
    labels = make_segmenter(2).segment(scan)
    for array in (scan.array[0, :5], scan.array[0].swapaxes(0, 1)):
        slicer.util.updateVolumeFromArray(volume, array)
        with pytest.raises(InvalidInput, match="Head was changed meanwhile"):
            write_segmentation(labels, output, volume)
    assert output.GetSegmentation().GetNumberOfSegments() == 0


def test_uncertainty_lies_on_the_volume(scene, scan):
    volume = add_volume(scene, scan)
    volume.SetAndObserveTransformNodeID(add_transform(scene, turn(20)).GetID())
    labels = make_segmenter(2).segment(scan, SegmentOptions(uncertainty=True))
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Uncertainty")
    write_map(labels.uncertainty, node, volume)
    np.testing.assert_array_equal(read_volumes([node]).array[0], labels.uncertainty)
    assert read_volumes([node]).geometry.is_close(read_volumes([volume]).geometry)
    assert node.GetDisplayNode() is not None, "it can be shown"


def test_probabilities_are_the_components_of_a_volume(scene, scan):
    volume = add_volume(scene, scan)
    volume.SetAndObserveTransformNodeID(add_transform(scene, turn(20)).GetID())
    segmenter = make_segmenter(2)
    labels = segmenter.segment(read_volumes([volume]), SegmentOptions(probabilities=True))
    write_result(labels, volume)
    node = slicer.util.getNode("Head probabilities")
    np.testing.assert_array_equal(read_volumes([node]).array, labels.probabilities.astype(np.float32))
    assert read_volumes([node]).geometry.is_close(read_volumes([volume]).geometry)


def test_a_second_run_into_a_segmentation_renews_its_maps_and_keeps_hidden_what_was_hidden(scene, scan):
    volume, output = add_volume(scene, scan), add_output(scene)
    labels = make_segmenter(2).segment(scan, SegmentOptions(uncertainty=True, probabilities=True))
    write_result(labels, volume, output)
    output.GetDisplayNode().SetSegmentVisibility("Segment_1", False)
    maps = [slicer.util.getNode(f"Head {name}") for name in ("uncertainty", "probabilities")]
    for node in maps:
        slicer.util.arrayFromVolume(node)[:] = 0
    count = scene.GetNumberOfNodes()
    write_result(labels, volume, output)
    assert scene.GetNumberOfNodes() == count
    np.testing.assert_array_equal(read_volumes(maps[:1]).array[0], labels.uncertainty)
    np.testing.assert_array_equal(read_volumes(maps[1:]).array, labels.probabilities.astype(np.float32))
    visible = output.GetDisplayNode().GetSegmentVisibility
    assert (visible("Segment_1"), visible("Segment_2")) == (False, True)
    slicer.util.updateVolumeFromArray(volume, scan.array[0, :5])
    with pytest.raises(InvalidInput, match="changed meanwhile"):
        write_result(replace(labels, uncertainty=labels.uncertainty * 0), volume, output)
    np.testing.assert_array_equal(read_volumes(maps[:1]).array[0], labels.uncertainty)
    other = replace(labels, segments=tuple(replace(s, name=f"Other {s.name}") for s in labels.segments))
    write_result(other, add_volume(scene, scan, "Other"), output)
    assert scene.GetFirstNodeByName("Other uncertainty") is not None, "another volume has its own"
    assert visible("Segment_1"), "another segment of that number was hidden"


def test_maps_of_a_result_that_is_replaced_without_new_ones_say_that_they_are_of_an_earlier_run(scene, scan):
    volume, output = add_volume(scene, scan), add_output(scene)
    plain = make_segmenter(2).segment(scan)
    both = make_segmenter(2).segment(scan, SegmentOptions(uncertainty=True, probabilities=True))
    one = replace(both, probabilities=None)
    for labels in (both, one, plain, one):
        write_result(labels, volume, output)
    found = [node.GetName() for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")]
    former = [f"Head {name} of an earlier run" for name in ("uncertainty", "probabilities")]
    assert sorted(found) == sorted(["Head", *former, "Head uncertainty_1"])
    write_result(one, add_volume(scene, scan, "Other"), output)
    assert scene.GetFirstNodeByName("Head uncertainty_1 of an earlier run"), "the result is another volume's now"
    assert scene.GetFirstNodeByName("Other uncertainty")


def test_a_result_that_can_not_be_written_leaves_no_node_behind(scene, scan):
    volume = add_volume(scene, scan)
    labels = make_segmenter(2).segment(scan, SegmentOptions(uncertainty=True))
    with pytest.raises(TypeError):
        write_result(labels, volume, surfaces={"Segment_1": "no surface"})
    for kind, count in (("ScalarVolume", 1), ("Segmentation", 0)):
        assert scene.GetNumberOfNodesByClass(f"vtkMRML{kind}Node") == count


def overlapping(shape: tuple[int, ...]) -> Labels:
    """Five segments in five layers: some overlap, one has no voxel."""
    layers = np.zeros((5, *shape), np.uint8)
    for n in range(4):
        layers[n, :, 5 * n : 5 * n + 8, 3:9] = n + 1
    segments = tuple(Segment(n + 1, f"Part {n + 1}", (n, 0, 0), layer=n) for n in range(5))
    return Labels(layers, Geometry(shape, (3.0, 1.5, 1.2), (5.0, -6.0, 7.0), OBLIQUE), segments)


@pytest.mark.parametrize("shape", [(1, 30, 20), (6, 30, 20)], ids=["2D", "3D"])
def test_a_segmentation_has_the_state_that_it_had_when_slicer_has_put_its_segments_into_other_layers(
    scene, tmp_path, shape
):
    labels, output = overlapping(shape), add_output(scene)
    write_segmentation(labels, output, add_volume(scene, Image(np.zeros((1, *shape)), labels.geometry)))
    segmentation = output.GetSegmentation()
    before = segmentation_state(output)
    assert not has_other_layers(output, before)
    storage = scene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
    storage.SetFileName(str(tmp_path / "r.seg.nrrd"))
    assert storage.WriteData(output)
    assert segmentation.GetNumberOfLayers() == 2
    assert has_other_layers(output, before)
    assert segmentation_state(output) == before
    for name, mask in masks(output).items():
        image = segmentation.GetSegment(name).GetRepresentation("Binary labelmap")
        voxels = vtk.util.numpy_support.vtk_to_numpy(image.GetPointData().GetScalars()).reshape(mask.shape)
        where = tuple(np.argwhere(mask)[-1]) if mask.any() else (0, 0, 0)
        kept, voxels[where] = voxels[where], segmentation.GetSegment(name).GetLabelValue() * (not mask.any())
        assert segmentation_state(output) != before, f"a voxel of {name} is another"
        voxels[where] = kept
        assert segmentation_state(output) == before
    segmentation.GetSegment("Segment_2").GetRepresentation("Binary labelmap").SetSpacing(3, 3, 3)
    assert segmentation_state(output) != before


def test_what_was_drawn_before_slicer_put_segments_into_other_layers_changes_the_state(scene, tmp_path):
    labels, output = overlapping((6, 30, 20)), add_output(scene)
    write_segmentation(labels, output, add_volume(scene, Image(np.zeros((1, 6, 30, 20)), labels.geometry)))
    before = segmentation_state(output)
    image = output.GetSegmentation().GetSegment("Segment_2").GetRepresentation("Binary labelmap")
    vtk.util.numpy_support.vtk_to_numpy(image.GetPointData().GetScalars())[0] = 2
    image.Modified()
    storage = scene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
    storage.SetFileName(str(tmp_path / "r.seg.nrrd"))
    assert storage.WriteData(output)
    assert has_other_layers(output, before)
    assert segmentation_state(output) != before
    assert before != segmentation_state(output)


@pytest.mark.parametrize("shape", [(1, 30, 20), (6, 30, 20)], ids=["2D", "3D"])
def test_a_segmentation_that_was_saved_and_opened_has_its_digest_and_none_that_was_edited(scene, tmp_path, shape):
    labels, output, read = overlapping(shape), add_output(scene), add_output(scene, "Read")
    write_segmentation(labels, output, add_volume(scene, Image(np.zeros((1, *shape)), labels.geometry)))
    output.GetSegmentation().GetSegment("Segment_1").SetColor(0.123456789, 0.5, 1 / 3)
    storage = scene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
    storage.SetFileName(str(tmp_path / "r.seg.nrrd"))
    digests = [segmentation_digest(output)]
    assert storage.WriteData(output)
    assert storage.ReadData(read)
    digests += [segmentation_digest(output), segmentation_digest(read)]
    assert len(set(digests)) == 1
    segment = read.GetSegmentation().GetSegment("Segment_2")
    image = segment.GetRepresentation("Binary labelmap")
    voxels = vtk.util.numpy_support.vtk_to_numpy(image.GetPointData().GetScalars())
    voxels[0] = 0 if voxels[0] == segment.GetLabelValue() else segment.GetLabelValue()
    assert segmentation_digest(read) != digests[0]


@pytest.mark.parametrize(
    "edit",
    [
        lambda segmentation: segmentation.GetSegment("Segment_2").SetName("Lesion"),
        lambda segmentation: segmentation.GetSegment("Segment_2").SetColor(0, 0, 1),
        lambda segmentation: segmentation.GetSegment("Segment_2").SetTerminology("List~SCT^1^A~SCT^2^B~^^~List~^^~^^"),
        lambda segmentation: segmentation.GetSegment("Segment_2").SetTag("Segmentation.Status", "completed"),
        lambda segmentation: segmentation.GetSegment("Segment_2").SetLabelValue(7),
        lambda segmentation: segmentation.GetSegment("Segment_2").GetRepresentation("Binary labelmap").Modified(),
        lambda segmentation: segmentation.SetSegmentIndex("Segment_2", 0),
        lambda segmentation: segmentation.RemoveSegment("Segment_2"),
    ],
    ids=["name", "colour", "terminology", "status", "value", "voxels", "order", "removed"],
)
def test_what_a_person_changes_changes_the_state_of_a_segmentation(scene, edit):
    labels, output = overlapping((6, 30, 20)), add_output(scene)
    write_segmentation(labels, output, add_volume(scene, Image(np.zeros((1, 6, 30, 20)), labels.geometry)))
    before = segmentation_state(output)
    edit(output.GetSegmentation())
    assert segmentation_state(output) != before
    assert not has_other_layers(output, before)


def test_a_result_comes_beside_its_volume_and_stays_where_someone_puts_it(scene, scan):
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    hierarchy = hierarchy or scene.AddNewNodeByClass("vtkMRMLSubjectHierarchyNode")
    study, other, mine = (hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), name) for name in "abc")

    def put(node, folder: int) -> None:
        item = hierarchy.GetItemByDataNode(node) or hierarchy.CreateItem(folder, node)  # Slicer makes it by itself
        hierarchy.SetItemParent(item, folder)

    def folders() -> list[int]:
        return [hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) for node in nodes]

    volume, output = add_volume(scene, scan), add_output(scene)
    uncertainty = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Uncertainty")
    nodes = [output, uncertainty]
    put(volume, study)
    for node in nodes:
        put(node, hierarchy.GetSceneItemID())
    labels = make_segmenter(2).segment(scan, SegmentOptions(uncertainty=True))
    write_segmentation(labels, output, volume)
    write_map(labels.uncertainty, uncertainty, volume)
    assert folders() == [study, study]
    for node in nodes:
        put(node, mine)
    write_segmentation(labels, output, volume)
    write_map(labels.uncertainty, uncertainty, volume)
    assert folders() == [mine, mine]
    second = add_volume(scene, scan, "Second")
    put(second, other)
    write_segmentation(labels, output, second)
    assert folders() == [other, mine], "the result is another volume's now"
    scripted = add_output(scene)
    scripted.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    put(scripted, hierarchy.GetSceneItemID())
    write_segmentation(labels, scripted, volume)
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(scripted)) == study


@pytest.mark.parametrize(
    ("largest", "steps", "off"), [(40 * 60 * 50, [1, 1, 1], 0.01), (4000, [2, 5, 3], surface_module.LOST)]
)
def test_a_surface_lies_around_its_segment(scene, largest, steps, off, monkeypatch):
    monkeypatch.setattr(surface_module, "LARGEST", largest)
    geometry = Geometry((40, 60, 50), (3.0, 1.0, 1.5), (5.0, 6.0, 7.0), OBLIQUE)
    centre = geometry.affine @ [20, 30, 25, 1]
    k, j, i = np.indices(geometry.shape)
    away = np.stack([k, j, i, np.ones_like(k)], -1) @ geometry.affine.T - centre
    ball = (np.linalg.norm(away, axis=-1) < 20).astype(np.uint8)
    assert surface_module._coarser(ball, geometry.spacing)[0] == steps, "about as long along every axis"
    matrix = turn(40, (9, 8, 7))
    volume = add_volume(scene, Image(np.random.default_rng(0).normal(size=geometry.shape), geometry))
    volume.SetAndObserveTransformNodeID(add_transform(scene, matrix).GetID())
    world = read_volumes([volume]).geometry
    fluid = Terminology(("SCT", "91720002", "Body Substance"), ("SCT", "65216001", "Cerebrospinal fluid"))
    labels = Labels(ball, world, (Segment(1, "Ball", (255, 0, 0), fluid), Segment(2, "Nothing", (0, 255, 0))))
    output = add_output(scene)
    write_segmentation(labels, output, volume, closed_surfaces(labels))
    segmentation = output.GetSegmentation()
    surface = segmentation.GetSegment("Segment_1").GetRepresentation("Closed surface")
    properties = vtk.vtkMassProperties()
    properties.SetInputData(surface)
    assert properties.GetVolume() == pytest.approx(ball.sum() * geometry.voxel_volume, rel=off)
    points = vtk.util.numpy_support.vtk_to_numpy(surface.GetPoints().GetData())
    normals = vtk.util.numpy_support.vtk_to_numpy(surface.GetPointData().GetNormals())
    assert (np.sum((points - centre[:3]) * normals, axis=1) > 0).all(), "all point outwards"
    # In the segmentation's own frame, the transform above it not yet applied.
    np.testing.assert_allclose(np.linalg.norm(points - centre[:3], axis=1), 20, atol=2.0)
    opacity = output.GetDisplayNode().GetSegmentOpacity3D
    assert opacity("Segment_1") < 0.5, "one sees through a fluid"
    assert opacity("Segment_2") == 1
    assert segmentation.GetSegment("Segment_2").GetRepresentation("Closed surface").GetNumberOfPoints() == 0
    bounds = np.zeros(6)
    output.GetRASBounds(bounds)
    np.testing.assert_allclose((bounds[::2] + bounds[1::2]) / 2, (matrix @ centre)[:3], atol=3)


@pytest.mark.parametrize("side", [1, -1])
def test_a_surface_faces_outwards_whichever_way_the_axes_turn(side):
    array = np.pad(np.ones((6, 5, 4), np.uint8), 2)
    geometry = Geometry.from_affine(array.shape, np.diag([side, 1, 1, 1]))
    surface = closed_surfaces(Labels(array, geometry, (Segment(1, "Box", (1, 2, 3)),)))["Segment_1"]
    points = vtk.util.numpy_support.vtk_to_numpy(surface.GetPoints().GetData())
    normals = vtk.util.numpy_support.vtk_to_numpy(surface.GetPointData().GetNormals())
    assert (np.sum((points - points.mean(0)) * normals, axis=1) > 0).all()


def test_steps_thin_out_a_large_surface_and_spare_what_is_thin(monkeypatch):
    array = np.zeros((70, 60, 50), np.uint8)
    array[5:65, 5:55, 5:45] = 1
    array[:, 2, 2] = 2
    array[:, 57:] = 3
    names = ("Block", "Vessel", "Plate")
    segments = tuple(Segment(n, name, (255, 0, 0)) for n, name in enumerate(names, 1))
    labels = Labels(array, Geometry(array.shape), segments)
    fine = closed_surfaces(labels)
    monkeypatch.setattr(surface_module, "LARGEST", 60 * 50 * 40 // 8)
    coarse = closed_surfaces(labels)
    assert coarse["Segment_1"].GetNumberOfPoints() < 0.3 * fine["Segment_1"].GetNumberOfPoints()
    np.testing.assert_allclose(coarse["Segment_1"].GetBounds(), fine["Segment_1"].GetBounds(), atol=0.5)
    monkeypatch.setattr(surface_module, "LARGEST", 9)
    assert closed_surfaces(labels)["Segment_2"].GetNumberOfPoints() == fine["Segment_2"].GetNumberOfPoints()
    monkeypatch.setattr(surface_module, "LARGEST", 70 * 3 * 50 // 8)
    plate = [made["Segment_3"].GetNumberOfPoints() for made in (fine, closed_surfaces(labels))]
    assert plate[0] == plate[1], "in steps of two it would be four thick, not three"


def test_a_surface_survives_its_file(tmp_path):
    labels = Labels(np.pad(np.ones((4, 5, 6), np.uint8), 2), Geometry((8, 9, 10)), (Segment(1, "Box", (1, 2, 3)),))
    surface = closed_surfaces(labels)["Segment_1"]
    write_surface(surface, tmp_path / "box.vtp")
    assert read_surface(tmp_path / "box.vtp").GetBounds() == surface.GetBounds()
    with pytest.raises(OSError, match=r"box\.vtp can't be written"):
        write_surface(surface, tmp_path / "nowhere" / "box.vtp")


@pytest.mark.parametrize("what", ["Head", np.zeros(2)])
def test_what_is_no_node_is_refused_in_words(scene, what):
    with pytest.raises(InvalidInput, match=r"the input is .*, and no node; choose a scalar or colour volume"):
        read_volumes([what])
    with pytest.raises(InvalidInput, match=r"and no node; choose a markups ROI"):
        read_region(what)
    with pytest.raises(InvalidInput, match="and no node; choose a segmentation node"):
        check_output_node(what)


def test_a_4d_volume_is_refused(scene):
    node = scene.AddNewNodeByClass("vtkMRMLDiffusionWeightedVolumeNode", "DWI")
    with pytest.raises(InvalidInput, match="DWI is 4D; extract one"):
        read_volumes([node])


def test_a_part_that_a_filter_of_vtk_cut_out_is_taken_once_slicer_has_put_it_right(scene, scan):
    """Such voxels keep their numbers: views show them where they were, and whoever takes them as an array elsewhere."""
    volume = add_volume(scene, scan)
    cut = vtk.vtkExtractVOI()
    cut.SetInputData(volume.GetImageData())
    cut.SetVOI(4, 20, 5, 25, 2, 9)
    cut.Update()
    volume.SetAndObserveImageData(cut.GetOutput())
    with pytest.raises(InvalidInput, match=r"Head begin at \(4, 5, 2\).*ShiftImageDataExtentToZeroStart"):
        read_volumes([volume])
    volume.ShiftImageDataExtentToZeroStart()
    part = read_volumes([volume])
    np.testing.assert_array_equal(part.array, scan.array[:, 2:10, 5:26, 4:21])
    np.testing.assert_allclose(part.geometry.affine[:, 3], scan.geometry.affine @ [2, 5, 4, 1])
