"""The reconstruction's path in place of the inverted one, one step ahead: a published baseline, fault included."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnctl.hookspecs import hookimpl
from attnctl.inversion import Inversion, InversionCall, Trajectory
from attnctl_plugins.inversions.ddim import ddim_path

if TYPE_CHECKING:
    from torch import Tensor


class ReplayedDDIM(Inversion):
    """DDIM inversion, then sampling back without guidance; what is kept is that way back, shifted by one step.

    PIE-Bench's `ddim+pnp` baseline (Ju et al., ICLR 2024, arXiv 2310.01506) gives step i the source latents that its
    reconstruction has AFTER step i, one level too clean, and starts the edit from those of step 0. Useful to compare
    with that paper's table, and for nothing else.
    """

    name = "ddim-replayed"
    summary = "PIE-Bench's misaligned DDIM baseline: the way back, one step too clean."
    paper = "arXiv:2310.01506"
    pin = "start"
    reads_lane = False

    def rows(self, steps: int) -> int:
        """One row per step on each way."""
        return 2 * steps

    def invert(self, call: InversionCall) -> Trajectory:
        """Invert clean latents (1, C, h, w) to L of shape (T+1, C, h, w): L[T - i] is the way back after step i."""
        import torch

        count = len(call.grid.timesteps)
        x = ddim_path(call)[-1:]
        back: list[Tensor] = []
        for i in range(count):
            out = call.model.predict(x, call.grid.timesteps[i], [call.text])
            x = call.grid.denoise(i, out, x)
            back.append(x)
            call.tick(count + i + 1, 2 * count)
        return Trajectory(torch.cat([back[-1], *reversed(back)]), call.text.prompt, denoiser_rows=2 * count)


@hookimpl
def attnctl_inversions() -> list[type[Inversion]]:
    """Register the replayed DDIM path."""
    return [ReplayedDDIM]
