"""DeepLabV3+ segmentation of images and volumes, in 2D and 3D.

>>> import DeepLabSegLib
>>> segmenter = DeepLabSegLib.load_model("head-mri")            # doctest: +SKIP
>>> labels = segmenter.segment(DeepLabSegLib.read_image(path))  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from DeepLabSegLib.catalog import list_models
    from DeepLabSegLib.devices import kept_pages
    from DeepLabSegLib.errors import BundleError, Cancelled, DeepLabSegError, InvalidInput, OutputError, WeightsError
    from DeepLabSegLib.files import read_image, read_labels, write_image, write_labels
    from DeepLabSegLib.image import Geometry, Image, Labels, Segment, Terminology
    from DeepLabSegLib.models.convnext import ConvNeXtBackbone
    from DeepLabSegLib.models.deeplab import DeepLabV3Plus
    from DeepLabSegLib.models.densenet import DenseNetBackbone
    from DeepLabSegLib.models.efficientnet import EfficientNetBackbone
    from DeepLabSegLib.models.encoders import list_encoders
    from DeepLabSegLib.models.resnet import ResNetBackbone
    from DeepLabSegLib.region import Region
    from DeepLabSegLib.segmenter import Progress, Segmenter, SegmentOptions, load_model
    from DeepLabSegLib.weights.load import load_weights

__version__ = "0.1.0"

# Loaded when first asked for: importing the package alone doesn't import torch.
_HOME = {
    "BundleError": "errors",
    "Cancelled": "errors",
    "ConvNeXtBackbone": "models.convnext",
    "DeepLabSegError": "errors",
    "DeepLabV3Plus": "models.deeplab",
    "DenseNetBackbone": "models.densenet",
    "EfficientNetBackbone": "models.efficientnet",
    "Geometry": "image",
    "Image": "image",
    "InvalidInput": "errors",
    "Labels": "image",
    "OutputError": "errors",
    "Progress": "segmenter",
    "Region": "region",
    "ResNetBackbone": "models.resnet",
    "Segment": "image",
    "SegmentOptions": "segmenter",
    "Segmenter": "segmenter",
    "Terminology": "image",
    "WeightsError": "errors",
    "kept_pages": "devices",
    "list_encoders": "models.encoders",
    "list_models": "catalog",
    "load_model": "segmenter",
    "load_weights": "weights.load",
    "read_image": "files",
    "read_labels": "files",
    "write_image": "files",
    "write_labels": "files",
}

_PACKAGES = ("batch", "evaluate", "training", "weights")

__all__ = [
    "BundleError",
    "Cancelled",
    "ConvNeXtBackbone",
    "DeepLabSegError",
    "DeepLabV3Plus",
    "DenseNetBackbone",
    "EfficientNetBackbone",
    "Geometry",
    "Image",
    "InvalidInput",
    "Labels",
    "OutputError",
    "Progress",
    "Region",
    "ResNetBackbone",
    "Segment",
    "SegmentOptions",
    "Segmenter",
    "Terminology",
    "WeightsError",
    "kept_pages",
    "list_encoders",
    "list_models",
    "load_model",
    "load_weights",
    "read_image",
    "read_labels",
    "write_image",
    "write_labels",
]


if not TYPE_CHECKING:  # a type checker knows the names above, and should miss others

    def __getattr__(name: str) -> object:
        if name in _PACKAGES:
            return import_module(f"DeepLabSegLib.{name}")
        if name not in _HOME:
            raise AttributeError(f"module 'DeepLabSegLib' has no attribute {name!r}")
        return getattr(import_module(f"DeepLabSegLib.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_PACKAGES})
