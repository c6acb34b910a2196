"""The panel's part on nodes: which are chosen as input, further channels and output, and what is said of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import slicer
import vtk
from clicking import add_drawing, close_and_open_scene, draw, is_idle, pick, segment, segmentations, select
from event_loop import wait_until
from helpers import make_scan, make_segmenter, save_model
from mrml_scenes import add_transform, add_volume, masks, turn

# --- inputs ----------------------------------------------------------------------------------------------------------


def test_one_volume_in_the_scene_is_already_chosen(widget, volume):
    assert widget.ui.inputSelector.currentNode() is volume
    assert not widget.ui.sampleButton.visible


def test_a_volume_that_was_there_before_the_module_opened_is_chosen(slicer_window, volume, models, load_module):
    widget = load_module()
    widget.enter()
    assert widget.ui.inputSelector.currentNode() is volume


def test_a_colour_volume_can_be_chosen(widget, models, volume, rng):
    save_model(models / "rgb", make_segmenter(2, channels=3))
    widget.enter()
    select(widget.ui.modelComboBox, "rgb")
    photo = add_volume(slicer.mrmlScene, make_scan(rng, channels=3), "Photo", "vtkMRMLVectorVolumeNode")
    widget.ui.inputSelector.setCurrentNode(photo)
    assert widget.ui.inputSelector.currentNode() is photo
    assert not widget.ui.channelsFrame.visible, "it has all channels"
    assert "Photo segmentation is ready" in segment(widget)


def test_a_colour_volume_is_not_counted_as_several_images(widget, rng):
    widget.ui.inputSelector.setCurrentNode(
        add_volume(slicer.mrmlScene, make_scan(rng, channels=3), "Photo", "vtkMRMLVectorVolumeNode")
    )
    select(widget.ui.modelComboBox, "tiny-2d")
    assert "Photo has 3 values per voxel, as colours do, and tiny-2d takes 1" in widget.ui.inputMessageLabel.text
    assert "Vector to Scalar Volume" in widget.ui.inputMessageLabel.text


@pytest.mark.parametrize("kind", ["LabelMapVolume", "DiffusionWeightedVolume"])
def test_what_is_no_image_is_not_chosen_and_the_sample_is_still_offered(widget, kind):
    slicer.mrmlScene.AddNewNodeByClass(f"vtkMRML{kind}Node", "Other")
    assert widget.logic.getParameterNode().inputVolume is None
    assert widget.ui.sampleButton.visible


def test_a_volume_that_slicer_keeps_out_of_its_lists_is_not_chosen(widget):
    hidden = slicer.vtkMRMLScalarVolumeNode()
    hidden.SetHideFromEditors(True)
    slicer.mrmlScene.AddNode(hidden)
    assert widget.logic.getParameterNode().inputVolume is None


def test_an_empty_volume_is_refused_beside_the_field(widget):
    empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Nothing")
    widget.ui.inputSelector.setCurrentNode(empty)
    assert "Nothing is empty" in widget.ui.inputMessageLabel.text
    assert "Nothing is empty" in segment(widget)


def test_a_single_slice_is_for_2d_models(widget, rng):
    add_volume(slicer.mrmlScene, make_scan(rng, (1, 40, 36)), "Slice")
    select(widget.ui.modelComboBox, "tiny-3d")
    assert "tiny-3d is 3D, and Slice is a single slice" in widget.ui.inputMessageLabel.text
    select(widget.ui.modelComboBox, "tiny-2d")
    assert not widget.ui.inputMessageLabel.visible


def test_a_model_for_several_channels_asks_for_them(widget, models, volume, rng):
    save_model(models / "two", make_segmenter(2, channels=2))
    widget.enter()
    select(widget.ui.modelComboBox, "two")
    assert "takes 2 images (c0, c1); chosen: 1" in widget.ui.inputMessageLabel.text
    assert "takes 2 images" in segment(widget)
    other = add_volume(slicer.mrmlScene, make_scan(rng, (10, 30, 30), (3.5, 2.0, 2.0)), "Other")
    selector = slicer.util.findChild(widget.parent, "channelSelector2")
    selector.setCurrentNode(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "Map"))
    assert selector.currentNode() is None, "it is no image"
    selector.setCurrentNode(other)
    assert not widget.ui.inputMessageLabel.visible
    assert "is ready" in segment(widget)
    selector.setCurrentNode(volume)
    assert "is ready" in segment(widget), "an image may be several channels"


def test_of_two_nodes_of_one_name_the_one_that_is_picked_is_taken(widget, models, volume, rng):
    save_model(models / "two", make_segmenter(2, channels=2))
    widget.enter()
    select(widget.ui.modelComboBox, "two")
    later = add_volume(slicer.mrmlScene, make_scan(rng), volume.GetName())
    parameters = widget.logic.getParameterNode()
    pick(widget.ui.inputSelector, later)
    assert parameters.inputVolume is later
    further = slicer.util.findChild(widget.parent, "channelSelector2")
    for node in (later, volume):
        pick(further, node)
        assert widget.panel.nodes.volumes == [later, node]
    for selector, kind in (("roiSelector", "MarkupsROI"), ("outputSelector", "Segmentation")):
        nodes = [slicer.mrmlScene.AddNewNodeByClass(f"vtkMRML{kind}Node", "Mine") for _ in range(2)]
        for node in nodes:
            node.SetName("Mine")
            pick(getattr(widget.ui, selector), node)
        assert nodes[1] in (parameters.roi, parameters.outputSegmentation)


# --- nodes that change, go, or come with a scene ---------------------------------------------------------------------


def test_what_is_said_of_a_node_follows_the_node(widget, volume, scan):
    ui = widget.ui
    select(ui.modelComboBox, "tiny-3d")
    box = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Box")
    ui.roiSelector.setCurrentNode(box)
    assert "Box: the region measures 0 x 0 x 0 mm" in ui.inputMessageLabel.text
    assert "Box: the region measures 0 x 0 x 0 mm" in segment(widget)
    box.SetSize(10, 10, 10)
    assert not ui.inputMessageLabel.visible
    assert ui.statusLabel.text == "", "a refusal goes with its cause"
    warp = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLBSplineTransformNode", "Warp")
    volume.SetAndObserveTransformNodeID(warp.GetID())
    assert "under the non-linear transform Warp" in ui.inputMessageLabel.text
    linear = add_transform(slicer.mrmlScene, turn(20))
    volume.SetAndObserveTransformNodeID(linear.GetID())
    assert not ui.inputMessageLabel.visible
    linear.SetAndObserveTransformNodeID(warp.GetID())
    assert "under the non-linear transform Warp" in ui.inputMessageLabel.text
    volume.SetAndObserveTransformNodeID(None)
    assert not ui.inputMessageLabel.visible
    mine = add_drawing()
    ui.outputSelector.setCurrentNode(mine)
    assert "Its segment will be replaced" in ui.outputMessageLabel.text
    draw(mine, "more")
    assert "Mine was edited and is kept" in ui.outputMessageLabel.text
    mine.SetName("Renamed <2 mm")
    assert "Renamed <2 mm was edited" in ui.outputMessageLabel.text
    assert "Renamed &lt;2 mm was edited" in ui.outputMessageLabel.toolTip, "Qt takes tooltips for HTML"
    slicer.mrmlScene.RemoveNode(mine)
    assert not ui.outputMessageLabel.visible
    empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Coming")
    ui.inputSelector.setCurrentNode(empty)
    assert "Coming is empty" in ui.inputMessageLabel.text
    slicer.util.updateVolumeFromArray(empty, scan.array[0])
    assert not ui.inputMessageLabel.visible


def test_what_is_chosen_and_deleted_has_no_other_chosen_in_its_place(widget, models, volume):
    save_model(models / "two", make_segmenter(2, channels=2))
    widget.enter()
    select(widget.ui.modelComboBox, "two")
    selectors = (
        widget.ui.roiSelector,
        widget.ui.outputSelector,
        slicer.util.findChild(widget.parent, "channelSelector2"),
    )
    for selector, kind in zip(selectors, ("MarkupsROI", "Segmentation", "ScalarVolume"), strict=True):
        nodes = [slicer.mrmlScene.AddNewNodeByClass(f"vtkMRML{kind}Node", name) for name in ("One", "Two", "Three")]
        for deleted in nodes[1:]:
            selector.setCurrentNode(deleted)
            slicer.mrmlScene.RemoveNode(deleted)
            assert selector.currentNode() is None
    assert widget.logic.getParameterNode().outputSegmentation is None


def test_further_channels_are_chosen_again_in_a_scene_that_is_opened(widget, models, volume, rng, tmp_path):
    save_model(models / "three", make_segmenter(2, channels=3))
    widget.enter()
    select(widget.ui.modelComboBox, "three")
    other = add_volume(slicer.mrmlScene, make_scan(rng), "Other")
    slicer.util.findChild(widget.parent, "channelSelector3").setCurrentNode(other)
    close_and_open_scene(tmp_path)
    chosen = [slicer.util.findChild(widget.parent, f"channelSelector{n}").currentNode() for n in (2, 3)]
    assert chosen == [None, slicer.util.getNode("Other")]


def test_a_further_image_is_not_taken_for_another_one_of_the_next_model(widget, models, volume, rng, tmp_path):
    names = {"first": ("T1", "T2; fat: 2 mm"), "second": ("T1", "FLAIR")}
    for model, channels in names.items():
        segmenter = make_segmenter(2, channels=2)
        segmenter.bundle = replace(segmenter.bundle, input=replace(segmenter.bundle.input, channels=channels))
        save_model(models / model, segmenter)
    widget.enter()

    def selector():
        return slicer.util.findChild(widget.parent, "channelSelector2")

    select(widget.ui.modelComboBox, "first")
    selector().setCurrentNode(add_volume(slicer.mrmlScene, make_scan(rng), "Fat"))
    select(widget.ui.modelComboBox, "second")
    assert selector().currentNode() is None
    assert "takes 2 images (T1, FLAIR); chosen: 1" in widget.ui.inputMessageLabel.text
    assert len(slicer.util.findChildren(widget.parent, name="channelSelector2")) == 1
    select(widget.ui.modelComboBox, "first")
    close_and_open_scene(tmp_path)
    assert selector().currentNode() is slicer.util.getNode("Fat")


def test_volume_region_and_output_are_chosen_again_in_a_scene_that_is_opened(widget, volume, rng, tmp_path):
    ui, add = widget.ui, slicer.mrmlScene.AddNewNodeByClass
    ui.inputSelector.setCurrentNode(add_volume(slicer.mrmlScene, make_scan(rng), "Second"))
    ui.roiSelector.setCurrentNode(add("vtkMRMLMarkupsROINode", "Box"))
    ui.outputSelector.setCurrentNode(add("vtkMRMLSegmentationNode", "Mine"))
    close_and_open_scene(tmp_path)
    parameters = widget.logic.getParameterNode()
    for selector, parameter, name in (
        (ui.inputSelector, parameters.inputVolume, "Second"),
        (ui.roiSelector, parameters.roi, "Box"),
        (ui.outputSelector, parameters.outputSegmentation, "Mine"),
    ):
        assert selector.currentNode() is parameter is slicer.util.getNode(name)


def test_an_output_with_segments_of_its_own_stays_chosen_where_the_module_is_reloaded(widget, volume, load_module):
    mine = add_drawing()
    widget.ui.outputSelector.setCurrentNode(mine)
    assert load_module().ui.outputSelector.currentNode() is mine


# --- outputs ---------------------------------------------------------------------------------------------------------


def test_the_chosen_output_is_filled_and_another_volume_gets_its_own(widget, volume, scan):
    select(widget.ui.modelComboBox, "tiny-2d")
    mine = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Mine")
    widget.ui.outputSelector.setCurrentNode(mine)
    assert "Mine is ready" in segment(widget)
    assert mine.GetSegmentation().GetNumberOfSegments() == 2
    assert "2 segments will be replaced" in widget.ui.outputMessageLabel.text
    mine.GetSegmentation().RemoveSegment("Segment_1")
    assert "Mine was edited and is kept" in widget.ui.outputMessageLabel.text
    for node in (None, mine):
        widget.ui.outputSelector.setCurrentNode(node)
    assert "Its segment will be replaced" in widget.ui.outputMessageLabel.text
    widget.ui.inputSelector.setCurrentNode(add_volume(slicer.mrmlScene, scan, "Second"))
    assert widget.ui.outputSelector.currentNode() is None
    assert "Second segmentation is ready" in segment(widget)
    assert len(segmentations()) == 2


def test_another_frame_of_a_sequence_gets_its_own_result(widget, rng):
    select(widget.ui.modelComboBox, "tiny-2d")
    scene, logic = slicer.mrmlScene, slicer.vtkSlicerSequencesLogic()
    logic.SetMRMLScene(scene)
    frames, browser = (scene.AddNewNodeByClass(f"vtkMRMLSequence{kind}Node", "Cine") for kind in ("", "Browser"))
    for number in range(2):
        frame = add_volume(scene, make_scan(rng), "Frame")
        frames.SetDataNodeAtValue(frame, str(number))
        scene.RemoveNode(frame)
    browser.SetAndObserveMasterSequenceNodeID(frames.GetID())
    logic.UpdateAllProxyNodes()
    widget.ui.inputSelector.setCurrentNode(browser.GetProxyNode(frames))
    segment(widget)
    (first,) = segmentations()
    assert widget.ui.outputSelector.currentNode() is first
    before = masks(first)
    browser.SetSelectedItemNumber(1)
    logic.UpdateAllProxyNodes()
    assert widget.ui.outputSelector.currentNode() is None
    segment(widget)
    _, second = segmentations()
    np.testing.assert_equal(masks(first), before)
    draw(second, "more")
    browser.SetSelectedItemNumber(0)
    logic.UpdateAllProxyNodes()
    assert f"{second.GetName()} was edited and is kept" in widget.ui.outputMessageLabel.text
    widget.ui.inputSelector.setCurrentNode(add_volume(scene, make_scan(rng), "Other"))
    assert not widget.ui.outputMessageLabel.visible


def test_a_result_that_was_edited_is_replaced_only_where_it_is_chosen_again(widget, volume):
    select(widget.ui.modelComboBox, "tiny-2d")
    segment(widget)
    assert "Head segmentation is ready" in segment(widget), "one that nobody has edited"
    (first,) = segmentations()
    drawn = first.GetSegmentation().GetSegment("Segment_1").GetRepresentation("Binary labelmap")
    vtk.util.numpy_support.vtk_to_numpy(drawn.GetPointData().GetScalars())[:] = 1
    drawn.Modified()
    assert widget.ui.outputSelector.currentNode() is None
    assert "Head segmentation was edited and is kept" in widget.ui.outputMessageLabel.text
    segment(widget)
    assert len(segmentations()) == 2
    assert masks(first)["Segment_1"].all()
    assert "2 segments will be replaced" in widget.ui.outputMessageLabel.text
    widget.ui.outputSelector.setCurrentNode(first)
    segment(widget)
    assert len(segmentations()) == 2
    assert not masks(first)["Segment_1"].all()


def test_saving_a_result_whose_segments_overlap_is_no_edit_and_a_voxel_is(widget, models, volume):
    """Slicer puts the segments into other images while it saves them."""
    segmenter = make_segmenter(3, classes=4, activation="sigmoid")
    head = segmenter.network.head
    for numbers in (head.weight, head.bias):
        numbers.data[3] = -numbers.data[0]  # which don't overlap, and share an image then
    save_model(models / "overlapping", segmenter)
    widget.enter()
    select(widget.ui.modelComboBox, "overlapping")
    segment(widget)
    (node,) = segmentations()
    segmentation = node.GetSegmentation()
    layers = segmentation.GetNumberOfLayers()
    for _ in range(2):
        segmentation.CollapseBinaryLabelmaps(False)
        assert 1 < segmentation.GetNumberOfLayers() < layers
        assert widget.ui.outputSelector.currentNode() is node
        segment(widget)
        assert segmentations() == [node]
    widget.ui.segmentButton.click()
    segmentation.CollapseBinaryLabelmaps(False)
    wait_until(lambda: is_idle(widget), 60)
    assert segmentations() == [node], "also during a run"
    segmentation.CollapseBinaryLabelmaps(False)
    drawn = segmentation.GetSegment("Segment_2").GetRepresentation("Binary labelmap")
    voxels = vtk.util.numpy_support.vtk_to_numpy(drawn.GetPointData().GetScalars())
    voxels[0] = 0 if voxels[0] else segmentation.GetSegment("Segment_2").GetLabelValue()
    drawn.Modified()
    widget.ui.segmentButton.click()
    assert "Head segmentation was edited and is kept" in widget.ui.outputMessageLabel.text
    wait_until(lambda: is_idle(widget), 60)
    assert len(segmentations()) == 2


@pytest.mark.parametrize("edit", ["name", "colour", "terminology", "order", "segment"])
def test_what_is_edited_after_the_module_was_loaded_anew_is_kept(widget, volume, load_module, edit):
    select(widget.ui.modelComboBox, "tiny-2d")
    segment(widget)
    widget.cleanup()
    widget = load_module()
    (node,) = segmentations()
    assert widget.ui.outputSelector.currentNode() is node
    first = node.GetSegmentation().GetNthSegment(0)
    if edit == "name":
        first.SetName("Lesion")
    elif edit == "colour":
        first.SetColor(0.1, 0.2, 0.3)
    elif edit == "terminology":
        first.SetTerminology("List~SCT^49755003^Morphologically Altered Structure~SCT^4147007^Mass~^^~List~^^~^^")
    elif edit == "order":
        node.GetSegmentation().SetSegmentIndex("Segment_2", 0)
    else:
        draw(node, "more")
    assert widget.ui.outputSelector.currentNode() is None
    assert "was edited and is kept" in widget.ui.outputMessageLabel.text


def test_what_was_edited_while_no_panel_was_open_is_kept(widget, volume, load_module):
    """As where a scene is opened, corrected by hand, and only then the module is opened."""
    select(widget.ui.modelComboBox, "tiny-2d")
    segment(widget)
    (node,) = segmentations()
    widget.cleanup()
    draw(node, "more")
    widget = load_module()
    assert widget.ui.outputSelector.currentNode() is None
    assert "Head segmentation was edited and is kept" in widget.ui.outputMessageLabel.text
    pick(widget.ui.outputSelector, node)
    widget.cleanup()
    widget = load_module()
    assert widget.ui.outputSelector.currentNode() is node, "it was chosen to be replaced"
    segment(widget)
    widget.cleanup()
    assert load_module().ui.outputSelector.currentNode() is node, "a run is no edit"


def test_another_volume_gets_its_own_result_after_the_module_was_loaded_anew(widget, volume, scan, load_module):
    select(widget.ui.modelComboBox, "tiny-2d")
    segment(widget)
    widget.cleanup()
    again = load_module()
    again.enter()
    assert again.ui.outputSelector.currentNode().GetName() == "Head segmentation"
    again.ui.inputSelector.setCurrentNode(add_volume(slicer.mrmlScene, scan, "Second"))
    assert "Second segmentation is ready" in segment(again)
    assert len(segmentations()) == 2


def test_a_volume_chosen_during_the_run_gets_its_own_result(widget, volume, scan):
    select(widget.ui.modelComboBox, "tiny-2d")
    widget.ui.segmentButton.click()
    widget.logic.getParameterNode().inputVolume = add_volume(slicer.mrmlScene, scan, "Second")
    wait_until(lambda: is_idle(widget), 60)
    assert "Head segmentation is ready" in widget.ui.statusLabel.text
    assert "Second segmentation is ready" in segment(widget)
    assert len(segmentations()) == 2
