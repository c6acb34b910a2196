"""Segments in a `.seg.nrrd`: overlapping, of older Slicers, damaged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk

from DeepLabSegLib.errors import InvalidInput, OutputError
from DeepLabSegLib.files import read_labels, write_labels
from DeepLabSegLib.image import Geometry, Labels, Segment, Terminology


def test_overlapping_segments_come_back_whole_from_a_segmentation(tmp_path, rng):
    layers = (rng.random((2, 5, 6, 7)) > 0.5).astype(np.uint8) * np.array([1, 2], np.uint8)[:, None, None, None]
    segments = (Segment(1, "A", (255, 0, 0), layer=0), Segment(2, "B", (0, 255, 0), layer=1))
    labels = Labels(layers, Geometry((5, 6, 7)), segments)
    write_labels(labels, tmp_path / "r.seg.nrrd")
    again = read_labels(tmp_path / "r.seg.nrrd")
    for segment in segments:
        np.testing.assert_array_equal(again.mask(again.segments[segment.layer]), labels.mask(segment))
    with pytest.raises(OutputError, match="overlap"):
        write_labels(labels, tmp_path / "r.nii.gz")


def test_segments_with_a_component_each_as_slicer_wrote_them_up_to_4_10_are_told_apart(tmp_path, rng):
    masks = (rng.random((5, 6, 7, 2)) > 0.5).astype(np.uint8)
    written = sitk.GetImageFromArray(masks, isVector=True)
    for n, name in enumerate(("Left", "Right")):
        written.SetMetaData(f"Segment{n}_ID", name)
        written.SetMetaData(f"Segment{n}_Name", name)
    sitk.WriteImage(written, tmp_path / "old.seg.nrrd")
    labels = read_labels(tmp_path / "old.seg.nrrd")
    for n, segment in enumerate(labels.segments):
        np.testing.assert_array_equal(labels.mask(segment), masks[..., n] > 0)


def test_segments_that_say_only_what_they_must_lie_in_one_layer_and_are_grey(tmp_path):
    written = sitk.GetImageFromArray(np.arange(60, dtype=np.uint8).reshape(3, 4, 5) % 3)
    for n in range(2):
        written.SetMetaData(f"Segment{n}_ID", f"Segment_{n + 1}")
        written.SetMetaData(f"Segment{n}_LabelValue", str(n + 1))
    sitk.WriteImage(written, tmp_path / "r.seg.nrrd")
    grey = tuple(Segment(value, f"Label {value}", (128, 128, 128)) for value in (1, 2))
    assert read_labels(tmp_path / "r.seg.nrrd").segments == grey


def test_names_colours_and_terms_of_segments_survive_with_any_sign_in_them(tmp_path, labels):
    term = Terminology(("SCT", "1", "Part: any"), ("SCT", "2", "Lobe: upper"), ("SCT", "7771000", "Left"))
    segments = tuple(
        Segment(value, f"Part: {value}", (value, 254 - value, 85 * value), terminology)
        for value, terminology in ((2, term), (1, replace(term, modifier=None)), (3, None))
    )
    write_labels(replace(labels, segments=segments), tmp_path / "r.seg.nrrd")
    assert read_labels(tmp_path / "r.seg.nrrd").segments == segments


def test_segments_of_one_value_in_two_layers_keep_ids_of_their_own(tmp_path):
    """As Slicer writes segments that overlap."""
    segments = (Segment(1, "A", (255, 0, 0), layer=0), Segment(1, "B", (0, 255, 0), layer=1))
    write_labels(Labels(np.ones((2, 3, 4, 5), np.uint8), Geometry((3, 4, 5)), segments), tmp_path / "r.seg.nrrd")
    written = sitk.ReadImage(str(tmp_path / "r.seg.nrrd"))
    assert [written.GetMetaData(f"Segment{n}_ID") for n in (0, 1)] == ["Segment_1_0", "Segment_1_1"]


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        ("Color", "0.5,0.5,0.5", "Segment1_Color is '0.5,0.5,0.5'; it must be three numbers from 0 to 1"),
        ("Color", "inf 0 0", "Segment1_Color is 'inf 0 0'"),
        ("Color", "255 0 0", "Segment1_Color is '255 0 0'"),
        ("Color", "0 -1 0", "Segment1_Color is '0 -1 0'"),
        ("Color", "0.5 0.5", "Segment1_Color is '0.5 0.5'"),
        ("LabelValue", "1.5", "Segment1_LabelValue is '1.5'; it must be a whole number"),
        ("Layer", "first", "Segment1_Layer is 'first'; it must be a whole number"),
        ("Layer", "7", "Ventrikel lies in layer 7; the labels have 1"),
    ],
)
def test_a_segmentation_with_a_damaged_field_is_refused_with_its_name(tmp_path, labels, key, text, words):
    write_labels(labels, tmp_path / "r.seg.nrrd")
    damaged = sitk.ReadImage(str(tmp_path / "r.seg.nrrd"))
    damaged.SetMetaData(f"Segment1_{key}", text)
    sitk.WriteImage(damaged, str(tmp_path / "r.seg.nrrd"))
    with pytest.raises(InvalidInput, match=rf"r\.seg\.nrrd: {words}"):
        read_labels(tmp_path / "r.seg.nrrd")


def test_letters_of_a_segmentation_that_are_not_utf8_do_no_harm(tmp_path, labels):
    write_labels(labels, tmp_path / "r.seg.nrrd")
    content = (tmp_path / "r.seg.nrrd").read_bytes()
    content = content.replace(b"Segment0_Color:", b"Segment0_C\xffl:").replace(
        b"Ventrikel", "Schädel".encode("latin-1")
    )
    (tmp_path / "r.seg.nrrd").write_bytes(content)
    grey, other = read_labels(tmp_path / "r.seg.nrrd").segments
    assert (grey.name, other.name) == ("Grey matter", "Sch?del")
