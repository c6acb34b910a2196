"""Other people's weights: files of several origins, read safely and accounted for tensor by tensor."""

from DeepLabSegLib.errors import WeightsError
from DeepLabSegLib.weights.load import LoadReport, load_weights

__all__ = ["LoadReport", "WeightsError", "load_weights"]
