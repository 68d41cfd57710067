"""DDIM inversion."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from attnctl.engine.lanes import Lane
from attnctl.engine.loop import Engine
from attnctl.families.betas import beta_schedule
from attnctl.guidance import Guidance
from attnctl.inversion import InversionCall, InversionSpec, Trajectory
from attnctl.loading import load_model
from attnctl.model import Model
from attnctl.request import Edit, EditRequest
from attnctl.sampling import DDIMGrid
from attnctl.session import EditSession, Inverted, Progress
from attnctl.testing import tiny_model
from attnctl.testing.conformance import distance
from attnctl_evaluation.world import random_scene, render
from attnctl_plugins.inversions.ddim import DDIMInversion


def invert(model: Model, steps: int, prompt: str, x0: torch.Tensor, ticks: list[Any] | None = None) -> Trajectory:
    grid = beta_schedule("ddim", model.pipe.scheduler, steps, 0)
    text = model.encode_text(prompt)
    seen = [] if ticks is None else ticks
    call = InversionCall(
        model=model,
        grid=grid,
        x0=x0,
        text=text,
        source=text,
        uncond=model.encode_text(""),
        guidance=7.5,
        seed=0,
        tick=lambda done, total: seen.append((done, total)),
    )
    with torch.no_grad():
        return DDIMInversion().invert(call)


def sample(model: Model, grid: DDIMGrid, x: torch.Tensor, prompt: str, guidance: float) -> list[torch.Tensor]:
    """Sample one lane with the engine; the latents after every step."""
    lane = Lane("source", prompt, model.encode_text(prompt), model.encode_text(""), Guidance(guidance), latents=x)
    found = [x]
    with torch.no_grad():
        Engine(model, grid, {"source": lane}).run(lambda _: found.append(lane.latents))
    return found


@pytest.mark.slow
def test_inversion_and_reconstruction_are_the_reference_codes(golden: Any) -> None:
    inputs, case = golden.case("ddim_inversion_reconstruction")
    model = golden.session.model
    (prompt,) = inputs["prompts"]
    path = invert(model, 10, prompt, case["in.latent0"]).latents
    for k in range(11):
        assert distance(path[k], case["aux.inversion"][k, 0]) < 1e-3, k
    grid = beta_schedule("ddim", model.pipe.scheduler, 10, 0)
    start = case["aux.inversion"][10]
    for guidance, expected in ((1.0, case["out.steps"]), (7.5, case["aux.recon_cfg75"])):
        for k, x in enumerate(sample(model, grid, start, prompt, guidance)):
            assert distance(x, expected[k]) < 1e-3, (guidance, k)


@pytest.mark.slow
def test_the_empty_prompt_is_inverted_as_the_reference_does(golden: Any) -> None:
    """Which runs it at guidance 7.5: both halves are the same, so one row is enough."""
    _, case = golden.case("fpe_real")
    path = invert(golden.session.model, 10, "", case["in.latent0"])
    assert path.denoiser_rows == 10
    for k in range(11):
        assert distance(path.latents[k], case["aux.inversion"][k, 0]) < 1e-3, k


def test_the_round_trip_comes_closer_with_more_steps() -> None:
    """METHODS 6: it is exact but for taking each step's noise from the level below, an error that falls with T."""
    model = tiny_model(prediction_type="v_prediction")
    x0 = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    errors = []
    for steps in (3, 10, 40):
        path = invert(model, steps, "a red cat", x0)
        grid = beta_schedule("ddim", model.pipe.scheduler, steps, 0)
        errors.append(distance(sample(model, grid, path.latents[-1:], "a red cat", 1.0)[-1], x0))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.15


def test_a_model_that_predicts_v_is_inverted_as_far_as_its_autoencoder_allows() -> None:
    """Noise that is read at another level than the denoiser was told leaves 14 dB of the autoencoder's 28."""
    picture = torch.from_numpy(np.array(render(random_scene(random.Random(0), two=0.0))))
    pixels = picture.permute(2, 0, 1).float() / 127.5 - 1
    report = EditSession(load_model("micro", device="cpu")).invert(pixels, InversionSpec("ddim", ""), steps=6).report
    assert report.psnr is not None
    assert report.vae_psnr is not None
    assert report.psnr > report.vae_psnr - 3


def test_the_path_has_one_more_level_than_steps_and_starts_at_the_picture(shared_tiny_model: Model) -> None:
    x0 = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(3))
    ticks: list[tuple[int, int]] = []
    path = invert(shared_tiny_model, 4, "a cat", x0, ticks)
    assert path.latents.shape == (5, 4, 8, 12)
    assert torch.equal(path.latents[:1], x0)
    assert path.prompt == "a cat"
    assert path.denoiser_rows == 4
    assert ticks == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_quality_is_told_before_the_edit_starts(tiny_session: EditSession) -> None:
    pixels = torch.rand((3, 64, 64), generator=torch.Generator().manual_seed(5)) * 2 - 1
    events: list[Any] = []
    result = tiny_session.run(EditRequest((Edit("a dog", "none"),), pixels=pixels, steps=4), events.append)
    told = next(i for i, e in enumerate(events) if isinstance(e, Inverted))
    assert not any(isinstance(e, Progress) and e.stage == "edit" for e in events[:told])
    (report,) = result.inversions
    assert events[told].report == report
    picture = result.reconstructions["source"]
    assert torch.equal(events[told].reconstruction, picture)
    truth = pixels / 2 + 0.5
    assert report.psnr == pytest.approx(-10 * torch.log10(torch.mean((picture - truth) ** 2)).item(), abs=1e-4)
    ideal = tiny_session.model.decode_latents(tiny_session.model.encode_picture(pixels))
    assert report.vae_psnr == pytest.approx(-10 * torch.log10(torch.mean((ideal - truth) ** 2)).item(), abs=1e-4)
    assert any("reconstructs the picture at only" in w for w in result.warnings)  # a random autoencoder cannot
