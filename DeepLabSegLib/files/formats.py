"""The endings of files by what they can hold."""

from pathlib import Path

ONE_FILE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")
VOLUME_SUFFIXES = (*ONE_FILE_SUFFIXES, ".nhdr", ".mhd")  # the last two have their voxels in a file beside them
JPEG_SUFFIXES = (".jpg", ".jpeg")
PICTURE_SUFFIXES = (".png", *JPEG_SUFFIXES)
IMAGE_SUFFIXES = (*VOLUME_SUFFIXES, *PICTURE_SUFFIXES)
LABEL_SUFFIXES = (".seg.nrrd", *ONE_FILE_SUFFIXES, ".png")


def is_picture(path: Path) -> bool:
    """Whether a file is called like a picture, which has no position and often no true size."""
    return path.name.lower().endswith(PICTURE_SUFFIXES)


def is_segmentation(path: Path) -> bool:
    """Whether a file is called like a segmentation of Slicer's, which has names, colours and layers."""
    return path.name.lower().endswith(".seg.nrrd")
