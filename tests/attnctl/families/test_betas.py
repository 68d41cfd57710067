"""Which schedulers describe betas, and what happens with those that do not."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

from attnctl.errors import InputError, ModelError
from attnctl.families.betas import beta_schedule, check_betas
from attnctl.model import Model
from attnctl.request import Edit, EditRequest
from attnctl.session import EditSession
from attnctl.testing import tiny_sd

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.mark.parametrize(
    ("scheduler", "named"),
    [
        (diffusers.EDMDPMSolverMultistepScheduler(), "EDMDPMSolverMultistepScheduler"),
        (diffusers.EDMEulerScheduler(), "EDMEulerScheduler"),
        (diffusers.FlowMatchEulerDiscreteScheduler(), "FlowMatchEulerDiscreteScheduler"),
        (diffusers.LCMScheduler(), "LCMScheduler"),
        (diffusers.TCDScheduler(), "TCDScheduler"),
        (diffusers.EulerDiscreteScheduler(timestep_type="continuous", sigma_min=0.1, sigma_max=9.0), "continuous"),
        (diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True), "use_flow_sigmas"),
        (diffusers.DDIMScheduler(prediction_type="sample"), "sample"),
        (diffusers.DDIMScheduler(trained_betas=[0.1] * 10), "10 trained_betas for 1000"),
        (diffusers.DDIMScheduler(beta_start=-0.1), "do not lead from a picture to noise"),
        (diffusers.DDIMScheduler(beta_start=0.1, beta_end=1.5), "do not lead from a picture to noise"),
    ],
)
def test_schedules_of_another_kind_are_refused(scheduler: Any, named: str) -> None:
    with pytest.raises(ModelError, match=named):
        check_betas(scheduler)
    with pytest.raises(ModelError, match=named):
        beta_schedule("euler", scheduler, 4, 0)


def test_trained_betas_are_the_checkpoints() -> None:
    betas = torch.linspace(0.001, 0.02, 200).tolist()
    scheduler = diffusers.DDIMScheduler(trained_betas=betas, num_train_timesteps=200)
    grid = beta_schedule("ddim", scheduler, 10, 0)
    assert torch.allclose(grid.abar, torch.cumprod(1 - torch.tensor(betas), 0))
    assert grid.timesteps[0] == 181
    for name in ("ddim", "euler"):
        with pytest.raises(InputError, match="between 1 and 199"):
            beta_schedule(name, scheduler, 200, 0)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [4, 50, 999])
def test_zero_terminal_snr_gives_numbers_or_a_sentence(prediction: str, steps: int) -> None:
    scheduler = diffusers.DDIMScheduler(**SD, rescale_betas_zero_snr=True, prediction_type=prediction)
    if prediction == "epsilon" and steps == 999:
        with pytest.raises(InputError, match="rescale_betas_zero_snr"):
            beta_schedule("ddim", scheduler, steps, 0)
        return
    grid = beta_schedule("ddim", scheduler, steps, 0)
    x = torch.ones(1, 4, 2, 2)
    assert torch.isfinite(grid.denoise(0, x, x)).all()
    assert torch.isfinite(grid.invert(0, x, x)).all()


@pytest.mark.parametrize("spacing", ["trailing", "linspace", "leading"])
def test_ddim_says_that_it_does_not_follow_the_checkpoints_spacing(spacing: str) -> None:
    pipe = tiny_sd()
    pipe.scheduler = diffusers.DDIMScheduler(**SD, timestep_spacing=spacing)
    model = Model(pipe, "x")
    request = EditRequest((Edit("a dog", "none"),), source_prompt="a cat", steps=2)
    said = any(repr(spacing) in text for text in EditSession(model).run(request).warnings)
    assert said == (spacing != "leading")
    assert model.adapter.schedule_note("euler") == ""  # the others follow the file
