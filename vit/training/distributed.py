"""One process or several: what `torchrun --nproc_per_node=K -m vit train …` sets up."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from runtime.errors import InputError


@dataclass(frozen=True)
class World:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """True if this process writes the files and shows the progress."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Return the element-wise sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def wait(self) -> None:
        """Wait until every process has arrived."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def join_processes(device: torch.device) -> Iterator[World]:
    """Join the processes that torchrun started; without torchrun this process is alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()


def choose_device(name: str) -> torch.device:
    """Return the device of this name; "auto" is this process's CUDA device if there is one, else the CPU."""
    if name not in ("auto", "cpu", "cuda", "mps"):
        raise InputError(f"device must be auto, cpu, cuda or mps, found {name!r}")
    cuda = torch.cuda.is_available()
    missing = "CUDA device" if name == "cuda" and not cuda else ""
    missing = "Apple GPU" if name == "mps" and not torch.backends.mps.is_available() else missing
    if missing:
        raise InputError(f"device {name} was asked for, and this PyTorch sees no {missing}; use --device cpu")
    if cuda and name in ("auto", "cuda"):
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        return device
    return torch.device("cpu" if name == "auto" else name)
