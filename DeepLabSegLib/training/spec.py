"""How a network is trained: steps, optimizer, averages, precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from DeepLabSegLib.errors import InvalidInput

__all__ = ["OPTIMIZERS", "TrainingSpec"]

MAX_SEED = 2**23


@dataclass(frozen=True)
class TrainingSpec:
    """How a network is trained.

    Attributes
    ----------
    steps, batch_size : updates of the weights, and pairs per update over all processes together.
    optimizer : "adamw" with one cycle of the learning rate (Smith and Topin, 2019), or "sgd" with Nesterov's momentum
        and a polynomial decay (Isensee et al., Nature Methods 2021).
    learning_rate, weight_decay : the former's highest value; None takes the optimizer's usual ones.
    average : share of the moving average of weights that stays at each step, less at first; the average is what is
        kept.
    keep : share of the weights begun with that stays in the result, 0 to 1: what is kept lies between these and the
        average (Wortsman et al., CVPR 2022), for going on with a model without losing what it knew. None keeps nothing.
    every : the loss counts each `every`-th voxel along each axis.
    precision : "fp32", "bf16" or "fp16" for the network; weights and loss are always float32.
    validate_every, checkpoint_every : steps between validations (None: a twelfth of all) and between checkpoints.
    patience : validations without a gain after which training stops; None goes on to the end.
    workers : processes that load and change images; None takes one beside a CPU, and what the machine has beside a GPU.
    seed : of weights, split and images.
    """

    steps: int = 3000
    batch_size: int = 4
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float | None = None
    weight_decay: float | None = None
    average: float = 0.998
    keep: float | None = None
    every: int = 1
    precision: str = "fp32"
    validate_every: int | None = None
    checkpoint_every: int = 100
    patience: int | None = None
    workers: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "every", "validate_every", "checkpoint_every"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InvalidInput(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.seed < MAX_SEED:
            raise InvalidInput(f"seed is {self.seed}; it must be at least 0 and below {MAX_SEED}")
        if self.workers is not None and self.workers < 0:
            raise InvalidInput(f"workers is {self.workers}; give the number of loading processes, 0 for none")
        if self.patience is not None and self.patience < 1:
            raise InvalidInput(f"patience is {self.patience}; give at least 1 validation, or None to go on to the end")
        if self.learning_rate is not None and not 0 < self.learning_rate < 1e3:
            raise InvalidInput(f"learning_rate is {self.learning_rate}; it must be above 0, usually 1e-4 to 1e-2")
        if self.weight_decay is not None and not self.weight_decay >= 0:
            raise InvalidInput(f"weight_decay is {self.weight_decay}; it must be at least 0, usually below 0.1")
        if not 0 <= self.average < 1:
            raise InvalidInput(f"average is {self.average}; it must lie between 0 and 1, for example 0.998")
        if self.keep is not None and not 0 <= self.keep < 1:
            raise InvalidInput(f"keep is {self.keep}; it must lie between 0 and 1, for example 0.5")
        if self.optimizer not in OPTIMIZERS:
            raise InvalidInput(f"optimizer is {self.optimizer!r}; choose {' or '.join(OPTIMIZERS)}")


def _adamw(network: nn.Module, spec: TrainingSpec) -> tuple[Any, Any]:
    rate = spec.learning_rate or 2e-3
    decay = 1e-2 if spec.weight_decay is None else spec.weight_decay
    optimizer = torch.optim.AdamW(network.parameters(), rate, weight_decay=decay)
    # Not 0.1: the rise of a run of ten steps would last none, which torch divides by.
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, spec.steps, pct_start=0.101)


def _sgd(network: nn.Module, spec: TrainingSpec) -> tuple[Any, Any]:
    rate = spec.learning_rate or 1e-2
    decay = 3e-5 if spec.weight_decay is None else spec.weight_decay
    optimizer = torch.optim.SGD(network.parameters(), rate, momentum=0.99, nesterov=True, weight_decay=decay)
    return optimizer, torch.optim.lr_scheduler.PolynomialLR(optimizer, spec.steps, power=0.9)


OPTIMIZERS = {"adamw": _adamw, "sgd": _sgd}
"""Name -> makes an optimizer of a network's weights, and the schedule of its learning rate."""
