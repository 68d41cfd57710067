"""DDIM inversion: run the deterministic sampler backwards, taking each step's noise from the level below."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnctl.hookspecs import hookimpl
from attnctl.inversion import Inversion, InversionCall, Trajectory

if TYPE_CHECKING:
    from torch import Tensor


class DDIMInversion(Inversion):
    """DDIM inversion (Song et al., arXiv 2010.02502; Dhariwal & Nichol, arXiv 2105.05233, appendix F).

    For t ascending, x_t = I(x_{t-1}, eps(x_{t-1}, t), t): the denoiser sees the latents of the level below together
    with the timestep that it moves to, and no guidance is used, so that one row per step is enough.
    """

    name = "ddim"
    summary = "Run DDIM backwards without guidance; one denoiser row per step."
    paper = "arXiv:2010.02502"

    def rows(self, steps: int) -> int:
        """One row per step."""
        return steps

    def invert(self, call: InversionCall) -> Trajectory:
        """Invert clean latents (1, C, h, w) to L of shape (T+1, C, h, w)."""
        path = ddim_path(call)
        return Trajectory(path, call.text.prompt, denoiser_rows=path.shape[0] - 1)


def ddim_path(call: InversionCall) -> Tensor:
    """Run DDIM backwards: L of shape (T+1, C, h, w), clean first; other inversions start from it."""
    import torch

    count = len(call.grid.timesteps)
    path = [call.x0]
    for done, i in enumerate(reversed(range(count)), start=1):
        out = call.model.predict(path[-1], call.grid.timesteps[i], [call.text])
        path.append(call.grid.invert(i, out, path[-1]))
        call.tick(done, count)
    return torch.cat(path)


@hookimpl
def attnctl_inversions() -> list[type[Inversion]]:
    """Register DDIM inversion."""
    return [DDIMInversion]
