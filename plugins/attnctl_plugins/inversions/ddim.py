"""DDIM inversion: run the deterministic sampler backwards, taking each step's noise from the level below."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from attnctl.hookspecs import hookimpl
from attnctl.inversion import Inversion, Trajectory

if TYPE_CHECKING:
    from torch import Tensor

    from attnctl.model import Model, TextEncoding
    from attnctl.sampling import DDIMGrid


class DDIMInversion(Inversion):
    """DDIM inversion (Song et al., arXiv 2010.02502; Dhariwal & Nichol, arXiv 2105.05233, appendix F).

    For t ascending, x_t = I(x_{t-1}, eps(x_{t-1}, t), t): the denoiser sees the latents of the level below together
    with the timestep that it moves to, and no guidance is used, so that one row per step is enough.
    """

    name = "ddim"
    summary = "Run DDIM backwards without guidance; one denoiser row per step."
    paper = "arXiv:2010.02502"

    def invert(
        self, model: Model, grid: DDIMGrid, x0: Tensor, text: TextEncoding, tick: Callable[[int, int], None]
    ) -> Trajectory:
        """Invert clean latents (1, C, h, w) to L of shape (T+1, C, h, w)."""
        import torch

        count = len(grid.timesteps)
        path = [x0]
        for done, i in enumerate(reversed(range(count)), start=1):
            out = model.predict(path[-1], grid.timesteps[i], [text])
            path.append(grid.invert(i, out, path[-1]))
            tick(done, count)
        return Trajectory(torch.cat(path), text.prompt, denoiser_rows=count)


@hookimpl
def attnctl_inversions() -> list[type[Inversion]]:
    """Register DDIM inversion."""
    return [DDIMInversion]
