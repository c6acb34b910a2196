"""The training loop: any number of processes, mixed precision, moving average, checkpoints that resume exactly."""

from __future__ import annotations

import copy
import os
import re
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from math import inf, isfinite
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader, Dataset

from DeepLabSegLib.devices import PRECISIONS
from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.ladder import out_of_memory
from DeepLabSegLib.models.deeplab import CoarseLogits, DeepLabV3Plus
from DeepLabSegLib.outputs import leftovers
from DeepLabSegLib.training.checkpoint import CHECKPOINT, identity_of, read_checkpoint, write_checkpoint
from DeepLabSegLib.training.curves import Curves
from DeepLabSegLib.training.losses import dice_cross_entropy
from DeepLabSegLib.training.processes import Processes
from DeepLabSegLib.training.spec import OPTIMIZERS, TrainingSpec

__all__ = ["OnStep", "Trained", "Validate", "train"]

MAX_GRADIENT = 5.0
MAX_WORKERS = 16
KILLED = re.compile(r"DataLoader worker .* (exited unexpectedly|is killed by signal)")


Validate = Callable[[DeepLabV3Plus], Mapping[str, float]]
"""Scores by name of a network on held-out cases; the first is the one that decides, and higher is better."""

OnStep = Callable[[int, float], object]
"""Told of each step and its loss."""


@dataclass
class Trained:
    """What training gives: the network (averaged weights, the best if it was validated), and how it came out.

    `begun` says in words which weights it began with, where it did.
    """

    network: DeepLabV3Plus
    step: int
    scores: dict[str, float] = field(default_factory=dict)
    begun: str = ""


def train(
    network: DeepLabV3Plus,
    pairs: Dataset[tuple[Tensor, Tensor]],
    spec: TrainingSpec,
    folder: Path,
    processes: Processes | None = None,
    validate: Validate | None = None,
    on_step: OnStep | None = None,
    about: Mapping[str, object] | None = None,
) -> Trained:
    """Train `network` on `pairs`, with checkpoint and curves in `folder`; a run that was cut off there goes on.

    `pairs[n]` is the n-th training pair, an image `(C, *S)` and class indices `(*S)`, the same whenever it is asked
    for. Step s takes the pairs from `s * batch_size` on, so a resumed run sees what an unbroken one would, and
    several processes see together what one would.

    Raises `InvalidInput` where `folder` holds a run of another network or spec, or one that was `about` something else,
    by name whatever JSON can say of the data; where its checkpoint is damaged; for a batch that processes can't share
    evenly; and where memory runs out, or the loss is no finite number any more.
    """
    processes = processes or Processes(0, 1, torch.device("cpu"))
    if spec.batch_size % processes.count:
        raise InvalidInput(
            f"batch_size is {spec.batch_size}, which {processes.count} processes can't share evenly; "
            f"choose a multiple of {processes.count}"
        )
    workers = spec.workers
    if workers is None:
        idle = (os.cpu_count() or 1) // processes.count
        workers = 1 if processes.device.type == "cpu" else max(1, min(MAX_WORKERS, idle))
    run = _Run(network, spec, folder, processes, about or {})
    run.resume()
    loader = DataLoader(
        pairs,
        batch_sampler=_Indices(spec, processes, run.step),
        num_workers=workers,
        pin_memory=processes.device.type == "cuda" and workers > 0,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_leave_signals,
    )
    if not run.stopped:
        with _told_of_memory(spec, processes.device), warnings.catch_warnings():
            # Of kernels of one voxel, which lie in memory alike in either order.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view")
            for images, targets in loader:
                loss = run.update(images, targets)
                if processes.first and on_step:
                    on_step(run.step, loss)
                last = run.step == spec.steps
                if validate and (last or run.step % (spec.validate_every or max(1, spec.steps // 12)) == 0):
                    run.judge(validate)
                if processes.first and (last or run.stopped or run.step % spec.checkpoint_every == 0):
                    run.save()
                if run.stopped:
                    break
    return run.result()


@contextmanager
def _told_of_memory(spec: TrainingSpec, device: torch.device) -> Iterator[None]:
    """What runs out of memory within, or loses a loading process to the system, raises `InvalidInput`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if KILLED.search(str(error)):
            raise InvalidInput(
                "a process that loads images was ended by the system, as where memory is short; choose a smaller batch "
                "or tile, or 0 workers, which loads them in this process"
            ) from None
        if not out_of_memory(error):
            raise
        windows = "1 window" if spec.batch_size == 1 else f"{spec.batch_size} windows"
        raise InvalidInput(
            f"there isn't enough memory on {device.type.upper()} to train with {windows} per step; choose a smaller "
            "batch or tile, or close other programs"
        ) from None


def _leave_signals(_: int) -> None:
    """SIGTERM that is sent to a whole job is the first process's to answer; who loads for it ends without a word."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))


class _Indices(Sized):
    """Which pairs this process takes at each step that is left."""

    def __init__(self, spec: TrainingSpec, processes: Processes, done: int) -> None:
        self._steps = range(done, spec.steps)
        self._batch = spec.batch_size
        self._share = spec.batch_size // processes.count
        self._first = processes.rank * self._share

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self._steps:
            first = step * self._batch + self._first
            yield list(range(first, first + self._share))


class _Run:
    """The state of a training: everything that a checkpoint holds."""

    def __init__(
        self,
        network: DeepLabV3Plus,
        spec: TrainingSpec,
        folder: Path,
        processes: Processes,
        about: Mapping[str, object],
    ) -> None:
        self.spec = spec
        self.processes = processes
        self.step = 0
        self.best: dict[str, Any] | None = None
        self.stale = 0
        self._file = folder / CHECKPOINT
        self._curves = Curves(folder)
        self._identity = identity_of(network, spec, about)
        self._start = copy.deepcopy(network.state_dict()) if spec.keep else {}
        device = processes.device
        layout = torch.channels_last if network.spec.dims == 2 else torch.channels_last_3d
        if network.spec.dims == 3 and device.type == "cuda":
            layout = torch.contiguous_format  # 7% faster on an H200
        self._network = network.to(device, memory_format=layout).train()  # type: ignore[call-overload]
        self._layout = layout
        coarse = CoarseLogits(network)
        self._forward: nn.Module = coarse
        if processes.count > 1:
            self._forward = DistributedDataParallel(coarse, [device] if device.type == "cuda" else None)
        self._optimizer, self._schedule = OPTIMIZERS[spec.optimizer](network, spec)
        self._average = AveragedModel(network, multi_avg_fn=_moving(spec.average), use_buffers=True)
        self._scaler = torch.amp.GradScaler(device.type, enabled=spec.precision == "fp16")

    @property
    def stopped(self) -> bool:
        """Whether there is nothing more to do."""
        return self.step >= self.spec.steps or (self.spec.patience is not None and self.stale >= self.spec.patience)

    def update(self, images: Tensor, targets: Tensor) -> float:
        """One step; returns its loss, over all processes."""
        spec, device = self.spec, self.processes.device
        # Seeded anew, so that dropout doesn't depend on where a run was cut off.
        draws = torch.Generator().manual_seed(_seed(spec.seed, self.step))
        torch.manual_seed(_seed(spec.seed, self.step, self.processes.rank))
        start = torch.randint(spec.every, (targets.ndim - 1,), generator=draws).tolist()
        images = images.to(device, non_blocking=True).contiguous(memory_format=self._layout)
        with torch.backends.cudnn.flags(enabled=True, benchmark=True):  # of one size: the best way is found once
            with self._mixed():
                logits = self._forward(images)
            loss = dice_cross_entropy(logits.float(), targets.to(device, non_blocking=True), spec.every, start)
            self._optimizer.zero_grad(set_to_none=True)
            self._scaler.scale(loss).backward()
        self._scaler.unscale_(self._optimizer)
        nn.utils.clip_grad_norm_(self._network.parameters(), MAX_GRADIENT)
        rate = self._schedule.get_last_lr()[0]
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._schedule.step()
        self._average.update_parameters(self._network)
        self.step += 1
        mean = self.processes.mean(loss)
        if not isfinite(mean):
            raise InvalidInput(
                f"the loss is {mean} at step {self.step}; choose a lower learning rate than {rate:.2g}, or fp32"
            )
        if self.processes.first:
            self._curves.add(self.step, {"loss": mean, "learning_rate": rate})
        return mean

    @contextmanager
    def _mixed(self) -> Iterator[None]:
        """The precision of the network's forward pass."""
        device, precision = self.processes.device.type, self.spec.precision
        with ExitStack() as stack:
            if precision != "fp32":
                stack.enter_context(torch.autocast(device, PRECISIONS[precision]))
                if device == "cpu":
                    stack.enter_context(_FloatDepthwise())
            yield

    def judge(self, validate: Validate) -> None:
        """Validate the averaged network; remember it if it is the best so far."""
        better = False
        if self.processes.first:
            network = self._averaged()
            with torch.inference_mode():
                scores = dict(validate(network))
            self._curves.add(self.step, scores)
            score, best = (_deciding(found) for found in (scores, self.best["scores"] if self.best else {}))
            better = self.best is None or score > best
            if better or score == best:  # of equal ones the later has learned more
                state = {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
                self.best = {"step": self.step, "scores": scores, "state": state}
        self.stale = 0 if self.processes.agreed(better) else self.stale + 1

    def save(self) -> None:
        """Write the curves, then the checkpoint, each in one move; curves that are open elsewhere wait."""
        with suppress(OSError):
            self._curves.save()
        content = {"step": self.step, "stale": self.stale, "best": self.best}
        content |= {name: part.state_dict() for name, part in self._parts().items()}
        write_checkpoint(self._file, self._identity, content)

    def resume(self) -> None:
        """Take up the checkpoint, where there is one; what was being written when all was cut off is deleted."""
        if self.processes.first:
            for path in leftovers(self._file.parent):
                path.unlink(missing_ok=True)
        content = read_checkpoint(self._file, self._identity)
        if content is None:
            return
        for name, part in self._parts().items():
            part.load_state_dict(content[name])
        self.step, self.stale, self.best = content["step"], content["stale"], content["best"]
        self._curves.load(self.step)

    def result(self) -> Trained:
        """The network that is kept."""
        network = self._averaged()
        if self.best is None:
            return Trained(network, self.step)
        network.load_state_dict(self.best["state"])
        return Trained(network, self.best["step"], self.best["scores"])

    def _averaged(self) -> DeepLabV3Plus:
        network = cast(DeepLabV3Plus, self._average.module)
        if self.spec.keep:
            network = copy.deepcopy(network)
            for name, tensor in network.state_dict().items():
                if tensor.is_floating_point():
                    tensor.lerp_(self._start[name].to(tensor.device), self.spec.keep)
        return network.eval()

    def _parts(self) -> dict[str, Any]:
        return {
            "network": self._network,
            "average": self._average,
            "optimizer": self._optimizer,
            "schedule": self._schedule,
            "scaler": self._scaler,
        }


def _deciding(scores: Mapping[str, float]) -> float:
    """The first score; one that is no number is the worst."""
    score = next(iter(scores.values()), -inf)
    return score if isfinite(score) else -inf


class _FloatDepthwise(TorchFunctionMode):
    """Computes depthwise convolutions in float32 where the rest is bfloat16.

    oneDNN's bfloat16 gradient of their kernels takes several times longer than the float32 one (torch 2.13).
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (F.conv2d, F.conv3d) and args[0].shape[1] > 1 == args[1].shape[1]:
            with torch.autocast("cpu", enabled=False):
                return func(args[0].float(), *args[1:], **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _seed(*numbers: int) -> int:
    """One seed from several numbers."""
    total = 0
    for number in numbers:
        total = (total * 1_000_003 + number + 1) % 2**63
    return total


def _moving(share: float) -> Callable[[Any, Any, Any], None]:
    """A moving average over at most a tenth of the steps so far, so that short runs have one too."""

    def update(averaged: Any, current: Any, count: Any) -> None:
        kept = min(share, (1 + int(count)) / (10 + int(count)))
        get_ema_multi_avg_fn(kept)(averaged, current, count)

    return update
