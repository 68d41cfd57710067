"""DDIM inversion: run the deterministic sampler backwards, taking each step's noise from the level below."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from attnctl.errors import InputError
from attnctl.hookspecs import hookimpl
from attnctl.inversion import Inversion, InversionCall, Trajectory
from attnctl.method import MethodConfig

if TYPE_CHECKING:
    from torch import Tensor

    from attnctl.sampling import Path
    from attnctl.text import Text


class DDIMInversion(Inversion):
    """DDIM inversion (Song et al., arXiv 2010.02502; Dhariwal & Nichol, arXiv 2105.05233, appendix F).

    For t ascending, x_t = I(x_{t-1}, eps(x_{t-1}, t), t): the denoiser sees the latents of the level below together
    with the timestep that it moves to, and no guidance is used, so that one row per step is enough.
    """

    name = "ddim"
    summary = "Run DDIM backwards without guidance; one denoiser row per step."
    paper = "arXiv:2010.02502"
    plain = True

    class Config(MethodConfig):
        """Settings of DDIM inversion."""

        steps: int | None = Field(
            None,
            ge=1,
            description="Steps of the inversion where they shall be more than the sampling's; 999 visits every level.",
        )
        guidance: float = Field(
            1.0, ge=1, description="Guidance scale on the way up; above 1 costs a second row per step, and precision."
        )

    def __init__(self, config: MethodConfig | None = None) -> None:
        super().__init__(config)
        self.reads_lane = self.config.guidance != 1

    def rows(self, steps: int) -> int | None:
        """One row per step; with guidance up to two, as the texts are."""
        return (self.config.steps or steps) if self.config.guidance == 1 else None

    def invert(self, call: InversionCall) -> Trajectory:
        """Invert clean latents (1, C, h, w) to L of shape (T+1, C, h, w).

        Raises:
            InputError: The levels of the sampling are not among those of an inversion with so many steps.
        """
        grid, guidance = call.grid, self.config.guidance
        fine = grid if self.config.steps is None else _finer(grid, self.config.steps)
        path = ddim_path(call, fine, guidance)
        rows = (path.shape[0] - 1) * rows_of_guidance(call.uncond, call.text, guidance)
        if fine is not grid:
            levels: list[int | float] = [-1, *reversed(fine.timesteps)]
            path = path[[0, *(levels.index(t) for t in reversed(grid.timesteps))]]
        return Trajectory(path, call.text.prompt, denoiser_rows=rows)


def ddim_path(call: InversionCall, grid: Path | None = None, guidance: float = 1.0) -> Tensor:
    """Run DDIM backwards: L of shape (T+1, C, h, w), clean first; other inversions start from it.

    Args:
        call: What to invert.
        grid: The schedule; None means the call's.
        guidance: Guidance scale on the way up.
    """
    import torch

    grid = call.grid if grid is None else grid
    count = len(grid.timesteps)
    path = [call.x0]
    for done, i in enumerate(reversed(range(count)), start=1):
        out = guided(call, path[-1], grid.told_up(i), call.text, guidance)
        path.append(grid.invert(i, out, path[-1]))
        call.tick(done, count)
    return torch.cat(path)


def guided(call: InversionCall, x: Tensor, timestep: int | float, text: Text, guidance: float) -> Tensor:
    """Predict under classifier-free guidance, e = e_u + g (e_c - e_u), with as few rows as that takes.

    Args:
        call: Has the model and the unconditional text.
        x: Latents (1, C, h, w).
        timestep: Training timestep t.
        text: The conditional text.
        guidance: The scale g.
    """
    if rows_of_guidance(call.uncond, text, guidance) == 1:
        return call.model.predict(x, timestep, [text])
    uncond, cond = call.model.predict(x.expand(2, -1, -1, -1), timestep, [call.uncond, text]).chunk(2)
    return uncond + guidance * (cond - uncond)


def rows_of_guidance(uncond: Text, text: Text, guidance: float) -> int:
    """Return how many rows guidance takes: one where both halves would be equal or one is not wanted, else two."""
    return 1 if guidance == 1 or uncond.same_as(text) else 2


def _finer(grid: Path, steps: int) -> Path:
    fine = grid.finer(steps)
    if not set(grid.timesteps) <= set(fine.timesteps):
        raise InputError(
            f"an inversion in {steps} steps does not pass the levels of a sampling in {len(grid.timesteps)}",
            hint=f"{fine.every_level} steps pass every level; or leave the inversion's steps out"
            if fine.every_level
            else "leave the inversion's steps out",
        )
    return fine


@hookimpl
def attnctl_inversions() -> list[type[Inversion]]:
    """Register DDIM inversion."""
    return [DDIMInversion]
