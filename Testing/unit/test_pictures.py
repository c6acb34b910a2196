"""PNG and JPEG: colours, transparency, the way up, and files cut short."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image as Picture

from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.evaluate import in_grey
from DeepLabSegLib.files import read_image, read_labels


def test_colours_are_channels_and_a_picture_is_one_slice(tmp_path, rng):
    colours = rng.integers(0, 255, (20, 30, 3)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(colours, isVector=True), tmp_path / "picture.png")
    image = read_image(tmp_path / "picture.png")
    np.testing.assert_array_equal(image.array, np.moveaxis(colours, -1, 0)[:, None])
    sitk.WriteImage(sitk.GetImageFromArray(colours, isVector=True), tmp_path / "picture.jpg")
    assert read_image(tmp_path / "picture.jpg").array.shape == (3, 1, 20, 30)
    sitk.WriteImage(sitk.GetImageFromArray(colours[..., 0]), tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png").array.shape == (1, 1, 20, 30)


def test_an_alpha_channel_that_hides_nothing_is_left_out(tmp_path, rng):
    values = rng.integers(0, 255, (20, 30, 3)).astype(np.uint8)
    opaque = np.concatenate([values, np.full((20, 30, 1), 255, np.uint8)], axis=2)
    Picture.fromarray(opaque).save(tmp_path / "picture.png")
    np.testing.assert_array_equal(read_image(tmp_path / "picture.png").array, np.moveaxis(values, -1, 0)[:, None])
    opaque[3, 4, -1] = 0
    Picture.fromarray(opaque).save(tmp_path / "picture.png")
    assert read_image(tmp_path / "picture.png").channels == 4


def test_how_transparent_a_mask_is_is_no_label(tmp_path):
    mask = np.zeros((20, 30), np.uint8)
    mask[5:15, 10:20] = 2
    rgba = np.stack([mask, mask, mask, np.where(mask, 255, 0).astype(np.uint8)], axis=2)
    Picture.fromarray(rgba).save(tmp_path / "mask.png")
    labels = read_labels(tmp_path / "mask.png")
    assert [segment.name for segment in labels.segments] == ["Label 2"]
    np.testing.assert_array_equal(in_grey(labels).array, mask[None])


def test_grey_with_transparency_is_called_so(tmp_path, rng):
    values = rng.integers(0, 255, (20, 30, 2)).astype(np.uint8)
    Picture.fromarray(values, "LA").save(tmp_path / "picture.png")
    with pytest.raises(InvalidInput, match="it is grey with transparency; save it without, or in colours"):
        read_image(tmp_path / "picture.png")


@pytest.mark.parametrize("name", ["scan.jpg", "scan.JPEG"])
def test_the_resolution_of_a_print_is_no_size_of_voxels(tmp_path, rng, name):
    grey = Picture.fromarray(rng.integers(0, 255, (48, 64)).astype(np.uint8))
    grey.save(tmp_path / name, dpi=(300, 300))
    assert read_image(tmp_path / name).geometry.spacing == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_cut_short_is_not_grey_where_it_ends(tmp_path, rng, progressive):
    path = tmp_path / "picture.jpg"
    Picture.fromarray(rng.integers(0, 255, (48, 64, 3)).astype(np.uint8)).save(path, progressive=progressive)
    whole = path.read_bytes()
    path.write_bytes(whole[: 2 * len(whole) // 3])
    with pytest.raises(InvalidInput, match=r"picture\.jpg is damaged \(image file is truncated"):
        read_image(path)


@pytest.mark.parametrize("behind", [bytes(16), b"a film \xff\xda of a phone"], ids=["zeros", "film"])
def test_what_stands_behind_a_jpegs_end_does_no_harm(tmp_path, rng, behind):
    path = tmp_path / "picture.jpg"
    Picture.fromarray(rng.integers(0, 255, (48, 64, 3)).astype(np.uint8)).save(path)
    path.write_bytes(path.read_bytes() + behind)
    assert read_image(path).channels == 3


@pytest.mark.parametrize(
    "entries",
    [struct.pack("<HHHI4s", 1, 0x0112, 2, 1, b"a\0\0\0") + bytes(4), struct.pack("<HH", 5, 0x0112)],
    ids=["a letter", "cut short"],
)
def test_exif_that_is_damaged_turns_no_jpeg_and_warns_of_nothing(tmp_path, rng, entries):
    path, exif = tmp_path / "picture.jpg", b"Exif\0\0II*\0" + struct.pack("<I", 8) + entries
    Picture.fromarray(rng.integers(0, 255, (48, 64, 3)).astype(np.uint8)).save(path, exif=exif)
    assert read_image(path).array.shape == (3, 1, 48, 64)


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_jpeg_that_is_shown_turned_is_read_as_it_is_stored_with_a_warning(tmp_path, rng, order):
    path, exif = tmp_path / "picture.jpg", Picture.Exif()
    exif.endian = order
    exif[0x010F], exif[0x0112] = "a camera", 6
    Picture.fromarray(rng.integers(0, 255, (48, 64, 3)).astype(np.uint8)).save(path, exif=exif)
    with pytest.warns(UserWarning, match=r"picture\.jpg is turned where it is shown \(EXIF orientation 6\)") as warned:
        image = read_image(path)
    assert warned[0].filename == __file__
    assert image.array.shape == (3, 1, 48, 64)
    exif[0x0112] = 1
    Picture.fromarray(rng.integers(0, 255, (48, 64)).astype(np.uint8)).save(path, exif=exif)
    assert read_image(path).array.shape == (1, 1, 48, 64)
