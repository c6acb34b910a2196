"""Other people's weights: files of several origins, read safely and accounted for tensor by tensor."""

from DeepLabSegLib.errors import WeightsError
from DeepLabSegLib.weights.convert import convert, parse_input, parse_normalization
from DeepLabSegLib.weights.detect import Detection, detect
from DeepLabSegLib.weights.inflate import inflate
from DeepLabSegLib.weights.load import load_weights
from DeepLabSegLib.weights.report import LoadReport

__all__ = [
    "Detection",
    "LoadReport",
    "WeightsError",
    "convert",
    "detect",
    "inflate",
    "load_weights",
    "parse_input",
    "parse_normalization",
]
