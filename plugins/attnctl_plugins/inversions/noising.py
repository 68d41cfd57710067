"""Noising: the picture under one fixed noise at every level. No inversion, but a path that edits can start from."""

from __future__ import annotations

from pydantic import Field

from attnctl.errors import InputError
from attnctl.hookspecs import hookimpl
from attnctl.inversion import Inversion, InversionCall, Trajectory
from attnctl.method import MethodConfig


class Noising(Inversion):
    """The forward process with one noise for all levels, and a late start: SDEdit (arXiv 2108.01073).

    L[T - i] = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise at t = timesteps[i], and L[0] = x_0. Lanes start at step
    T - int(T strength). A source lane sits on this path; nothing is predicted, so it costs no row.
    """

    name = "noising"
    summary = "Add one fixed noise instead of inverting; edits start part of the way down."
    paper = "arXiv:2108.01073"
    pin = "end"
    reads_lane = False

    class Config(MethodConfig):
        """Settings of noising."""

        strength: float = Field(0.8, gt=0, le=1, description="Fraction of the schedule that edits run.")

    def rows(self, steps: int) -> int:
        """No row."""
        return 0

    def invert(self, call: InversionCall) -> Trajectory:
        """Noise clean latents (1, C, h, w) to L of shape (T+1, C, h, w).

        Raises:
            InputError: So small a strength leaves no step.
        """
        import torch

        count = len(call.grid.timesteps)
        run = int(count * self.config.strength)
        if run < 1:
            raise InputError(
                f"a strength of {self.config.strength:g} leaves no step of {count}",
                hint=f"give at least {1 / count:g}, or more steps",
            )
        noise = call.model.initial_noise(call.seed, (int(call.x0.shape[-2]), int(call.x0.shape[-1])))
        levels = [call.grid.noise(i, call.x0, noise) for i in reversed(range(count))]
        path = torch.cat([call.x0, *levels])
        return Trajectory(path, call.text.prompt, start=count - run)


@hookimpl
def attnctl_inversions() -> list[type[Inversion]]:
    """Register noising."""
    return [Noising]
