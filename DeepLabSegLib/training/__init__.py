"""Training: from data, or from label maps alone, to a model."""

from DeepLabSegLib.training.options import TrainOptions
from DeepLabSegLib.training.planning import Overrides
from DeepLabSegLib.training.run import check_data, train_model
from DeepLabSegLib.training.trainer import Trained

__all__ = ["Overrides", "TrainOptions", "Trained", "check_data", "train_model"]
