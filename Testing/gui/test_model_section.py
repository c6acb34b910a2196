"""The panel's part on models: what is there, what the chosen one says, and what a person must still say."""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import slicer
import torch
from clicking import choose_file, segment, segmentations, select
from event_loop import wait, wait_until
from helpers import make_segmenter, save_model
from mrml_scenes import masks

from DeepLabSegLib.catalog import DEFAULT_MODEL
from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.schema import from_json, to_json
from DeepLabSegLib.segmenter import SegmentOptions
from DeepLabSegLib.session import ModelChoice

# --- models that are there -------------------------------------------------------------------------------------------


def test_all_encoders_are_listed_by_family(widget):
    import qt

    from DeepLabSegLib.catalog import ENCODERS

    combo = widget.ui.encoderComboBox
    for family, names in ENCODERS.items():
        heading = combo.findText(f"— {family} —")
        assert combo.itemData(heading, qt.Qt.UserRole - 1) == 0, "by which Qt lets nobody choose it"
        assert [combo.itemText(heading + 1 + n) for n in range(len(names))] == list(names)
    assert [widget.ui.depthComboBox.itemData(n) for n in range(3)] == [3, 4, 5]


def test_choosing_a_model_fills_and_locks_what_it_tells(widget):
    ui = widget.ui
    select(ui.modelComboBox, "tiny-3d")
    assert (ui.encoderComboBox.currentText, ui.depthComboBox.currentText) == ("resnet18", "3")
    assert ui.dimensionsComboBox.currentText == "3D"
    assert (ui.classesValueLabel.text, ui.channelsValueLabel.text) == ("3", "1 (c0)")
    parameters = widget.logic.getParameterNode()
    assert (parameters.encoder, parameters.depth) == ("", 0), "no person has said it"
    locked = ("encoderComboBox", "depthComboBox", "dimensionsComboBox", "sliceAxisComboBox")
    assert [name for name in locked if getattr(ui, name).enabled] == []
    assert ui.modelDescriptionLabel.text == "a small network with random weights"
    text = ui.modelInfoLabel.text
    for words in ("Part&nbsp;1", "Apache-2.0"):
        assert words in text
    assert not ui.weightsPathLineEdit.visible


def test_a_figure_stands_beside_the_segment_that_it_is_of(widget):
    select(widget.ui.modelComboBox, DEFAULT_MODEL)
    text = widget.ui.modelInfoLabel.text
    assert re.search(r"Thalamus&nbsp;\(0\.\d\d\)", text)
    assert "Thalamus, Dice" not in text
    assert "Intracranial volume, Dice 0." in text, "it is of no single segment"
    assert re.search("<b>Limits:</b>.*Not a medical device", text)


def test_signs_of_html_in_what_a_model_says_are_read_as_they_are(widget, models):
    told = make_segmenter(2)
    (first, *others) = told.bundle.labels
    told.bundle = replace(told.bundle, labels=(replace(first, name="Vessel <2 mm"), *others), license="A <b> c")
    save_model(models / "signs", told)
    widget.enter()
    select(widget.ui.modelComboBox, "signs")
    assert "Vessel&nbsp;&lt;2&nbsp;mm" in widget.ui.modelInfoLabel.text
    assert "A &lt;b&gt; c" in widget.ui.modelInfoLabel.text


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


def test_a_direction_of_slices_is_asked_where_the_model_leaves_it_open(widget, models, volume):
    save_model(models / "as-acquired", make_segmenter(2, orientation=None))
    widget.enter()
    for model, is_open in (("tiny-2d", True), ("as-acquired", False), ("tiny-3d", False)):
        select(widget.ui.modelComboBox, model)
        assert widget.ui.sliceAxisComboBox.enabled == is_open
    widget.logic.getParameterNode().sliceAxis = "axial"
    assert "is ready" in segment(widget), "what can't be chosen is not asked for"


def test_a_threshold_is_for_models_whose_segments_may_overlap(widget, models, volume):
    save_model(models / "overlapping", make_segmenter(2, activation="sigmoid"))
    widget.enter()
    select(widget.ui.modelComboBox, "overlapping")
    request = widget.panel._request()
    unsaid = from_json(ModelChoice, request.choice), from_json(SegmentOptions, request.options)
    assert unsaid == (ModelChoice("overlapping"), SegmentOptions()), "what nobody chose is as everywhere"
    found = []
    for model, threshold in (("overlapping", 0.5), ("overlapping", 0.95), ("tiny-2d", 0.95)):
        select(widget.ui.modelComboBox, model)
        assert widget.ui.thresholdSlider.enabled == (model == "overlapping")
        widget.logic.getParameterNode().threshold = threshold
        assert "is ready" in segment(widget)
        found.append(sum(mask.sum() for mask in masks(segmentations()[-1]).values()))
    assert found[0] > found[1] > 0


def test_a_model_whose_folder_was_removed_is_said_to_be_missing(widget, models, volume):
    select(widget.ui.modelComboBox, "tiny-2d")
    (models / "tiny-2d").rename(models.parent / "elsewhere")
    widget.enter()
    assert widget.ui.modelComboBox.currentText == "tiny-2d (missing)"
    assert "there is no model 'tiny-2d'" in widget.ui.modelMessageLabel.text
    assert "there is no model 'tiny-2d'" in segment(widget)
    assert segmentations() == []


# --- files that a person chooses -------------------------------------------------------------------------------------


def test_a_weights_file_is_looked_into_and_asks_for_what_it_can_not_tell(widget, tmp_path, screenshot):
    ui, segmenter = widget.ui, make_segmenter(3)
    torch.save(segmenter.network.state_dict(), tmp_path / "mine.pth")
    select(ui.modelComboBox, "")
    assert "no file is chosen" in ui.modelMessageLabel.text
    ui.weightsPathLineEdit.currentPath = str(tmp_path / "mine.pth")
    assert ui.encoderComboBox.enabled, "nothing is known yet"
    wait_until(lambda: ui.classesValueLabel.text == "3", 60)
    assert not ui.encoderComboBox.enabled
    assert (ui.encoderComboBox.currentText, ui.dimensionsComboBox.currentText) == ("resnet18", "3D")
    assert "without normalisation" in ui.modelMessageLabel.text
    assert "doesn't tell: dilation rates" in ui.modelMessageLabel.text
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
    for assumed, is_open in (("encoder_depth (3 or 4)", (False, True)), ("encoder_name (a or b)", (True, False))):
        described = {"model": to_json(segmenter.bundle), "assumed": [assumed]}
        widget.panel.model._onDescribed({"id": 0, "result": described})
        assert (ui.encoderComboBox.enabled, ui.depthComboBox.enabled) == is_open
    select(ui.modelComboBox, DEFAULT_MODEL)
    assert ui.networkCollapsibleButton.collapsed, "nothing is asked of a model that says all of itself"


def test_weights_from_a_file_are_run_as_they_were_described(widget, tmp_path, volume, scan):
    segmenter = make_segmenter(2, orientation=None)
    torch.save(segmenter.network.state_dict(), tmp_path / "mine.pth")
    parameters = widget.logic.getParameterNode()
    parameters.labels, parameters.normalization, parameters.dilationRates = "Liver, Spleen", "zscore", "2, 4"
    parameters.weightsPath, parameters.model = str(tmp_path / "mine.pth"), ""
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


def test_what_was_said_of_one_file_is_not_taken_for_the_next(widget, tmp_path):
    choose_file(widget, tmp_path / "one.pt")
    parameters = widget.logic.getParameterNode()
    parameters.labels, parameters.normalization, parameters.spacing = "Liver, Spleen", "zscore", "2x2x2"
    assert widget.ui.normalizationComboBox.currentText == "zscore"
    choose_file(widget, tmp_path / "two.pt")
    assert (parameters.labels, parameters.normalization, parameters.spacing) == ("", "", "")
    assert widget.ui.normalizationComboBox.currentText == ""
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
    assert "the background process was ended" in widget.ui.modelMessageLabel.text, "it didn't end by itself"
    assert "is ready" in segment(widget)


def test_what_is_told_of_a_file_is_not_taken_for_the_model_that_is_chosen_since(widget, tmp_path):
    torch.save(make_segmenter(2).network.state_dict(), tmp_path / "weights.pt")
    choose_file(widget, tmp_path / "weights.pt")
    wait_until(lambda: "Looking into" in widget.ui.modelMessageLabel.text, 10)
    select(widget.ui.modelComboBox, "tiny-3d")
    wait_until(lambda: not widget.panel.worker._waiting, 60)
    assert widget.ui.dimensionsComboBox.currentText == "3D"


def test_a_file_that_was_left_at_once_is_not_looked_into(widget, tmp_path):
    (tmp_path / "weights.pt").touch()
    choose_file(widget, tmp_path / "weights.pt")
    select(widget.ui.modelComboBox, "tiny-3d")
    wait(0.5)
    assert widget.ui.dimensionsComboBox.currentText == "3D"
    assert widget.ui.modelMessageLabel.text == ""
    choose_file(widget, tmp_path / "weights.pt")
    widget.cleanup()
    wait(0.5)
    assert not widget.panel.worker.isRunning, "the module is closed"
    slicer.mrmlScene.Clear()
    assert widget.panel._parameters is None, "another panel may be open by now"


def test_all_that_is_said_of_weights_is_asked_for(widget, tmp_path):
    (tmp_path / "weights.pt").touch()
    choose_file(widget, f"'{tmp_path / 'weights.pt'}'")
    parameters = widget.logic.getParameterNode()
    parameters.spacing, parameters.orientation = "0x0.8x0.8", "l p s"
    with pytest.raises(InvalidInput, match="say under Intensities"):
        widget.panel.model.choice()
    parameters.labels, parameters.normalization, parameters.activation = "Liver, Spleen", " Window:-160:240", "sigmoid"
    parameters.encoder, parameters.depth, parameters.dilationRates = "resnet50", 4, "2, 4"
    parameters.device, parameters.precision = "cpu", "fp32"
    assert widget.panel.model.choice() == {
        "model": str(tmp_path / "weights.pt"),
        "device": "cpu",
        "precision": "fp32",
        "labels": ["Liver", "Spleen"],
        "normalization": "window:-160:240",
        "orientation": "LPS",
        "spacing": [None, 0.8, 0.8],
        "network": {
            "classifier_activation": "sigmoid",
            "decoder_dilation_rates": [2, 4],
            "encoder_name": "resnet50",
            "encoder_depth": 4,
        },
    }
    parameters.model = "tiny-2d"
    assert widget.panel.model.choice() == {"model": "tiny-2d", "device": "cpu", "precision": "fp32"}


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


@pytest.mark.skipif(sys.platform == "win32", reason="there the folder in which one works can't be deleted")
def test_a_working_folder_that_is_gone_hinders_no_run(widget, models, volume, monkeypatch, python_slicer):
    """Slicer works in one that it has deleted, once it couldn't unpack a scene. Its Python's launcher asks for it."""
    python_slicer("import os, sys\nos.getcwd()\nos.execv(sys.executable, [sys.executable, *sys.argv[1:]])")
    widget.panel.worker.stop()
    monkeypatch.chdir(models / "tiny-2d")
    shutil.rmtree(models / "tiny-2d")
    select(widget.ui.modelComboBox, "tiny-3d")
    assert "is ready" in segment(widget)
    choose_file(widget, models / "tiny-3d")
    assert "is ready" in segment(widget)
    choose_file(widget, "weights.pt")
    assert "weights.pt does not exist" in segment(widget)


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
    choose_file(widget, tmp_path / "MINE.KERAS")
    assert [requirement.name for requirement in widget.panel._needed()] == ["torch", "safetensors", "h5py"]
    select(widget.ui.modelComboBox, "tiny-2d")
    assert [requirement.name for requirement in widget.panel._needed()] == ["torch", "safetensors"]
