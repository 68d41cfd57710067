"""Data parallelism over processes of one thread each.

On a shared CPU two processes that meet once per step get much more done than two threads that meet in
every operation.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable

import torch
import torch.distributed as dist


class Team:
    """The processes that train one model together.

    Attributes:
        rank: Number of this process; 0 saves and reports.
        size: How many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def first(self) -> bool:
        """Whether this process saves and reports."""
        return self.rank == 0

    def average(self, weights: list[torch.nn.Parameter], progress: float) -> float:
        """Average the gradients over the team.

        Args:
            weights: The trained weights; every one has a gradient.
            progress: This process's progress.

        Returns:
            The first process's progress, so that all leave the loop together.
        """
        if self.size == 1:
            return progress
        mark = torch.tensor([progress * self.size if self.first else 0.0])
        flat = torch.cat([mark, *(p.grad.reshape(-1) for p in weights if p.grad is not None)])
        dist.all_reduce(flat)
        flat /= self.size
        offset = 1
        for p in weights:
            if p.grad is not None:
                p.grad.copy_(flat[offset : offset + p.numel()].view_as(p))
                offset += p.numel()
        return float(flat[0])


def _enter(rank: int, size: int, port: int, work: Callable[[Team], None]) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=size)
    work(Team(rank, size))
    dist.destroy_process_group()


def run_team(size: int, work: Callable[[Team], None]) -> None:
    """Run `work` in `size` processes, or here when that is one.

    Args:
        size: Number of processes.
        work: A function at the top of a module.
    """
    if size == 1:
        work(Team())
        return
    # Freed pages are kept: giving them back costs more than the arithmetic in between.
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(4 << 30))
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(8 << 30))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_enter, args=(size, port, work), nprocs=size)
