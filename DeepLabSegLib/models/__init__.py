"""The networks: torch only."""

from DeepLabSegLib.models.convnext import ConvNeXtBackbone, ConvNeXtBackboneV2
from DeepLabSegLib.models.deeplab import DeepLabSpec, DeepLabV3Plus
from DeepLabSegLib.models.densenet import DenseNetBackbone
from DeepLabSegLib.models.efficientnet import EfficientNetBackbone, EfficientNetBackboneV2
from DeepLabSegLib.models.encoder import Encoder
from DeepLabSegLib.models.encoders import ENCODERS, list_encoders, make_encoder
from DeepLabSegLib.models.resnet import ResNetBackbone

__all__ = [
    "ENCODERS",
    "ConvNeXtBackbone",
    "ConvNeXtBackboneV2",
    "DeepLabSpec",
    "DeepLabV3Plus",
    "DenseNetBackbone",
    "EfficientNetBackbone",
    "EfficientNetBackboneV2",
    "Encoder",
    "ResNetBackbone",
    "list_encoders",
    "make_encoder",
]
