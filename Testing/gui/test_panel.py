"""The real panel, driven by clicks on the stand-in for Slicer's window: what it says, shows and keeps."""

from __future__ import annotations

import re
import time

import pytest
import slicer
import torch
from clicking import SLOW, UI, choose_file, draw, is_idle, segment, segmentations, select, start
from event_loop import wait_until
from helpers import make_segmenter, save_model
from mrml_scenes import add_volume

from DeepLabSegLib.catalog import DEFAULT_MODEL

# --- what it says ----------------------------------------------------------------------------------------------------


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
    assert (widget.ui.statusLabel.text, widget.ui.statusLabel.styleSheet) == ("", "")
    select(widget.ui.modelComboBox, "tiny-3d")
    widget.logic.getParameterNode().tile = "as you like"
    widget.ui.segmentButton.click()
    assert "as you like" in widget.ui.statusLabel.text
    widget.logic.getParameterNode().tile = ""
    assert widget.ui.statusLabel.text == ""
    said = segment(widget)
    select(widget.ui.modelComboBox, "tiny-2d")
    assert widget.ui.statusLabel.text == said, "what was done stays said"


@pytest.mark.parametrize(("behind", "is_dark"), [("#efefef", False), ("#353535", True)])
def test_what_is_said_can_be_read_in_a_light_and_in_a_dark_style(widget, behind, is_dark):
    import qt

    palette = widget.parent.palette
    palette.setColor(qt.QPalette.Window, qt.QColor(behind))
    widget.parent.setPalette(palette)
    widget.ui.segmentButton.click()
    said = qt.QColor(re.search("#[0-9a-f]{6}", widget.ui.statusLabel.styleSheet).group())
    assert (said.lightness() > 128) == is_dark


def test_what_is_said_can_be_read_after_a_change_from_light_to_dark_and_back(widget):
    import qt

    def lightness() -> int:
        return qt.QColor(re.search("#[0-9a-f]{6}", widget.ui.statusLabel.styleSheet).group()).lightness()

    widget.ui.segmentButton.click()
    light = slicer.app.palette()
    try:
        slicer.app.setPalette(qt.QPalette(qt.QColor("#353535")))
        wait_until(lambda: lightness() > 128, 10)
    finally:
        slicer.app.setPalette(light)
    wait_until(lambda: lightness() < 128, 10)


def test_what_was_said_of_a_scene_goes_with_it(widget, volume):
    select(widget.ui.modelComboBox, "tiny-2d")
    assert "is ready" in segment(widget)
    draw(segmentations()[0], "more")
    assert "is kept" in widget.ui.outputMessageLabel.text
    slicer.mrmlScene.Clear()
    assert widget.ui.statusLabel.text == ""
    assert not widget.ui.outputMessageLabel.visible


def test_a_result_without_a_voxel_is_no_plain_success(widget, models, volume):
    blind = make_segmenter(2)
    torch.nn.init.zeros_(blind.network.head.weight)
    blind.network.head.bias.data = torch.tensor([9.0, 0.0, 0.0])
    save_model(models / "blind", blind)
    widget.enter()
    select(widget.ui.modelComboBox, "blind")
    assert "None of the model's segments was found" in segment(widget)
    assert widget.ui.statusLabel.property("tone") == "doubt"
    select(widget.ui.modelComboBox, "tiny-2d")
    assert "None of" not in segment(widget)


def test_the_log_can_be_copied(widget, volume, qt_app):
    segment(widget)
    widget.ui.copyLogButton.click()
    assert "Segmenting Head" in qt_app.clipboard().text()


def test_every_widget_explains_itself(widget):
    kinds = ("Selector", "ComboBox", "LineEdit", "Slider", "CheckBox", "Button", "Edit", "Label")
    names = re.findall(r'widget class="\w+" name="(\w+)"', UI.read_text(encoding="utf-8"))
    telling = [name for name in names if name.endswith(kinds) and not name.endswith(("CollapsibleButton", "HintLabel"))]
    silent = [name for name in telling if not getattr(widget.ui, name).toolTip]
    assert len(telling) > 40
    assert [name for name in silent if not name.endswith("MessageLabel")] == []


@pytest.mark.parametrize(
    ("elapsed", "done", "said"),
    [
        (5, 1, ", about 45 s left"),
        (90, 1, ", about 14 min left"),
        (10, 10, ", about 1 s left"),
        (0.5, 1, ""),
        (9, 0, ""),
    ],
)
def test_the_time_left_is_that_of_the_tiles_to_come(widget, elapsed, done, said):
    from DeepLabSegPanel.panel import _timeLeft

    assert _timeLeft(elapsed, done, 10) == said


def test_a_graphics_card_is_listed_with_its_memory_and_stays_chosen_where_there_is_none(widget):
    def answer(*devices) -> None:
        widget.panel._onDevices({"id": 0, "result": {"torch": "2.9", "devices": devices}})

    combo, cpu = widget.ui.deviceComboBox, {"name": "cpu", "title": "CPU"}
    answer({"name": "cuda:0", "title": "Card", "free_bytes": 5_500_000_000, "total_bytes": 16_000_000_000}, cpu)
    select(combo, "cuda:0")
    assert combo.currentText == "Card, 5.5 of 16.0 GB free"
    answer(cpu)
    assert (combo.currentText, combo.itemData(combo.currentIndex)) == ("cuda:0 (not seen here)", "cuda:0")


# --- how much room it takes ------------------------------------------------------------------------------------------


def test_segment_and_what_goes_on_are_seen_on_a_small_screen(widget, volume, qt_app):
    ui = widget.ui
    select(ui.modelComboBox, DEFAULT_MODEL)
    widget.parent.resize(480, 900)
    widget.parent.show()
    ui.progressBar.visible = True
    qt_app.processEvents()
    assert ui.inputSelector.currentNode() is not None
    wait_until(lambda: ui.statusLabel.y < 410)  # a laptop shows so much, once messages are folded away
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
    for label in (ui.statusLabel, ui.inputMessageLabel):
        assert name in label.toolTip, "what is cut can be read"
    slicer.mrmlScene.RemoveNode(ui.outputSelector.currentNode())
    choose_file(widget, models / name / "nothing")
    assert name in ui.modelMessageLabel.text
    assert width() == narrow


# --- clicks, and what stays ------------------------------------------------------------------------------------------


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


def test_what_is_chosen_is_what_is_asked_for(widget, volume):
    ui, parameters = widget.ui, widget.logic.getParameterNode()
    ui.roiSelector.setCurrentNode(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Box"))
    parameters.roi.SetSize(10, 10, 10)
    ui.outputSelector.setCurrentNode(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Mine"))
    select(ui.modelComboBox, "tiny-2d")
    select(ui.deviceComboBox, "cpu")
    select(ui.precisionComboBox, "bf16")
    select(ui.sliceAxisComboBox, "coronal")
    ui.overlapSlider.value, ui.tileLineEdit.text = 0.5, "16x24"
    for box in (ui.mirrorCheckBox, ui.uncertaintyCheckBox, ui.show3DCheckBox):
        box.click()
    request = widget.panel._request()
    assert request.volumes == [volume]
    assert (request.roi, request.output) == (parameters.roi, parameters.outputSegmentation)
    assert request.choice == {"model": "tiny-2d", "device": "cpu", "precision": "bf16"}
    assert request.options == {
        "overlap": 0.5,
        "mirror": True,
        "uncertainty": True,
        "tile": [16, 24],
        "slice_axis": "coronal",
    }
    assert not request.show3D


def test_what_a_person_says_of_weights_is_kept_and_shown(widget, tmp_path):
    ui, parameters = widget.ui, widget.logic.getParameterNode()
    (tmp_path / "weights.pt").touch()
    choose_file(widget, tmp_path / "weights.pt")
    select(ui.encoderComboBox, "resnet50")
    select(ui.depthComboBox, 4)
    select(ui.activationComboBox, "sigmoid")
    ui.normalizationComboBox.setEditText("zscore")
    said = (parameters.encoder, parameters.depth, parameters.activation, parameters.normalization)
    assert said == ("resnet50", 4, "sigmoid", "zscore")
    parameters.encoder, parameters.depth, parameters.activation, parameters.normalization = "resnet18", 3, "", "none"
    assert (ui.encoderComboBox.currentText, ui.depthComboBox.currentText) == ("resnet18", "3")
    assert (ui.activationComboBox.currentText, ui.normalizationComboBox.currentText) == ("by the labels", "none")


def test_what_was_to_be_said_of_one_run_is_not_said_of_the_next(widget, volume):
    select(widget.ui.modelComboBox, "tiny-2d")
    widget.ui.segmentButton.click()
    widget.panel._onProgress({"stage": "segment", "done": 0, "total": 1, "note": "smaller tiles were taken"})
    assert "smaller tiles were taken" in widget.ui.logTextEdit.plainText, "the run may still fail"
    wait_until(lambda: is_idle(widget), 60)
    assert "smaller tiles were taken" in widget.ui.statusLabel.text
    assert "smaller tiles" not in segment(widget)


def test_the_choices_stay_with_the_scene(widget, volume):
    select(widget.ui.modelComboBox, "tiny-3d")
    widget.ui.overlapSlider.value = 0.5
    widget.ui.mirrorCheckBox.checked = True
    widget.enter()
    parameters = widget.logic.getParameterNode()
    assert (parameters.model, parameters.overlap, parameters.mirror) == ("tiny-3d", 0.5, True)
    slicer.mrmlScene.Clear()
    assert widget.ui.modelComboBox.currentText == DEFAULT_MODEL
    assert widget.ui.overlapSlider.value == 0.25
