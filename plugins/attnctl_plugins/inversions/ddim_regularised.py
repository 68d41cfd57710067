"""Regularised DDIM inversion: every predicted noise is pushed towards white, unit Gaussian noise before it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from attnctl.errors import InputError
from attnctl.hookspecs import hookimpl
from attnctl.inversion import Inversion, InversionCall, Trajectory
from attnctl.method import MethodConfig
from attnctl.sampling import DDIMGrid

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor


class RegularisedDDIM(Inversion):
    r"""The inversion of pix2pix-zero (Parmar et al., SIGGRAPH 2023, arXiv 2302.03027).

    For t ascending without the first and the last timestep, the noise e = eps(x, t) at the CURRENT level is moved by
    gradient steps on an autocorrelation loss and on a Kullback-Leibler loss, and x goes from level t - 1 to t + D - 1
    (D the stride). The clean latents thus stand for level D, and the last level is one below the sampling's first.
    """

    name = "ddim-regularised"
    summary = "DDIM backwards with noises pushed towards white Gaussian ones."
    paper = "arXiv:2302.03027"
    reads_lane = False
    paths = ("ddim",)

    class Config(MethodConfig):
        """Settings of regularised inversion."""

        autocorrelation: float = Field(
            20.0, ge=0, description="Step size on the autocorrelation loss; 0 leaves it out."
        )
        divergence: float = Field(20.0, ge=0, description="Step size on the divergence from a unit Gaussian; 0: none.")
        rounds: int = Field(5, ge=0, le=1000, description="Rounds of both per step; 0 leaves the noise as predicted.")
        rolls: int = Field(5, ge=1, le=1000, description="Random shifts per round, each with its own gradient step.")

    def rows(self, steps: int) -> int:
        """One row per step but the first and the last."""
        return max(0, steps - 2)

    def invert(self, call: InversionCall) -> Trajectory:
        """Invert clean latents (1, C, h, w) to L of shape (T+1, C, h, w); L[0], L[1] and L[2] are the clean ones.

        Raises:
            InputError: There are fewer than 3 steps.
        """
        import torch

        grid = call.grid
        assert isinstance(grid, DDIMGrid)  # `paths` says so
        count = len(grid.timesteps)
        if count < 3:
            raise InputError(f"regularised inversion needs at least 3 steps, found {count}", hint="give more --steps")
        generator = torch.Generator().manual_seed(call.seed)
        path = [call.x0] * 3
        for done, t in enumerate(reversed(grid.timesteps[1:-1]), start=1):
            x = path[-1]
            a, b = grid.level(t - 1), grid.level(t + grid.stride - 1)
            _, eps = grid.split(count - 1 - done, call.model.predict(x, t, [call.text]), x)
            eps = self.regularise(eps.float(), generator).to(x)
            path.append(grid.move(x, eps, a, b))
            call.tick(done, count - 2)
        return Trajectory(torch.cat(path), call.text.prompt, denoiser_rows=count - 2)

    def regularise(self, eps: Tensor, generator: torch.Generator) -> Tensor:
        """Push noise (1, C, h, w) towards white, unit Gaussian noise."""
        config = self.config
        for _ in range(config.rounds):
            if config.autocorrelation:
                for _ in range(config.rolls):
                    step = config.autocorrelation / config.rolls
                    eps = eps - step * _gradient(lambda e: autocorrelation(e, generator), eps)
            if config.divergence:
                eps = eps - config.divergence * _gradient(divergence, eps)
        return eps


def _gradient(loss: Callable[[Tensor], Tensor], eps: Tensor) -> Tensor:
    import torch

    with torch.enable_grad():
        leaf = eps.detach().requires_grad_()
        (found,) = torch.autograd.grad(loss(leaf), leaf)
    return found


def autocorrelation(eps: Tensor, generator: torch.Generator) -> Tensor:
    """Sum the squared mean products of noise with itself shifted at random, per channel and pyramid level.

    A shift is at least 1: at 0 it would punish the noise for having a variance, a fault that the authors have mended.

    Args:
        eps: Noise, (1, C, h, w).
        generator: Draws the shifts.
    """
    import torch
    from torch.nn import functional as F

    total = eps.new_zeros(())
    for c in range(eps.shape[1]):
        level = eps[:, c : c + 1]
        while True:
            side = min(level.shape[-2:])
            shift = int(torch.randint(1, max(2, side // 2), (), generator=generator))
            for dim in (-2, -1):
                total = total + (level * level.roll(shift, dim)).mean() ** 2
            if side <= 8:
                break
            level = F.avg_pool2d(level, 2)
    return total


def divergence(eps: Tensor) -> Tensor:
    """Return var + mean^2 - 1 - ln(var) of all values: twice their divergence from a unit Gaussian."""
    variance = eps.var()
    result: Tensor = variance + eps.mean() ** 2 - 1 - (variance + 1e-7).log()
    return result


@hookimpl
def attnctl_inversions() -> list[type[Inversion]]:
    """Register regularised DDIM inversion."""
    return [RegularisedDDIM]
