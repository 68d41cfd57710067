"""The noise schedule and its moves: DDIM as the papers use it, and other diffusers schedulers for generation.

Symbols: t timestep, T number of steps, abar the cumulative product of (1 - beta), x_t latents, eps noise.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any, Protocol

import torch
from torch import Tensor

from attnctl.errors import InputError, ModelError, unknown
from attnctl.sampling_names import SCHEDULERS

PREDICTIONS = ("epsilon", "v_prediction")


class Sampler(Protocol):
    """What the loop asks of a schedule.

    Attributes:
        timesteps: The T timesteps, noisiest first.
        initial_scale: Factor on unit noise at the start.
    """

    timesteps: tuple[int | float, ...]
    initial_scale: float

    def scale(self, i: int, x: Tensor) -> Tensor:
        """Return the latents as the denoiser wants to see them at step i."""

    def denoise(self, i: int, out: Tensor, x: Tensor) -> Tensor:
        """Move latents x (L, C, h, w) across step i, given the guided denoiser output `out`."""


class DDIMGrid:
    """Deterministic DDIM (eta = 0) on the papers' grid, as pure functions of the step.

    Leading spacing with ``steps_offset = 1`` (50 steps: 981, 961, ..., 1), no clipping, and abar_0 in place of 1 below
    timestep 0. These hold whatever the checkpoint's scheduler file says, because reference codes end up there: their
    pipelines rewrite the offset. Betas and the prediction type are the checkpoint's. Song et al., arXiv 2010.02502,
    eq. 12; the inverse move is exact for equal noise.

    Attributes:
        timesteps: T timesteps, noisiest first.
        initial_scale: Always 1.
        abar: abar_t for every training timestep, float32.
        prediction: ``epsilon`` or ``v_prediction``.
    """

    initial_scale = 1.0

    def __init__(self, abar: Tensor, steps: int, prediction: str = "epsilon") -> None:
        """Lay the grid.

        Args:
            abar: Cumulative products, shape (training steps,), descending, in (0, 1).
            steps: T, at least 1 and less than the number of training steps.
            prediction: What the denoiser predicts.

        Raises:
            InputError: `steps` is out of range.
            ModelError: The prediction type is not supported.
        """
        total = abar.shape[0]
        if not 1 <= steps < total:
            raise InputError(
                f"steps must lie between 1 and {total - 1}, found {steps}", hint="50 is the papers' number"
            )
        if prediction not in PREDICTIONS:
            raise unknown("prediction type", prediction, PREDICTIONS, cls=ModelError)
        self.abar = abar
        self.prediction = prediction
        self.stride = total // steps
        self.timesteps: tuple[int | float, ...] = tuple(self.stride * i + 1 for i in reversed(range(steps)))

    def level(self, timestep: int | float) -> Tensor:
        """Return abar at a timestep; abar_0 below 0. A 0-dimensional float32 tensor on the CPU."""
        return self.abar[max(int(timestep), 0)]

    def scale(self, i: int, x: Tensor) -> Tensor:
        """Return x: DDIM latents need no scaling."""
        return x

    def denoise(self, i: int, out: Tensor, x: Tensor) -> Tensor:
        """Move x from timesteps[i] to the next lower level; `out` is the denoiser's output at timesteps[i]."""
        t = self.timesteps[i]
        b = self.level(t - self.stride)
        x0, eps = self.split(out, x, self.level(t))
        return b**0.5 * x0 + (1 - b) ** 0.5 * eps

    def invert(self, i: int, out: Tensor, x: Tensor) -> Tensor:
        """Move x up to timesteps[i] from the level below; `out` is evaluated at timesteps[i] on x itself.

        The noise that `out` stands for is read at the level that the denoiser was told of, not at that of x. It makes
        no difference to a model that predicts noise; of one that predicts v the other reading would reconstruct badly.
        """
        t = self.timesteps[i]
        _, eps = self.split(out, x, self.level(t))
        return self.move(x, eps, self.level(t - self.stride), self.level(t))

    def denoise_with(self, i: int, out: Tensor, x: Tensor, noise: Tensor) -> Tensor:
        """Move x from timesteps[i] to the next lower level with the posterior's noise (eta = 1).

        x' = sqrt(abar_p) x0 + sqrt(1 - abar_p - sigma^2) eps + sigma z, sigma^2 = (1 - abar_p)/(1 - abar_t)
        (1 - abar_t/abar_p); Song et al., arXiv 2010.02502, eq. 12 and 16.
        """
        mean, sigma = self.posterior(i, out, x)
        return mean + sigma * noise

    def posterior(self, i: int, out: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean (like x) and the standard deviation (0-dimensional) of the eta = 1 move at step i."""
        t = self.timesteps[i]
        a, b = self.level(t), self.level(t - self.stride)
        variance = (1 - b) / (1 - a) * (1 - a / b)
        x0, eps = self.split(out, x, a)
        return b**0.5 * x0 + (1 - b - variance) ** 0.5 * eps, variance**0.5

    def noise(self, i: int, x0: Tensor, noise: Tensor) -> Tensor:
        """Return x at the level of timesteps[i] for clean latents and unit noise."""
        a = self.level(self.timesteps[i])
        return a**0.5 * x0 + (1 - a) ** 0.5 * noise

    @staticmethod
    def move(x: Tensor, eps: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Move x from level a to level b along the noise eps."""
        return b**0.5 * ((x - (1 - a) ** 0.5 * eps) / a**0.5) + (1 - b) ** 0.5 * eps

    def split(self, out: Tensor, x: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """Return (x0, eps) that a denoiser output stands for at level a: the one place that knows the prediction type.

        The order of operations is diffusers' own, so that bits agree.
        """
        if self.prediction == "epsilon":
            return (x - (1 - a) ** 0.5 * out) / a**0.5, out
        return a**0.5 * x - (1 - a) ** 0.5 * out, a**0.5 * out + (1 - a) ** 0.5 * x


class SchedulerAdapter:
    """Any diffusers scheduler as a `Sampler`, for generation; its history makes it unfit for inversion."""

    def __init__(self, scheduler: Any, steps: int, seed: int) -> None:
        """Prepare a private copy of `scheduler` for `steps` steps.

        Ancestral noise is drawn from `seed`, alike for every lane, so that a lane alone gets the same picture.
        """
        self._scheduler = copy.deepcopy(scheduler)
        self._scheduler.set_timesteps(steps)
        self._seed = seed
        self._generators: list[torch.Generator] = []
        self._takes_generator = "generator" in inspect.signature(self._scheduler.step).parameters
        self.timesteps: tuple[int | float, ...] = tuple(t.item() for t in self._scheduler.timesteps)
        self.initial_scale = float(self._scheduler.init_noise_sigma)

    def scale(self, i: int, x: Tensor) -> Tensor:
        """Return x as the scheduler scales model inputs at step i."""
        return self._scheduler.scale_model_input(x, self._scheduler.timesteps[i])  # type: ignore[no-any-return]

    def denoise(self, i: int, out: Tensor, x: Tensor) -> Tensor:
        """Advance all lanes at once: multistep schedulers remember what they were given."""
        while len(self._generators) < x.shape[0]:
            self._generators.append(torch.Generator().manual_seed(self._seed))
        extra = {"generator": self._generators[: x.shape[0]]} if self._takes_generator else {}
        return self._scheduler.step(out, self._scheduler.timesteps[i], x, return_dict=False, **extra)[0]  # type: ignore[no-any-return]


def make_sampler(name: str, config: Any, steps: int, seed: int) -> DDIMGrid | SchedulerAdapter:
    """Build a sampler from a checkpoint's scheduler configuration.

    Args:
        name: One of `SCHEDULERS`.
        config: The checkpoint's scheduler configuration (betas, prediction type).
        steps: Number of steps asked for; some schedulers run more.
        seed: Seed of the noise that ancestral schedulers add.

    Raises:
        InputError: Unknown name or steps out of range.
        ModelError: The checkpoint's prediction type is not supported.
    """
    if name not in SCHEDULERS:
        raise unknown("scheduler", name, SCHEDULERS)
    import diffusers

    prediction = config.get("prediction_type", "epsilon")
    if name == "ddim":
        reference = diffusers.DDIMScheduler.from_config(config)
        return DDIMGrid(reference.alphas_cumprod.float(), steps, prediction)
    if prediction not in PREDICTIONS:
        raise unknown("prediction type", prediction, PREDICTIONS, cls=ModelError)
    if not 1 <= steps < int(config.get("num_train_timesteps", 1000)):
        raise InputError(f"steps must lie between 1 and 999, found {steps}", hint="50 is the papers' number")
    scheduler = getattr(diffusers, SCHEDULERS[name]).from_config(config)
    try:
        return SchedulerAdapter(scheduler, steps, seed)
    except (ValueError, IndexError) as error:  # some need a few steps before they can start
        raise InputError(
            f"the scheduler {name} cannot run {steps} steps: {error}", hint="ask for more steps"
        ) from error
