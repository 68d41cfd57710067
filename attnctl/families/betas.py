"""Schedules of models that were noised by betas: which checkpoints have them, and what they can be sampled with."""

from __future__ import annotations

from typing import Any

from attnctl.errors import InputError, ModelError, unknown
from attnctl.sampling import SCHEDULERS, DDIMGrid, Schedule, SchedulerAdapter, beta_prediction

BETA_SCHEDULERS = frozenset(
    {
        *SCHEDULERS.values(),
        "DDIMInverseScheduler",
        "DDIMParallelScheduler",
        "DDPMParallelScheduler",
        "DDPMScheduler",
        "DEISMultistepScheduler",
        "DPMSolverMultistepInverseScheduler",
        "DPMSolverSDEScheduler",
        "DPMSolverSinglestepScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "SASolverScheduler",
    }
)
"""Classes of diffusers whose configuration describes betas; another one's would silently be read as default betas."""


def check_betas(scheduler: Any) -> None:
    """Refuse a checkpoint's scheduler whose configuration does not say how the checkpoint was noised in betas.

    Its file is read for the betas, whatever schedule is then used; of an EDM, flow or consistency schedule that would
    silently make up the defaults.

    Raises:
        ModelError: It is such; the message names its class.
    """
    config = dict(scheduler.config)
    kind = type(scheduler).__name__
    odd = [
        f"{name}={config[name]!r}"
        for name, usual in (("timestep_type", "discrete"), ("use_flow_sigmas", False), ("sigma_data", None))
        if config.get(name, usual) != usual
    ]
    if kind not in BETA_SCHEDULERS or odd:
        what = f" ({', '.join(odd)})" if odd else ""
        raise ModelError(
            f"the checkpoint's scheduler is a {kind}{what}, whose noise levels are not described by betas",
            hint="models trained with EDM, flow or consistency schedules are not supported in this family",
        )
    beta_prediction(str(config.get("prediction_type", "epsilon")))
    _check_numbers(scheduler, kind)


def _check_numbers(scheduler: Any, kind: str) -> None:
    import diffusers
    import torch

    config = scheduler.config
    total, trained = config.get("num_train_timesteps", 1000), config.get("trained_betas")
    if trained is not None and len(trained) != total:
        raise ModelError(
            f"the checkpoint's {kind} has {len(trained)} trained_betas for {total} training steps",
            hint="use the scheduler file that came with the checkpoint",
        )
    try:
        abar = diffusers.DDIMScheduler.from_config(config).alphas_cumprod
    except (NotImplementedError, TypeError, ValueError, RuntimeError, IndexError) as error:
        raise ModelError(
            f"the betas of the checkpoint's {kind} cannot be read: {error}",
            hint="use the scheduler file that came with the checkpoint",
        ) from error
    falls = bool((abar[1:] < abar[:-1]).all()) and bool((abar[:-1] > 0).all()) and bool(abar[0] < 1)
    if not falls or not bool(torch.isfinite(abar).all()) or float(abar[-1]) < 0:
        raise ModelError(
            f"the betas of the checkpoint's {kind} do not lead from a picture to noise",
            hint="use the scheduler file that came with the checkpoint",
        )


def ignored_spacing(name: str, scheduler: Any) -> str:
    """Say that a schedule does not space its steps as the checkpoint's file does; empty where it does.

    `DDIMGrid` is the papers' grid, whatever the file says; the others take the file's spacing.
    """
    spacing = scheduler.config.get("timestep_spacing", "leading")
    if name != "ddim" or spacing == "leading":
        return ""
    return (
        f"the checkpoint's scheduler spaces its steps {spacing!r}; ddim spaces them 'leading', as the papers do, so "
        "its pictures are not those of the checkpoint's pipeline"
    )


def beta_schedule(name: str, scheduler: Any, steps: int, seed: int) -> Schedule:
    """Build a schedule for a model that was noised by betas.

    Args:
        name: One of `SCHEDULERS`.
        scheduler: The checkpoint's own scheduler, for its betas and its prediction type.
        steps: Number of steps asked for; some schedulers run more.
        seed: Seed of the noise that ancestral schedulers add.

    Raises:
        InputError: Unknown name or steps out of range.
        ModelError: The checkpoint's scheduler or prediction type is not supported.
    """
    if name not in SCHEDULERS:
        raise unknown("scheduler", name, SCHEDULERS)
    import diffusers

    check_betas(scheduler)
    config = scheduler.config
    if name == "ddim":
        reference = diffusers.DDIMScheduler.from_config(config)
        grid = DDIMGrid(reference.alphas_cumprod.float(), steps, config.get("prediction_type", "epsilon"))
        if grid.prediction == "epsilon" and float(grid.level(grid.timesteps[0])) == 0:
            raise InputError(
                f"with {steps} steps ddim starts where nothing is left of the picture, and noise that is predicted "
                "there says nothing (rescale_betas_zero_snr)",
                hint="ask for fewer steps",
            )
        return grid
    total = int(config.get("num_train_timesteps", 1000))
    if not 1 <= steps < total:
        raise InputError(f"steps must lie between 1 and {total - 1}, found {steps}", hint="50 is the papers' number")
    wanted = getattr(diffusers, SCHEDULERS[name]).from_config(config)
    try:
        found = SchedulerAdapter(wanted, steps, seed)
    except (ValueError, IndexError) as error:  # some need a few steps before they can start
        raise InputError(
            f"the scheduler {name} cannot run {steps} steps: {error}", hint="ask for more steps"
        ) from error
    found.name = name
    return found
