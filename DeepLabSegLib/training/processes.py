"""Several processes that train one network, as `torchrun` starts them; one process alone is the common case."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed

from DeepLabSegLib.devices import choose_device
from DeepLabSegLib.errors import InvalidInput

__all__ = ["Processes", "joined_processes"]

PATIENCE = timedelta(hours=2)  # the others wait while the first validates


@dataclass(frozen=True)
class Processes:
    """This process is number `rank` of `count`; the first alone writes and reports."""

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all have come here."""
        if self.count > 1:
            distributed.barrier()

    def mean(self, value: Tensor) -> float:
        """The mean of a scalar over all processes."""
        total = value.detach().float().clone()
        if self.count > 1:
            distributed.all_reduce(total)
        return float(total) / self.count

    def agreed(self, value: bool) -> bool:
        """What the first process says."""
        flag = torch.tensor(float(value), device=self.device)
        if self.count > 1:
            distributed.broadcast(flag, 0)
        return bool(flag)


@contextmanager
def joined_processes(device: str = "auto") -> Iterator[Processes]:
    """Join the processes that `torchrun` started (its variables WORLD_SIZE, RANK, LOCAL_RANK), or be the only one.

    On NVIDIA GPUs each process of a machine takes the GPU of its own number, and they talk by NCCL; elsewhere by Gloo.
    What the first process to fail raises is passed on; the others, which fail as it did or for want of it, raise
    `SystemExit` with 1. A process more than there are GPUs raises `InvalidInput`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes(0, 1, choose_device(device))
        return
    store, rank, count = next(distributed.rendezvous("env://", timeout=PATIENCE))
    try:
        if device != "cpu" and torch.cuda.is_available():
            _take(int(os.environ["LOCAL_RANK"]))  # before it is tried: else all would try the first
        chosen = choose_device(device)
        if chosen.type == "cuda":
            chosen = torch.device("cuda", torch.cuda.current_device())
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        distributed.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=PATIENCE)
        yield Processes(rank, count, chosen)
    except BaseException:
        if not _fails_first(store, rank):
            raise SystemExit(1) from None
        raise
    # Not after an error: the others may be waiting for this process, and torchrun ends them when it is gone.
    distributed.destroy_process_group()


def _take(number: int) -> None:
    """Make GPU `number` this process's own. Raises `InvalidInput` where there are fewer."""
    here = torch.cuda.device_count()
    if number >= here:
        gpus = "1 GPU" if here == 1 else f"{here} GPUs"
        raise InvalidInput(
            f"process {number + 1} of this machine, which has {gpus}, finds none of its own; start as many "
            f"processes, by --nproc-per-node {here}"
        )
    torch.cuda.set_device(number)


def _fails_first(store: distributed.Store, rank: int) -> bool:
    """Whether no other process has said before that it failed."""
    while True:
        with suppress(KeyboardInterrupt):  # torchrun ends the others when one has failed, and may do so just now
            return store.compare_set("failed", "", str(rank)) == str(rank).encode()
