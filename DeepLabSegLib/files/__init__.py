"""Images and label maps on disk. The only folder that imports SimpleITK."""

from DeepLabSegLib.files.formats import (
    IMAGE_SUFFIXES,
    JPEG_SUFFIXES,
    LABEL_SUFFIXES,
    ONE_FILE_SUFFIXES,
    VOLUME_SUFFIXES,
    is_picture,
    is_segmentation,
)
from DeepLabSegLib.files.reading import read_geometry, read_image, read_labels
from DeepLabSegLib.files.writing import check_overlap, check_slices, write_image, write_labels

__all__ = [
    "IMAGE_SUFFIXES",
    "JPEG_SUFFIXES",
    "LABEL_SUFFIXES",
    "ONE_FILE_SUFFIXES",
    "VOLUME_SUFFIXES",
    "check_overlap",
    "check_slices",
    "is_picture",
    "is_segmentation",
    "read_geometry",
    "read_image",
    "read_labels",
    "write_image",
    "write_labels",
]
