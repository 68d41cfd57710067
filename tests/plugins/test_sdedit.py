"""SDEdit: where it starts, what it keeps, what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attnctl.errors import InputError
from attnctl.families.betas import beta_schedule
from attnctl.registry import Registry
from attnctl.request import Edit, EditRequest
from attnctl.session import EditSession
from attnctl.testing.conformance import distance

PROMPT = "a red dog on the grass"
NOISING_TIMESTEP = {0.2: 1, 0.6: 401, 1.0: 801}
"""Of five steps (801, 601, 401, 201, 1): the one that a run of this strength starts at."""


def picture() -> torch.Tensor:
    return torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(1))


def request(strength: float = 0.6, **changes: Any) -> EditRequest:
    return EditRequest((Edit(PROMPT, "sdedit", {"strength": strength}),), **{"x0": picture(), "steps": 5, **changes})


@pytest.mark.parametrize(("strength", "timestep"), NOISING_TIMESTEP.items())
def test_it_is_plain_sampling_from_the_noised_picture(
    tiny_session: EditSession, strength: float, timestep: int
) -> None:
    """Written out: noise, then n guided DDIM steps."""
    model = tiny_session.model
    grid = beta_schedule("ddim", model.pipe.scheduler, 5, 0)
    start = grid.timesteps.index(timestep)
    abar = model.pipe.scheduler.alphas_cumprod[timestep]
    x = abar**0.5 * picture() + (1 - abar) ** 0.5 * model.initial_noise(7, (8, 12))
    texts = [model.encode_text("", unconditional=True), model.encode_text(PROMPT)]
    with torch.no_grad():
        for i in range(start, 5):
            uncond, cond = (model.predict(x, grid.timesteps[i], [text]) for text in texts)
            x = grid.denoise(i, uncond + 3 * (cond - uncond), x)
    result = tiny_session.run(request(strength, seed=7, guidance=3.0))
    assert distance(result["edit[0]"].latents, x) < 1e-5
    assert result.rows == {"inversion": 0, "reconstruction": 0, "edit": 2 * (5 - start)}


def test_little_strength_keeps_more_of_the_picture(tiny_session: EditSession) -> None:
    found = [distance(tiny_session.run(request(s))["edit[0]"].latents, picture()) for s in (0.2, 0.6, 1.0)]
    assert found == sorted(found)


def test_the_source_stays_the_picture(tiny_session: EditSession) -> None:
    assert torch.equal(tiny_session.run(request()).source.latents, picture())


def test_outside_the_mask_the_picture_stays(tiny_session: EditSession) -> None:
    mask = torch.zeros(8, 12, dtype=torch.bool)
    mask[2:5, 3:7] = True
    x = tiny_session.run(request(mask=mask))["edit[0]"].latents[0]
    assert torch.equal(x[:, ~mask], picture()[0][:, ~mask])
    assert not torch.isclose(x[:, mask], picture()[0][:, mask]).any()


def test_a_seed_is_a_noise(tiny_session: EditSession) -> None:
    runs = [tiny_session.run(request(seed=seed))["edit[0]"].latents for seed in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_methods_that_control_attention_can_start_there_too(tiny_session: EditSession) -> None:
    edit = Edit(PROMPT, "fpe")
    result = tiny_session.run(EditRequest((edit,), x0=picture(), steps=5, inversion="noising"))
    assert all(row.acted == row.expected for row in result.coverage)
    assert torch.equal(result.source.latents, picture())


def test_what_it_refuses(tiny_session: EditSession) -> None:
    with pytest.raises(InputError, match="given picture"):
        tiny_session.plan(EditRequest((Edit(PROMPT, "sdedit"),), source_prompt="a cat", steps=5))
    with pytest.raises(InputError, match="no step"):
        tiny_session.plan(request(0.1))
    with pytest.raises(InputError, match="noising alone"):
        tiny_session.plan(request(inversion="ddim"))
    for strength in (0, 1.1):
        with pytest.raises(InputError, match="strength"):
            Registry.load().make_method("sdedit", {"strength": strength}, None)
