"""Muon (Jordan et al. 2024): momentum whose update of each matrix is made orthogonal.

With a few thousand steps, which is all that two CPU cores allow, it learns much faster than AdamW.
Matrices and convolutions (flattened) take it; vectors, embeddings, the first and the last layer keep AdamW.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn


def orthogonal(g: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Bring the singular values of matrices near 1 by a quintic Newton-Schulz iteration.

    Args:
        g: Matrices, shape (n, rows, columns).
        steps: Iterations.
    """
    wide = g.transpose(1, 2) if g.shape[1] > g.shape[2] else g
    x = wide / (wide.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(steps):
        a = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.transpose(1, 2) if g.shape[1] > g.shape[2] else x


class Muon(torch.optim.Optimizer):
    """Muon for matrices; weights of the same shape are treated in one batch.

    Args:
        params: Weights with two or more dimensions.
        lr: Root mean square of an update (as AdamW's, so that one schedule serves both).
        momentum: Nesterov momentum.
        weight_decay: Decoupled decay.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float = 5e-3, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step."""
        for group in self.param_groups:
            shapes: dict[tuple[int, int], list[tuple[nn.Parameter, torch.Tensor]]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "buffer" not in state:
                    state["buffer"] = torch.zeros_like(p)
                buffer = state["buffer"].lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(buffer, group["momentum"])
                flat = update.reshape(p.shape[0], -1)
                shapes[(flat.shape[0], flat.shape[1])].append((p, flat))
            self._apply(shapes, group["lr"], group["weight_decay"])

    def _apply(
        self, shapes: dict[tuple[int, int], list[tuple[nn.Parameter, torch.Tensor]]], rate: float, decay: float
    ) -> None:
        """Make the updates orthogonal, each process of a team a part of them, and subtract them."""
        team = dist.is_initialized()
        rank, size = (dist.get_rank(), dist.get_world_size()) if team else (0, 1)
        members = [m for group in shapes.values() for m in group]
        flat = torch.zeros(sum(p.numel() for p, _ in members), device=members[0][0].device)
        offset, views = 0, {}
        for p, _ in members:
            views[id(p)] = flat[offset : offset + p.numel()]
            offset += p.numel()
        for (rows, columns), group in shapes.items():
            mine = group[rank::size]
            if mine:
                # An orthogonal matrix has entries of size 1 / sqrt(its longer side).
                updates = orthogonal(torch.stack([m[1] for m in mine])) * max(rows, columns) ** 0.5
                for (p, _), update in zip(mine, updates, strict=True):
                    views[id(p)].copy_(update.reshape(-1))
        if team:
            dist.all_reduce(flat)
        for p, _ in members:
            p.mul_(1 - rate * decay).sub_(views[id(p)].view_as(p), alpha=rate)


def optimizers(
    model: nn.Module, *, rate: float, muon_rate: float, keep: Iterable[str] = ()
) -> list[torch.optim.Optimizer]:
    """Split a model's weights between Muon and AdamW.

    Args:
        model: The model; weights without gradients are left out.
        rate: AdamW's learning rate.
        muon_rate: Muon's learning rate; 0 gives everything to AdamW.
        keep: Parts of the names of matrices that AdamW keeps.
    """
    keep = tuple(keep)
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    matrices = [p for n, p in named if muon_rate and p.ndim >= 2 and not any(k in n for k in keep)]
    chosen = {id(p) for p in matrices}
    rest = [p for _, p in named if id(p) not in chosen]
    made: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.99), weight_decay=0.0)]
    if matrices:
        made.append(Muon(matrices, lr=muon_rate))
    for optimizer in made:
        for group in optimizer.param_groups:
            group["base"] = group["lr"]
    return made
