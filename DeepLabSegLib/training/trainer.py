"""The training loop: Dice + cross-entropy, AdamW with one cycle, bfloat16 where asked, moving average of weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from DeepLabSegLib.models.deeplab import DeepLabV3Plus

__all__ = ["TrainingSpec", "dice_cross_entropy", "train"]


@dataclass(frozen=True)
class TrainingSpec:
    """How a network is trained; `ema` is the share of the moving average that stays at each step."""

    steps: int = 3600
    batch_size: int = 16
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    ema: float = 0.998
    bfloat16: bool = True
    seed: int = 0


def dice_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean of cross-entropy and one minus the mean soft Dice over classes and batch (Milletari et al., 3DV 2016).

    `logits` is `(N, classes, *S)`, `target` `(N, *S)` with class indices.
    """
    cross_entropy = F.cross_entropy(logits, target)
    probability = logits.softmax(1).flatten(2)
    wanted = F.one_hot(target.flatten(1), logits.shape[1]).movedim(-1, 1).to(probability.dtype)
    overlap = (probability * wanted).sum((0, 2))
    size = (probability + wanted).sum((0, 2))
    dice = (2 * overlap + 1) / (size + 1)
    return cross_entropy + 1 - dice.mean()


def train(
    network: DeepLabV3Plus,
    batches: Iterable[tuple[Tensor, Tensor]],
    spec: TrainingSpec,
    on_step: Callable[[int, float], None] | None = None,
) -> DeepLabV3Plus:
    """Train `network` on `batches` of images `(N, C, *S)` and class indices `(N, *S)`; return the averaged network.

    `on_step(step, loss)` is called after each step. `batches` must hold at least `spec.steps` of them.
    """
    if network.spec.dims == 2:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), spec.learning_rate, weight_decay=spec.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, spec.learning_rate, spec.steps, pct_start=0.1)
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(spec.ema), use_buffers=True)
    network.train()
    device = next(network.parameters()).device
    for step, (images, targets) in zip(range(1, spec.steps + 1), batches, strict=False):
        with torch.autocast(device.type, torch.bfloat16, enabled=spec.bfloat16):
            logits = network.logits(images.to(device, non_blocking=True))
        loss = dice_cross_entropy(logits.float(), targets.to(device, non_blocking=True))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(network)
        if on_step:
            on_step(step, float(loss.detach()))
    return cast(DeepLabV3Plus, average.module.eval())
