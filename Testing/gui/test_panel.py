"""The real panel, driven by clicks on the stand-in for Slicer's window."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import slicer
import torch
import vtk
from event_loop import EventLoopWatch, wait_until
from helpers import make_scan, make_segmenter, save_model
from mrml_scenes import add_transform, add_volume, masks, turn

from DeepLabSegLib.catalog import DEFAULT_MODEL
from DeepLabSegLib.worker import ENVIRONMENT

UI = Path(__file__).parents[2] / "DeepLabSeg" / "Resources" / "UI" / "DeepLabSeg.ui"
SLOW = {"tile": "8x16x16", "overlap": 0.9}
"""Settings under which a run of a 3D model takes long enough to be disturbed."""


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A folder of models that the panel lists: small ones with random weights."""
    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.setenv("DEEPLABSEG_MODELS", str(folder))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    return folder


@pytest.fixture
def widget(load_module, models):
    """The module, open, with a 2D and a 3D model."""
    save_model(models / "tiny-2d", make_segmenter(2))
    save_model(models / "tiny-3d", make_segmenter(3))
    widget = load_module()
    widget.enter()
    widget.parent.resize(480, 1150)
    widget.parent.show()
    return widget


@pytest.fixture
def volume(slicer_window, scan):
    return add_volume(slicer.mrmlScene, scan)


def select(combo, value) -> None:
    """As a person does: by choosing the entry."""
    index = combo.findData(value)
    assert index >= 0
    combo.setCurrentIndex(index)


def is_idle(widget) -> bool:
    return widget.ui.segmentButton.text == "Segment"


def segment(widget, timeout_s: float = 60) -> str:
    """Click, wait for the end, and give what the panel says."""
    widget.ui.segmentButton.click()
    wait_until(lambda: is_idle(widget), timeout_s)
    return widget.ui.statusLabel.text


def start(widget, **settings) -> None:
    """Click, and wait until tiles are going through the network."""
    parameters = widget.logic.getParameterNode()
    for name, value in settings.items():
        setattr(parameters, name, value)
    widget.ui.segmentButton.click()
    wait_until(lambda: "Segmenting" in widget.ui.statusLabel.text, 60)


def segmentations() -> list:
    return list(slicer.util.getNodesByClass("vtkMRMLSegmentationNode"))


def leftovers() -> list[Path]:
    return list(Path(slicer.app.temporaryPath).glob("DeepLabSeg-*"))


def worker_pid(widget) -> int:
    return int(widget.panel.worker.processId)


def python_pid(widget) -> int:
    """The worker's Python, which in Slicer is the child of a launcher."""
    listed = subprocess.run(["pgrep", "-P", str(worker_pid(widget))], capture_output=True, text=True, check=False)
    return int(listed.stdout.strip() or worker_pid(widget))


def draw(node, segment_id: str) -> None:
    """A segment as a person draws it."""
    segment = slicer.vtkSegment()
    drawn = slicer.vtkOrientedImageData()
    drawn.SetDimensions(2, 2, 2)
    drawn.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    segment.AddRepresentation("Binary labelmap", drawn)
    node.GetSegmentation().AddSegment(segment, segment_id)


def add_drawing():
    """A segmentation with a segment that a person has drawn."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Mine")
    draw(node, "lesion")
    return node


def close_and_open_scene(folder: Path) -> None:
    """Save the scene, close it and open it again."""
    scene = slicer.mrmlScene
    scene.SetURL(str(folder / "scene.mrml"))
    scene.Commit()
    scene.Clear()
    scene.SetURL(str(folder / "scene.mrml"))
    scene.Import()


# --- choosing ---------------------------------------------------------------------------------------------------------


def test_with_nothing_in_the_scene_it_says_what_to_do(widget, screenshot):
    ui = widget.ui
    assert ui.modelComboBox.currentText == DEFAULT_MODEL, "the default model is chosen"
    assert ui.sampleButton.visible
    screenshot(widget.parent, "panel-empty")
    ui.segmentButton.click()
    assert "no volume is chosen" in ui.statusLabel.text
    assert is_idle(widget)
    assert segmentations() == []


def test_a_refusal_goes_when_something_else_is_chosen(widget, scan):
    widget.ui.segmentButton.click()
    add_volume(slicer.mrmlScene, scan)
    assert widget.ui.statusLabel.text == ""
    select(widget.ui.modelComboBox, "tiny-3d")
    widget.logic.getParameterNode().tile = "as you like"
    widget.ui.segmentButton.click()
    assert "as you like" in widget.ui.statusLabel.text
    widget.logic.getParameterNode().tile = ""
    assert widget.ui.statusLabel.text == ""
    said = segment(widget)
    select(widget.ui.modelComboBox, "tiny-2d")
    assert widget.ui.statusLabel.text == said, "what was done stays said"


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
    volume.SetAndObserveTransformNodeID(None)
    assert not ui.inputMessageLabel.visible
    mine = add_drawing()
    ui.outputSelector.setCurrentNode(mine)
    assert "Its segment will be replaced" in ui.outputMessageLabel.text
    draw(mine, "more")
    assert "Mine was edited and is kept" in ui.outputMessageLabel.text
    mine.SetName("Renamed")
    assert "Renamed was edited" in ui.outputMessageLabel.text
    slicer.mrmlScene.RemoveNode(mine)
    assert not ui.outputMessageLabel.visible
    empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Coming")
    ui.inputSelector.setCurrentNode(empty)
    assert "Coming is empty" in ui.inputMessageLabel.text
    slicer.util.updateVolumeFromArray(empty, scan.array[0])
    assert not ui.inputMessageLabel.visible


@pytest.mark.parametrize(("behind", "is_dark"), [("#efefef", False), ("#353535", True)])
def test_what_is_said_can_be_read_in_a_light_and_in_a_dark_style(widget, behind, is_dark):
    import qt

    palette = widget.parent.palette
    palette.setColor(qt.QPalette.Window, qt.QColor(behind))
    widget.parent.setPalette(palette)
    widget.ui.segmentButton.click()
    said = qt.QColor(re.search("#[0-9a-f]{6}", widget.ui.statusLabel.styleSheet).group())
    assert (said.lightness() > 128) == is_dark


def test_one_volume_in_the_scene_is_already_chosen(widget, volume):
    assert widget.ui.inputSelector.currentNode() is volume
    assert not widget.ui.sampleButton.visible


def test_a_colour_volume_can_be_chosen(widget, models, volume, rng):
    save_model(models / "rgb", make_segmenter(2, channels=3))
    widget.enter()
    select(widget.ui.modelComboBox, "rgb")
    photo = add_volume(slicer.mrmlScene, make_scan(rng, channels=3), "Photo", "vtkMRMLVectorVolumeNode")
    widget.ui.inputSelector.setCurrentNode(photo)
    assert widget.ui.inputSelector.currentNode() is photo
    assert "Photo segmentation is ready" in segment(widget)


@pytest.mark.parametrize("kind", ["LabelMapVolume", "DiffusionWeightedVolume"])
def test_what_is_no_image_is_not_chosen_and_the_sample_is_still_offered(widget, kind):
    slicer.mrmlScene.AddNewNodeByClass(f"vtkMRML{kind}Node", "Other")
    assert widget.logic.getParameterNode().inputVolume is None
    assert widget.ui.sampleButton.visible


def test_a_volume_that_was_there_before_the_module_opened_is_chosen(slicer_window, volume, models, load_module):
    widget = load_module()
    widget.enter()
    assert widget.ui.inputSelector.currentNode() is volume


def test_all_encoders_are_listed_by_family(widget):
    from DeepLabSegLib.catalog import ENCODERS

    combo = widget.ui.encoderComboBox
    for family, names in ENCODERS.items():
        heading = combo.findText(f"— {family} —")
        assert [combo.itemText(heading + 1 + n) for n in range(len(names))] == list(names)
    assert [widget.ui.depthComboBox.itemData(n) for n in range(3)] == [3, 4, 5]


def test_choosing_a_model_fills_and_locks_what_it_tells(widget):
    ui = widget.ui
    select(ui.modelComboBox, "tiny-3d")
    assert (ui.encoderComboBox.currentText, ui.depthComboBox.currentText) == ("resnet18", "3")
    assert ui.dimensionsComboBox.currentText == "3D"
    assert (ui.classesValueLabel.text, ui.channelsValueLabel.text) == ("3", "1 (c0)")
    locked = ("encoderComboBox", "depthComboBox", "dimensionsComboBox", "sliceAxisComboBox")
    assert [name for name in locked if getattr(ui, name).enabled] == []
    assert ui.modelDescriptionLabel.text == "a small network with random weights"
    text = ui.modelInfoLabel.text
    for words in ("Part&nbsp;1", "Apache-2.0"):
        assert words in text
    assert not ui.weightsPathLineEdit.visible


def test_segment_and_what_goes_on_are_seen_on_a_small_screen(widget, volume, qt_app):
    ui = widget.ui
    select(ui.modelComboBox, DEFAULT_MODEL)
    widget.parent.resize(480, 900)
    widget.parent.show()
    ui.progressBar.visible = True
    qt_app.processEvents()
    assert ui.inputSelector.currentNode() is not None
    assert ui.statusLabel.y < 440, "a laptop's panel shows this much without scrolling"
    assert ui.segmentButton.y < ui.progressBar.y < ui.statusLabel.y < ui.aboutCollapsibleButton.y


def test_what_a_model_says_of_itself_leaves_the_panel_narrow(widget):
    ui = widget.ui
    select(ui.modelComboBox, DEFAULT_MODEL)
    sections = (ui.inputCollapsibleButton, ui.modelCollapsibleButton, ui.outputCollapsibleButton)
    assert ui.aboutCollapsibleButton.sizeHint.width() <= max(section.sizeHint.width() for section in sections)


def test_a_long_name_without_a_space_leaves_the_panel_as_wide_as_it_was(widget, models, scan, qt_app):
    def width() -> int:
        qt_app.processEvents()
        return widget.panel.widget.minimumSizeHint.width()

    ui, add = widget.ui, slicer.mrmlScene.AddNewNodeByClass
    name, narrow = "x" * 71, width()
    save_model(models / name, make_segmenter(2, channels=2))
    widget.enter()
    select(ui.modelComboBox, name)
    volume = add_volume(slicer.mrmlScene, scan, name)
    slicer.util.findChild(widget.parent, "channelSelector2").setCurrentNode(volume)
    ui.outputSelector.setCurrentNode(add("vtkMRMLSegmentationNode", name))
    assert name in segment(widget)
    ui.roiSelector.setCurrentNode(add("vtkMRMLMarkupsROINode", name))
    assert name in ui.inputMessageLabel.text
    assert width() == narrow
    slicer.mrmlScene.RemoveNode(ui.outputSelector.currentNode())
    choose_file(widget, models / name / "nothing")
    assert name in ui.modelMessageLabel.text
    assert width() == narrow


def test_a_figure_stands_beside_the_segment_that_it_is_of(widget):
    select(widget.ui.modelComboBox, DEFAULT_MODEL)
    text = widget.ui.modelInfoLabel.text
    assert re.search(r"Thalamus&nbsp;\(0\.\d\d\)", text)
    assert "Thalamus, Dice" not in text
    assert "Intracranial volume, Dice 0." in text, "it is of no single segment"


def test_a_weights_file_is_looked_into_and_asks_for_what_it_can_not_tell(widget, tmp_path, screenshot):
    ui = widget.ui
    torch.save(make_segmenter(3).network.state_dict(), tmp_path / "mine.pth")
    select(ui.modelComboBox, "")
    assert "no file is chosen" in ui.modelMessageLabel.text
    ui.weightsPathLineEdit.currentPath = str(tmp_path / "mine.pth")
    wait_until(lambda: ui.classesValueLabel.text == "3", 60)
    assert (ui.encoderComboBox.currentText, ui.dimensionsComboBox.currentText) == ("resnet18", "3D")
    assert "without normalisation" in ui.modelMessageLabel.text
    assert ui.weightsFrame.visible
    assert not ui.networkCollapsibleButton.collapsed
    names = ("labelsLineEditLabel", "activationComboBoxLabel", "normalizationComboBoxLabel", "dilationLineEditLabel")
    unsaid = [getattr(ui, name) for name in names]
    assert all(label.styleSheet for label in unsaid), "what is assumed stands out"
    screenshot(widget.parent, "panel-weights")
    ui.normalizationComboBox.setEditText("zscore")
    ui.labelsLineEdit.text = "Liver, Spleen"
    wait_until(lambda: "Liver" in ui.modelInfoLabel.text, 60)
    assert "without normalisation" not in ui.modelMessageLabel.text
    assert [bool(label.styleSheet) for label in unsaid] == [False, False, False, True], "the labels tell the activation"
    ui.labelsLineEdit.text = "one, two, three, four, five"
    wait_until(lambda: "5 labels are given" in ui.modelMessageLabel.text, 60)
    select(ui.modelComboBox, DEFAULT_MODEL)
    assert ui.networkCollapsibleButton.collapsed, "nothing is asked of a model that says all of itself"


def test_weights_from_a_file_are_run_as_they_were_described(widget, tmp_path, volume, scan):
    segmenter = make_segmenter(2, orientation=None)
    torch.save(segmenter.network.state_dict(), tmp_path / "mine.pth")
    parameters = widget.logic.getParameterNode()
    parameters.weightsPath, parameters.model = str(tmp_path / "mine.pth"), ""
    parameters.labels, parameters.normalization, parameters.dilationRates = "Liver, Spleen", "zscore", "2, 4"
    wait_until(lambda: "Liver" in widget.ui.modelInfoLabel.text, 60)
    assert "is ready" in segment(widget)
    found = masks(segmentations()[0])
    expected = segmenter.segment(scan)
    np.testing.assert_array_equal(found["Segment_1"], expected.array == 1)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "can't be read"), (b"PK\x03\x04 something else", "can't be read"), (None, "does not exist")],
)
def test_a_file_that_is_no_model_is_said_beside_the_field(widget, volume, tmp_path, content, words):
    path = tmp_path / "broken.safetensors"
    if content is not None:
        path.write_bytes(content)
    widget.ui.weightsPathLineEdit.currentPath = str(path)
    wait_until(lambda: words in widget.ui.modelMessageLabel.text, 60)
    assert words in segment(widget)


def test_a_model_for_several_channels_asks_for_them(widget, models, volume, rng, slicer_window):
    save_model(models / "two", make_segmenter(2, channels=2))
    widget.enter()
    select(widget.ui.modelComboBox, "two")
    assert "takes 2 images (c0, c1); chosen: 1" in widget.ui.inputMessageLabel.text
    assert "takes 2 images" in segment(widget)
    other = add_volume(slicer.mrmlScene, make_scan(rng, (10, 30, 30), (3.5, 2.0, 2.0)), "Other")
    selector = slicer.util.findChild(widget.parent, "channelSelector2")
    selector.setCurrentNode(other)
    assert not widget.ui.inputMessageLabel.visible
    assert "is ready" in segment(widget)
    selector.setCurrentNode(volume)
    assert "is ready" in segment(widget), "an image may be several channels"


def test_further_channels_are_chosen_again_in_a_scene_that_is_opened(widget, models, volume, rng, tmp_path):
    save_model(models / "three", make_segmenter(2, channels=3))
    widget.enter()
    select(widget.ui.modelComboBox, "three")
    other = add_volume(slicer.mrmlScene, make_scan(rng), "Other")
    slicer.util.findChild(widget.parent, "channelSelector3").setCurrentNode(other)
    close_and_open_scene(tmp_path)
    chosen = [slicer.util.findChild(widget.parent, f"channelSelector{n}").currentNode() for n in (2, 3)]
    assert chosen == [None, slicer.util.getNode("Other")]


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


def test_what_is_chosen_and_deleted_has_no_other_chosen_in_its_place(widget, models, volume, rng):
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


def test_what_was_said_of_a_scene_goes_with_it(widget, volume):
    select(widget.ui.modelComboBox, "tiny-2d")
    assert "is ready" in segment(widget)
    slicer.mrmlScene.Clear()
    assert widget.ui.statusLabel.text == ""


def test_a_model_whose_folder_was_removed_is_said_to_be_missing(widget, models, volume):
    select(widget.ui.modelComboBox, "tiny-2d")
    (models / "tiny-2d").rename(models.parent / "elsewhere")
    widget.enter()
    assert widget.ui.modelComboBox.currentText == "tiny-2d (missing)"
    assert "there is no model 'tiny-2d'" in widget.ui.modelMessageLabel.text
    assert "there is no model 'tiny-2d'" in segment(widget)
    assert segmentations() == []


# --- running ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [2, 3])
def test_a_click_segments_as_the_logic_does(widget, volume, dims, screenshot):
    select(widget.ui.modelComboBox, f"tiny-{dims}d")
    widget.ui.uncertaintyCheckBox.checked = True
    said = segment(widget)
    assert said.startswith("Head segmentation is ready")
    assert "GB at most" in said
    (node,) = segmentations()
    assert widget.ui.outputSelector.currentNode() is node
    expected = widget.logic.segment(volume, model=f"tiny-{dims}d", device="cpu")
    for name, mask in masks(expected).items():
        np.testing.assert_array_equal(masks(node)[name], mask)
    assert node.GetSegmentation().GetSegment("Segment_1").GetRepresentation("Closed surface").GetNumberOfPoints() > 0
    assert (
        slicer.util.getNode("Head uncertainty").GetImageData().GetDimensions() == volume.GetImageData().GetDimensions()
    )
    assert "Part 1" in widget.ui.logTextEdit.plainText
    assert leftovers() == []
    if dims == 2:
        screenshot(widget.parent, "panel-done")


def test_the_chosen_output_is_filled_and_another_volume_gets_its_own(widget, volume, scan):
    select(widget.ui.modelComboBox, "tiny-2d")
    mine = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Mine")
    widget.ui.outputSelector.setCurrentNode(mine)
    assert "Mine is ready" in segment(widget)
    assert mine.GetSegmentation().GetNumberOfSegments() == 2
    assert "2 segments will be replaced" in widget.ui.outputMessageLabel.text
    mine.GetSegmentation().RemoveSegment("Segment_1")
    for node in (None, mine):
        widget.ui.outputSelector.setCurrentNode(node)
    assert "Its segment will be replaced" in widget.ui.outputMessageLabel.text
    widget.ui.inputSelector.setCurrentNode(add_volume(slicer.mrmlScene, scan, "Second"))
    assert widget.ui.outputSelector.currentNode() is None
    assert "Second segmentation is ready" in segment(widget)
    assert len(segmentations()) == 2


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


def test_a_result_is_seen_where_the_last_one_was_hidden(widget, volume):
    select(widget.ui.modelComboBox, "tiny-2d")
    segment(widget)
    display = segmentations()[0].GetDisplayNode()
    display.SetVisibility(False)
    display.SetVisibility3D(False)
    segment(widget)
    assert (display.GetVisibility(), display.GetVisibility3D()) == (1, 1)


def test_only_models_that_do_not_tell_sides_apart_can_be_mirrored(widget, volume, models):
    told = make_segmenter(2)
    told.bundle = replace(told.bundle, input=replace(told.bundle.input, mirror_axes=()))
    save_model(models / "tiny-2d", told, overwrite=True)
    select(widget.ui.modelComboBox, "tiny-3d")
    widget.ui.mirrorCheckBox.checked = True
    assert widget.ui.mirrorCheckBox.enabled
    select(widget.ui.modelComboBox, "tiny-2d")
    assert not widget.ui.mirrorCheckBox.enabled
    assert "is ready" in segment(widget)


def test_a_direction_of_slices_is_asked_where_the_model_leaves_it_open(widget, models):
    save_model(models / "as-acquired", make_segmenter(2, orientation=None))
    widget.enter()
    for model, is_open in (("tiny-2d", True), ("as-acquired", False), ("tiny-3d", False)):
        select(widget.ui.modelComboBox, model)
        assert widget.ui.sliceAxisComboBox.enabled == is_open


def test_a_region_restricts_the_run(widget, volume, scan):
    select(widget.ui.modelComboBox, "tiny-2d")
    roi = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Box")
    roi.SetCenter(*(scan.geometry.affine @ [6, 20, 18, 1])[:3])
    roi.SetSize(12, 12, 12)
    widget.ui.roiSelector.setCurrentNode(roi)
    assert "is ready" in segment(widget)
    inside = np.zeros(scan.geometry.shape, bool)
    inside[4:9, 16:25, 13:24] = True
    for mask in masks(segmentations()[0]).values():
        assert not mask[~inside].any()


@pytest.mark.parametrize(
    ("centre", "size", "words"),
    [((500, 0, 0), (9, 9, 9), "no voxel of the volume lies in the region"), ((0, 0, 0), (0, 0, 0), "0 x 0 x 0 mm")],
)
def test_a_region_that_holds_nothing_is_refused(widget, volume, centre, size, words):
    roi = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Box")
    roi.SetCenter(*centre)
    roi.SetSize(*size)
    widget.ui.roiSelector.setCurrentNode(roi)
    assert words in segment(widget)
    assert segmentations() == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tile": "ninety"}, "'ninety' is no list of sizes"),
        ({"tile": "8x8x8"}, "tile has 3 sizes; this model is 2D"),
        ({"device": "cuda:0"}, "device 'cuda:0' isn't available"),
        ({"device": "cpu", "precision": "fp16"}, "fp16 is for GPUs"),
    ],
)
def test_settings_that_can_not_be_are_refused_in_words(widget, volume, settings, words):
    select(widget.ui.modelComboBox, "tiny-2d")
    for name, value in settings.items():
        setattr(widget.logic.getParameterNode(), name, value)
    assert words in segment(widget)
    assert segmentations() == []
    assert leftovers() == []


def test_an_empty_volume_is_refused_beside_the_field(widget, slicer_window):
    empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Nothing")
    widget.ui.inputSelector.setCurrentNode(empty)
    assert "Nothing is empty" in widget.ui.inputMessageLabel.text
    assert "Nothing is empty" in segment(widget)


def test_the_window_stays_alive_during_a_run(widget, volume, screenshot):
    select(widget.ui.modelComboBox, "tiny-3d")
    with EventLoopWatch() as watch:
        start(widget, **SLOW)
        wait_until(lambda: "left" in widget.ui.statusLabel.text, 60)
    assert watch.longest_gap_s < 0.1
    assert widget.ui.segmentButton.text == "Cancel"
    assert not widget.ui.inputCollapsibleButton.enabled
    assert widget.ui.progressBar.visible
    screenshot(widget.parent, "panel-running")
    widget.ui.segmentButton.click()
    wait_until(lambda: is_idle(widget), 10)


def test_from_click_to_result_the_window_is_never_held_up(widget, volume):
    """Best of three: the machine may be busy with something else."""
    select(widget.ui.modelComboBox, "tiny-2d")
    gaps = []
    for _ in range(3):
        with EventLoopWatch() as watch:
            assert "is ready" in segment(widget)
        gaps.append(watch.longest_gap_s)
    assert min(gaps) < 0.1


def test_the_second_click_finds_the_model_warm(widget, volume):
    select(widget.ui.modelComboBox, "tiny-2d")
    widget.ui.show3DCheckBox.checked = False
    segment(widget)
    pid, started = worker_pid(widget), time.monotonic()
    segment(widget)
    assert worker_pid(widget) == pid
    assert time.monotonic() - started < 5, "a fresh process would import torch and load the model again"


@pytest.mark.skipif(sys.platform != "linux", reason="a process tells its environment in /proc")
@pytest.mark.parametrize("own", [None, "glibc.malloc.arena_max=2"])
def test_the_worker_has_the_environment_that_it_wants_where_the_user_set_none(widget, volume, monkeypatch, own):
    if own:
        monkeypatch.setenv("GLIBC_TUNABLES", own)
    widget.panel.worker.stop()  # it was asked for the devices when the module opened
    select(widget.ui.modelComboBox, "tiny-2d")
    segment(widget)
    environment = Path(f"/proc/{worker_pid(widget)}/environ").read_text().split("\0")
    assert f"GLIBC_TUNABLES={own or ENVIRONMENT['GLIBC_TUNABLES']}" in environment
    assert f"PATH={os.environ['PATH']}" in environment, "the rest is Slicer's own"


@pytest.mark.skipif(sys.platform == "win32", reason="the launcher is a script")
def test_the_worker_starts_behind_a_launcher_that_passes_ascii_alone_on(
    widget, volume, tmp_path, monkeypatch, python_slicer
):
    """As Slicer 5.10's does on Windows."""
    python_slicer(
        "import os, sys\nif not all(argument.isascii() for argument in sys.argv):\n    sys.exit(1)\n"
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    folder = tmp_path / "Zoë's 'Slicer'"
    folder.mkdir()
    (folder / "DeepLabSegLib").symlink_to(UI.parents[3] / "DeepLabSegLib")
    monkeypatch.setattr("DeepLabSegPanel.worker_process.LIBRARY", str(folder))
    widget.panel.worker.stop()
    select(widget.ui.modelComboBox, "tiny-2d")
    assert "is ready" in segment(widget)


def test_unloading_ends_the_process(widget, volume):
    select(widget.ui.modelComboBox, "tiny-2d")
    segment(widget)
    pid = worker_pid(widget)
    assert widget.ui.unloadButton.enabled
    widget.ui.unloadButton.click()
    assert not exists(pid)
    assert not widget.ui.unloadButton.enabled
    assert "is ready" in segment(widget)


# --- disturbances -----------------------------------------------------------------------------------------------------


def exists(pid: int) -> bool:
    if sys.platform == "win32":  # whose kill ends the process whatever the signal
        return f" {pid} " in subprocess.run(["tasklist"], capture_output=True, text=True, check=True).stdout
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_cancel_gives_the_panel_back_and_leaves_the_scene(widget, volume):
    select(widget.ui.modelComboBox, "tiny-3d")
    start(widget, **SLOW)
    started = time.monotonic()
    widget.ui.segmentButton.click()
    wait_until(lambda: is_idle(widget), 10)
    assert time.monotonic() - started < 1
    assert "cancelled; nothing was changed" in widget.ui.statusLabel.text
    assert segmentations() == []
    assert leftovers() == []
    widget.logic.getParameterNode().tile = ""
    assert "is ready" in segment(widget)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signal that stops a process")
def test_a_worker_that_does_not_listen_is_ended_after_three_seconds(widget, volume):
    select(widget.ui.modelComboBox, "tiny-3d")
    start(widget, **SLOW)
    os.kill(python_pid(widget), signal.SIGSTOP)
    started = time.monotonic()
    widget.ui.segmentButton.click()
    wait_until(lambda: is_idle(widget), 10)
    assert 2.5 < time.monotonic() - started < 4.5
    assert leftovers() == []


def test_a_worker_that_is_killed_leaves_scene_and_panel_usable(widget, volume, screenshot):
    select(widget.ui.modelComboBox, "tiny-3d")
    start(widget, **SLOW)
    os.kill(worker_pid(widget), getattr(signal, "SIGKILL", signal.SIGTERM))
    wait_until(lambda: is_idle(widget), 10)
    assert "the background process ended unexpectedly" in widget.ui.statusLabel.text
    assert segmentations() == []
    assert leftovers() == []
    screenshot(widget.parent, "panel-error")
    widget.logic.getParameterNode().tile = ""
    assert "is ready" in segment(widget)


def test_without_a_program_to_run_the_panel_says_so_and_stays_usable(widget, volume, monkeypatch):
    widget.panel.worker.stop()
    select(widget.ui.modelComboBox, "tiny-2d")
    with monkeypatch.context() as patched:
        patched.setattr("shutil.which", lambda _: "/nowhere/PythonSlicer")
        assert "/nowhere/PythonSlicer can't be started" in segment(widget)
    assert leftovers() == []
    assert "is ready" in segment(widget)


@pytest.mark.parametrize("deleted", ["Head", "Mine"])
def test_a_node_deleted_during_the_run_ends_it(widget, volume, deleted):
    select(widget.ui.modelComboBox, "tiny-3d")
    mine = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Mine")
    widget.ui.outputSelector.setCurrentNode(mine)
    start(widget, **SLOW)
    slicer.mrmlScene.RemoveNode(slicer.util.getNode(deleted))
    wait_until(lambda: is_idle(widget), 10)
    assert f"{deleted} was deleted during the run" in widget.ui.statusLabel.text
    assert all(node.GetSegmentation().GetNumberOfSegments() == 0 for node in segmentations())
    assert leftovers() == []


def test_a_volume_that_got_another_grid_during_the_run_takes_no_result(widget, volume):
    select(widget.ui.modelComboBox, "tiny-2d")
    widget.ui.segmentButton.click()
    volume.SetSpacing(1, 2, 3)
    wait_until(lambda: is_idle(widget), 60)
    assert "Head was changed during the run" in widget.ui.statusLabel.text
    assert segmentations() == []


def test_a_volume_that_shows_another_time_point_after_the_run_takes_no_result(widget, volume):
    select(widget.ui.modelComboBox, "tiny-2d")
    widget.ui.segmentButton.click()
    slicer.util.updateVolumeFromArray(volume, slicer.util.arrayFromVolume(volume)[::-1].copy())
    wait_until(lambda: is_idle(widget), 60)
    assert "Head was changed during the run" in widget.ui.statusLabel.text
    assert segmentations() == []


def test_an_output_that_was_drawn_in_during_the_run_is_kept(widget, volume):
    mine = add_drawing()
    widget.ui.outputSelector.setCurrentNode(mine)
    select(widget.ui.modelComboBox, "tiny-2d")
    widget.ui.segmentButton.click()
    mine.GetSegmentation().GetSegment("lesion").GetRepresentation("Binary labelmap").Modified()
    wait_until(lambda: is_idle(widget), 60)
    assert "Mine was edited during the run, and is kept." in widget.ui.statusLabel.text
    assert mine.GetSegmentation().GetSegmentIDs() == ("lesion",)
    assert [node.GetName() for node in segmentations()] == ["Mine", "Head segmentation"]


def test_surfaces_and_labels_stay_together_where_the_volume_was_moved_during_the_run(widget, volume):
    select(widget.ui.modelComboBox, "tiny-3d")
    volume.SetAndObserveTransformNodeID(add_transform(slicer.mrmlScene, turn(20)).GetID())
    widget.ui.segmentButton.click()
    volume.SetAndObserveTransformNodeID(add_transform(slicer.mrmlScene, turn(70, (100, 0, 0))).GetID())
    wait_until(lambda: is_idle(widget), 60)
    segment = segmentations()[0].GetSegmentation().GetSegment("Segment_1")
    labels = [0.0] * 6
    segment.GetRepresentation("Binary labelmap").GetBounds(labels)
    low, high = np.reshape(labels, (3, 2)).T
    left, right = np.reshape(segment.GetRepresentation("Closed surface").GetBounds(), (3, 2)).T
    # Centre and size apart: a lone voxel that sticks out of the labels is smoothed away on the surface.
    np.testing.assert_allclose((left + right) / 2, (low + high) / 2, atol=2.0)
    np.testing.assert_allclose(right - left, high - low, atol=4.0)


@pytest.mark.parametrize(
    ("close", "words"),
    [(lambda _: slicer.mrmlScene.Clear(), "scene was closed"), (lambda widget: widget.cleanup(), "cancelled")],
    ids=["scene", "module"],
)
def test_closing_the_scene_or_the_module_ends_run_and_worker(widget, volume, close, words):
    select(widget.ui.modelComboBox, "tiny-3d")
    start(widget, **SLOW)
    pid = worker_pid(widget)
    close(widget)
    wait_until(lambda: is_idle(widget), 10)
    assert not exists(pid)
    assert words in widget.ui.statusLabel.text
    assert leftovers() == []


def test_a_full_disk_is_said(widget, volume, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    said = segment(widget)
    assert "the disk of" in said
    assert "is full" in said
    assert leftovers() == []


def test_a_double_click_is_one(widget, volume):
    select(widget.ui.modelComboBox, "tiny-2d")
    slicer.app.doubleClickInterval = 400
    for _ in range(2):
        widget.ui.segmentButton.click()
    wait_until(lambda: is_idle(widget), 60)
    assert "Head segmentation is ready" in widget.ui.statusLabel.text
    start(widget, **{**SLOW, "tile": "16x16"})
    time.sleep(0.4)
    for _ in range(2):
        widget.ui.segmentButton.click()
        wait_until(lambda: is_idle(widget), 60)
    assert "cancelled" in widget.ui.statusLabel.text


def test_a_result_without_a_voxel_is_no_plain_success(widget, models, volume):
    blind = make_segmenter(2)
    torch.nn.init.zeros_(blind.network.head.weight)
    blind.network.head.bias.data = torch.tensor([9.0, 0.0, 0.0])
    save_model(models / "blind", blind)
    widget.enter()
    select(widget.ui.modelComboBox, "blind")
    assert "None of the model's segments was found" in segment(widget)
    select(widget.ui.modelComboBox, "tiny-2d")
    assert "None of" not in segment(widget)


def test_a_colour_volume_is_not_counted_as_several_images(widget, rng):
    widget.ui.inputSelector.setCurrentNode(
        add_volume(slicer.mrmlScene, make_scan(rng, channels=3), "Photo", "vtkMRMLVectorVolumeNode")
    )
    select(widget.ui.modelComboBox, "tiny-2d")
    assert "Photo has 3 values per voxel, as colours do, and tiny-2d takes 1" in widget.ui.inputMessageLabel.text


def choose_file(widget, path) -> None:
    """As a person does who types it."""
    select(widget.ui.modelComboBox, "")
    widget.ui.weightsPathLineEdit.currentPath = str(path)


def test_what_was_said_of_one_file_is_not_taken_for_the_next(widget, tmp_path):
    choose_file(widget, tmp_path / "one.pt")
    parameters = widget.logic.getParameterNode()
    parameters.labels, parameters.normalization, parameters.spacing = "Liver, Spleen", "zscore", "2x2x2"
    choose_file(widget, tmp_path / "two.pt")
    assert (parameters.labels, parameters.normalization, parameters.spacing) == ("", "", "")
    assert parameters.weightsPath == str(tmp_path / "two.pt")


def test_a_model_that_comes_changes_or_goes_while_it_is_chosen_is_seen_at_the_next_click(widget, tmp_path, volume):
    path = tmp_path / "mine"
    choose_file(widget, f' "{path}" ')
    assert "mine does not exist" in segment(widget)
    choose_file(widget, "~nobody_of_that_name/mine")
    assert "mine does not exist" in segment(widget)
    choose_file(widget, "x" * 5000)
    assert "too long" in segment(widget)
    choose_file(widget, f' "{path}" ')
    save_model(path, make_segmenter(2))
    assert "is ready" in segment(widget)
    shutil.rmtree(path)
    save_model(path, make_segmenter(2, channels=2))
    assert "takes 2 images" in segment(widget)
    assert slicer.util.findChild(widget.parent, "channelSelector2") is not None
    shutil.rmtree(path)
    assert "mine does not exist" in segment(widget)


def test_a_file_that_was_being_looked_into_when_the_worker_ended_can_be_run(widget, tmp_path, volume):
    path = tmp_path / "weights.pt"
    torch.save(make_segmenter(2).network.state_dict(), path)
    choose_file(widget, path)
    widget.logic.getParameterNode().normalization = "zscore"
    wait_until(lambda: "Looking into" in widget.ui.modelMessageLabel.text, 10)
    widget.panel.worker.stop()
    assert "ended" in widget.ui.modelMessageLabel.text
    assert "is ready" in segment(widget)


def test_a_file_that_is_typed_takes_the_place_of_the_one_before(widget, models, volume, tmp_path):
    select(widget.ui.modelComboBox, "")
    widget.ui.weightsPathLineEdit.currentPath = str(models / "tiny-2d" / "model.safetensors")
    assert "is ready" in segment(widget)
    for path in (tmp_path / "notes.txt", models):
        widget.ui.weightsPathLineEdit.currentPath = str(path)
        assert "is ready" not in segment(widget)
    widget.ui.weightsPathLineEdit.currentPath = ""
    assert "no file is chosen" in segment(widget)
    widget.ui.weightsPathLineEdit.currentPath = str(models / "tiny-3d")
    assert "is ready" in segment(widget)


def test_a_model_folder_can_be_chosen_by_a_file_in_it(widget, models, volume):
    """The dialog behind the button with the dots shows files, not folders."""
    choose_file(widget, "")
    assert "the model.json of a model's folder" in widget.ui.modelMessageLabel.text
    told = models / "tiny-2d" / "model.json"
    for number, file in enumerate((told, models / "tiny-2d" / "model.safetensors")):
        choose_file(widget, file)
        assert "is ready" in segment(widget)
        told.write_text(told.read_text().replace("Part 1", f"Lesion {number}").replace("Lesion 0", f"Lesion {number}"))
        assert "is ready" in segment(widget)
        assert f"Lesion {number}" in widget.ui.logTextEdit.plainText, "the model was changed meanwhile"


def test_keras_weights_ask_for_what_reads_them(widget, tmp_path):
    path = tmp_path / "mine.weights.h5"
    path.write_bytes(b"\x89HDF\r\n")
    widget.ui.weightsPathLineEdit.currentPath = str(path)
    assert [requirement.name for requirement in widget.panel._needed()] == ["torch", "safetensors", "h5py"]
    select(widget.ui.modelComboBox, "tiny-2d")
    assert [requirement.name for requirement in widget.panel._needed()] == ["torch", "safetensors"]


def test_the_log_can_be_copied(widget, volume, qt_app):
    segment(widget)
    widget.ui.copyLogButton.click()
    assert "Segmenting Head" in qt_app.clipboard().text()


def test_the_choices_stay_with_the_scene(widget, volume):
    select(widget.ui.modelComboBox, "tiny-3d")
    widget.ui.overlapSlider.value = 0.5
    widget.ui.mirrorCheckBox.checked = True
    parameters = widget.logic.getParameterNode()
    assert (parameters.model, parameters.overlap, parameters.mirror) == ("tiny-3d", 0.5, True)
    slicer.mrmlScene.Clear()
    assert widget.ui.modelComboBox.currentText == DEFAULT_MODEL
    assert widget.ui.overlapSlider.value == 0.25


def test_every_widget_explains_itself(widget):
    kinds = ("Selector", "ComboBox", "LineEdit", "Slider", "CheckBox", "Button", "Edit", "Label")
    names = re.findall(r'widget class="\w+" name="(\w+)"', UI.read_text(encoding="utf-8"))
    telling = [name for name in names if name.endswith(kinds) and not name.endswith(("CollapsibleButton", "HintLabel"))]
    silent = [name for name in telling if not getattr(widget.ui, name).toolTip]
    assert len(telling) > 40
    assert [name for name in silent if not name.endswith("MessageLabel")] == []
