"""Noise schedules and their moves: what the loop asks of one, and of one that can be climbed as well.

Symbols: i step, T number of steps, t what the denoiser is told of the time, x_t = signal x_0 + noise eps the latents.
Nothing here imports torch before a schedule is made, so that names can be looked up at once.
"""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from attnctl.errors import InputError, ModelError, unknown

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Prediction = Literal["epsilon", "v_prediction", "flow_prediction"]
PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "v_prediction", "flow_prediction")
BETA_PREDICTIONS: tuple[Prediction, ...] = PREDICTIONS[:2]

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-a": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "pndm": "PNDMScheduler",
    "lms": "LMSDiscreteScheduler",
}
"""Schedules of models with betas by what users type; the values are diffusers' classes."""


def split(prediction: Prediction, out: Tensor, x: Tensor, signal: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return (x0, eps) that a denoiser output stands for: the one place that knows the kinds of prediction.

    epsilon: out = eps. v (Salimans & Ho, arXiv 2202.00512): out = signal eps - noise x0. flow (Liu et al., arXiv
    2209.03003; Esser et al., arXiv 2403.03206), where signal = 1 - noise: out = eps - x0. The order of operations is
    diffusers' own, so that bits agree.

    Args:
        prediction: What the denoiser predicts.
        out: Its output, like x.
        x: Latents at that level.
        signal: Factor on x0 at the level, 0-dimensional.
        noise: Factor on eps at the level, 0-dimensional.
    """
    if prediction == "epsilon":
        return (x - noise * out) / signal, out
    if prediction == "v_prediction":
        return signal * x - noise * out, signal * out + noise * x
    return x - noise * out, x + signal * out


class Schedule(ABC):
    """What the loop asks of a schedule.

    A step evaluates the denoiser `stages` times, at latents and times that may depend on the evaluations before; for
    all but solvers of higher order it is once, at the step's own latents.

    Attributes:
        name: What users call it.
        timesteps: What the denoiser is told at the T steps, noisiest first; whole or not.
        initial_scale: Factor on unit noise at the start.
        stages: Evaluations of the denoiser per step.
    """

    name: str = ""
    timesteps: tuple[int | float, ...]
    initial_scale: float = 1.0
    stages: int = 1

    @abstractmethod
    def scale(self, i: int, x: Tensor) -> Tensor:
        """Return the latents as the denoiser wants to see them at step i."""

    @abstractmethod
    def denoise(self, i: int, out: Tensor, x: Tensor) -> Tensor:
        """Move latents x (L, C, h, w) across step i, given the denoiser output `out` of a schedule of one stage."""

    def stage(self, i: int, s: int, x: Tensor, outs: Sequence[Tensor]) -> tuple[Tensor, int | float]:
        """Return the latents of evaluation s of step i, and the time that the denoiser is told.

        Args:
            i: The step.
            s: Which evaluation, from 0.
            x: Latents at the step's start, (L, C, h, w).
            outs: The guided outputs of the evaluations before, each like x.
        """
        return x, self.timesteps[i]

    def advance(self, i: int, outs: Sequence[Tensor], x: Tensor) -> Tensor:
        """Move latents x (L, C, h, w) across step i, given the guided outputs of all its evaluations."""
        return self.denoise(i, outs[-1], x)


class Path(Schedule):
    """A schedule that can be climbed too: at every level x = signal x0 + noise eps, and level T is the cleanest.

    Attributes:
        prediction: What the denoiser predicts.
    """

    prediction: Prediction

    @abstractmethod
    def rates(self, i: int) -> tuple[Tensor, Tensor]:
        """Return (signal, noise) of level i, 0-dimensional: that of step i's start; T is where the last step ends."""

    def split(self, i: int, out: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return (x0, eps) that a denoiser output at step i's level stands for."""
        return split(self.prediction, out, x, *self.rates(i))

    def told_up(self, i: int) -> int | float:
        """Return the time that the denoiser is told on the way up to level i: the destination's."""
        return self.timesteps[i]

    @abstractmethod
    def invert(self, i: int, out: Tensor, x: Tensor) -> Tensor:
        """Move x up to level i from level i + 1; `out` is evaluated at `told_up`, on x itself or near it."""

    def noise(self, i: int, x0: Tensor, noise: Tensor) -> Tensor:
        """Return x at level i for clean latents and unit noise."""
        signal, sigma = self.rates(i)
        return signal * x0 + sigma * noise

    @property
    def every_level(self) -> int:
        """Number of steps that pass every level that another number of steps passes; 0 where there is none."""
        return 0

    @abstractmethod
    def finer(self, steps: int) -> Path:
        """Return the same schedule in another number of steps."""

    def fingerprint(self) -> list[Any]:
        """Return plain data that two paths share only if their numbers are equal."""
        levels = [[float(rate) for rate in self.rates(i)] for i in range(len(self.timesteps) + 1)]
        return [type(self).__name__, self.prediction, list(self.timesteps), levels]


class DDIMGrid(Path):
    """Deterministic DDIM (eta = 0) on the papers' grid, as pure functions of the step.

    Leading spacing with ``steps_offset = 1`` (50 steps: 981, 961, ..., 1), no clipping, and abar_0 in place of 1 below
    timestep 0. These hold whatever the checkpoint's scheduler file says, because reference codes end up there: their
    pipelines rewrite the offset. Betas and the prediction type are the checkpoint's. Song et al., arXiv 2010.02502,
    eq. 12; the inverse move is exact for equal noise.

    Attributes:
        abar: abar_t for every training timestep, float32; signal is its root, noise that of 1 - abar.
        stride: Training timesteps from one level to the next.
    """

    name = "ddim"

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
        self.prediction = beta_prediction(prediction)
        self.abar = abar
        self.stride = total // steps
        self.timesteps = tuple(self.stride * i + 1 for i in reversed(range(steps)))

    def level(self, timestep: int | float) -> Tensor:
        """Return abar at a timestep; abar_0 below 0. A 0-dimensional float32 tensor on the CPU."""
        return self.abar[max(int(timestep), 0)]

    def rates(self, i: int) -> tuple[Tensor, Tensor]:
        """Return (sqrt(abar), sqrt(1 - abar)) of level i."""
        a = self.level(self._timestep(i))
        return a**0.5, (1 - a) ** 0.5

    def scale(self, i: int, x: Tensor) -> Tensor:
        """Return x: DDIM latents need no scaling."""
        return x

    def denoise(self, i: int, out: Tensor, x: Tensor) -> Tensor:
        """Move x from timesteps[i] to the next lower level; `out` is the denoiser's output at timesteps[i]."""
        x0, eps = self.split(i, out, x)
        signal, noise = self.rates(i + 1)
        return signal * x0 + noise * eps

    def invert(self, i: int, out: Tensor, x: Tensor) -> Tensor:
        """Move x up to timesteps[i] from the level below; `out` is evaluated at timesteps[i] on x itself.

        The noise that `out` stands for is read at the level that the denoiser was told of, not at that of x. It makes
        no difference to a model that predicts noise; of one that predicts v the other reading would reconstruct badly.
        """
        t = self.timesteps[i]
        _, eps = self.split(i, out, x)
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
        a, b = self.level(self.timesteps[i]), self.level(self._timestep(i + 1))
        variance = (1 - b) / (1 - a) * (1 - a / b)
        x0, eps = self.split(i, out, x)
        return b**0.5 * x0 + (1 - b - variance) ** 0.5 * eps, variance**0.5

    @property
    def every_level(self) -> int:
        """Number of steps that visit every training timestep."""
        return len(self.abar) - 1

    def finer(self, steps: int) -> DDIMGrid:
        """Return the grid of another number of steps over the same levels."""
        return DDIMGrid(self.abar, steps, self.prediction)

    @staticmethod
    def move(x: Tensor, eps: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Move x from abar = a to abar = b along the noise eps."""
        return b**0.5 * ((x - (1 - a) ** 0.5 * eps) / a**0.5) + (1 - b) ** 0.5 * eps

    def _timestep(self, i: int) -> int | float:
        return self.timesteps[i] if i < len(self.timesteps) else self.timesteps[-1] - self.stride


class FlowGrid(Path):
    """Euler steps on a straight flow, x_s = (1 - s) x0 + s eps, as pure functions over the checkpoint's own sigmas.

    The denoiser predicts v = eps - x0 and is told 1000 s; a step is x' = x + (s' - s) v in float32, as in diffusers'
    `FlowMatchEulerDiscreteScheduler`, whose bits it has. Esser et al., arXiv 2403.03206. The way up takes v at the
    destination's time, so that the denoiser is never asked at s = 0, which it was not trained for.

    Attributes:
        sigmas: s of the T + 1 levels, float32, noisiest first, the last one 0.
    """

    name = "flow"
    prediction: Prediction = "flow_prediction"

    def __init__(self, sigmas: Tensor, training_steps: int = 1000) -> None:
        """Lay the grid.

        Args:
            sigmas: Shape (T + 1,), descending from at most 1 to 0.
            training_steps: What the denoiser is told at s = 1.

        Raises:
            ModelError: The sigmas are no way from noise to a clean picture.
        """
        falling = bool((sigmas[1:] < sigmas[:-1]).all())
        if sigmas.ndim != 1 or len(sigmas) < 2 or not falling or float(sigmas[-1]) != 0 or float(sigmas[0]) > 1:
            raise ModelError(
                f"the checkpoint's flow schedule does not fall from at most 1 to 0: {sigmas.tolist()[:4]} ...",
                hint="use the scheduler file that came with the checkpoint",
            )
        self.sigmas = sigmas.float()
        self._training_steps = training_steps
        self.timesteps = tuple((self.sigmas[:-1] * training_steps).tolist())

    @classmethod
    def of(cls, scheduler: Any, steps: int, **options: Any) -> FlowGrid:
        """Take the sigmas that a `FlowMatchEulerDiscreteScheduler` has for so many steps.

        Args:
            scheduler: The checkpoint's scheduler; it is not changed.
            steps: T.
            options: What else its ``set_timesteps`` wants, for example ``sigmas`` or ``mu``.

        Raises:
            InputError: `steps` is less than 1.
        """
        if steps < 1:
            raise InputError(f"steps must be at least 1, found {steps}", hint="28 is usual for flow models")
        own = copy.deepcopy(scheduler)
        own.set_timesteps(**({} if "sigmas" in options else {"num_inference_steps": steps}), **options)
        return cls(own.sigmas, int(own.config.num_train_timesteps))

    def rates(self, i: int) -> tuple[Tensor, Tensor]:
        """Return (1 - s, s) of level i."""
        return 1 - self.sigmas[i], self.sigmas[i]

    def scale(self, i: int, x: Tensor) -> Tensor:
        """Return x: flow latents need no scaling."""
        return x

    def denoise(self, i: int, out: Tensor, x: Tensor) -> Tensor:
        """Move x from level i to level i + 1 along v."""
        return (x.float() + (self.sigmas[i + 1] - self.sigmas[i]) * out).to(out.dtype)

    def invert(self, i: int, out: Tensor, x: Tensor) -> Tensor:
        """Move x from level i + 1 up to level i along v; exact where v is that of the step down."""
        return (x.float() - (self.sigmas[i + 1] - self.sigmas[i]) * out).to(out.dtype)

    def finer(self, steps: int) -> FlowGrid:
        """Return the schedule with each step cut into equal parts; `steps` must be a multiple of T.

        Raises:
            InputError: It is not.
        """
        import torch

        count = len(self.timesteps)
        if steps % count:
            raise InputError(
                f"{steps} steps do not pass the levels of a sampling in {count}", hint=f"give a multiple of {count}"
            )
        parts = [torch.linspace(0, 1, steps // count + 1)[:-1] * (b - a) + a for a, b in self._pairs()]
        return FlowGrid(torch.cat([*parts, self.sigmas[-1:]]), self._training_steps)

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.sigmas[:-1], self.sigmas[1:], strict=True))


class SchedulerAdapter(Schedule):
    """Any diffusers scheduler, for generation; its history makes it unfit for inversion."""

    def __init__(self, scheduler: Any, steps: int, seed: int) -> None:
        """Prepare a private copy of `scheduler` for `steps` steps.

        Ancestral noise is drawn from `seed`, alike for every lane, so that a lane alone gets the same picture.
        """
        self._scheduler = copy.deepcopy(scheduler)
        self._scheduler.set_timesteps(steps)
        self._seed = seed
        self._generators: list[torch.Generator] = []
        self._takes_generator = "generator" in inspect.signature(self._scheduler.step).parameters
        self.timesteps = tuple(t.item() for t in self._scheduler.timesteps)
        self.initial_scale = float(self._scheduler.init_noise_sigma)

    def scale(self, i: int, x: Tensor) -> Tensor:
        """Return x as the scheduler scales model inputs at step i."""
        return self._scheduler.scale_model_input(x, self._scheduler.timesteps[i])  # type: ignore[no-any-return]

    def denoise(self, i: int, out: Tensor, x: Tensor) -> Tensor:
        """Advance all lanes at once: multistep schedulers remember what they were given."""
        import torch

        while len(self._generators) < x.shape[0]:
            self._generators.append(torch.Generator().manual_seed(self._seed))
        extra = {"generator": self._generators[: x.shape[0]]} if self._takes_generator else {}
        return self._scheduler.step(out, self._scheduler.timesteps[i], x, return_dict=False, **extra)[0]  # type: ignore[no-any-return]


def beta_prediction(name: str) -> Prediction:
    """Return what a denoiser of a schedule with betas predicts.

    Raises:
        ModelError: It predicts something else than noise or v.
    """
    if name not in BETA_PREDICTIONS:
        raise unknown("prediction type", name, BETA_PREDICTIONS, cls=ModelError)
    return name
