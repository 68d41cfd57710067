"""pix2pix-zero: against its definition written out, what must hold, what it refuses; and its regularised inversion."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attnctl.errors import InputError
from attnctl.families.betas import beta_schedule
from attnctl.registry import Registry
from attnctl.request import Edit, EditRequest
from attnctl.session import EditSession
from attnctl.testing import tiny_model
from attnctl.testing.conformance import distance, fingerprint
from attnctl_plugins.inversions.ddim_regularised import RegularisedDDIM, autocorrelation, divergence

SOURCE, TARGET = "a red cat on the grass", "a red dog on the grass"
STEPS, GUIDANCE, SIZE = 3, 3.0, 0.15


class Written:
    """The definition by hand: an attention processor that keeps every cross-attention map."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.maps: list[torch.Tensor] = []

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            f(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for f, x in ((attn.to_q, hidden_states), (attn.to_k, text), (attn.to_v, text))
        )
        probs = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1)
        if encoder_hidden_states is not None:
            self.maps.append(probs)
        return attn.to_out[0]((probs @ v).transpose(1, 2).flatten(2))

    def predict(self, x: torch.Tensor, t: int, texts: list) -> tuple[torch.Tensor, list[torch.Tensor]]:
        self.maps = []
        out = self.model.predict(x, t, texts)
        return out, self.maps

    def run(self, x_start: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the source and the edit; the published batch is [uncond, cond]."""
        model = self.model
        grid = beta_schedule("ddim", model.pipe.scheduler, STEPS, 0)
        empty = model.encode_text("", unconditional=True)
        sources, targets = ([empty, model.encode_text(p)] for p in (SOURCE, TARGET))
        source = edit = x_start
        for i, t in enumerate(grid.timesteps):
            with torch.no_grad():
                out, reference = self.predict(source.repeat(2, 1, 1, 1), t, sources)
                source = grid.denoise(i, out[:1] + GUIDANCE * (out[1:] - out[:1]), source)
            x = edit.repeat(2, 1, 1, 1).requires_grad_()
            _, maps = self.predict(x, t, targets)
            loss = sum(((a - b) ** 2).sum((2, 3)).flatten().mean() for a, b in zip(maps, reference, strict=True))
            (gradient,) = torch.autograd.grad(loss, x)
            x = (x - SIZE * gradient).detach()
            with torch.no_grad():
                out, _ = self.predict(x, t, targets)
            edit = grid.denoise(i, out[:1] + GUIDANCE * (out[1:] - out[:1]), x[:1])
        return source, edit


def noise(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(1)).to(dtype)


def request(*edits: Edit, **changes: Any) -> EditRequest:
    fields = {"source_prompt": SOURCE, "x_T": noise(), "steps": STEPS, "guidance": GUIDANCE, **changes}
    return EditRequest(edits or (Edit(TARGET, "pix2pix-zero"),), **fields)


def real(*edits: Edit, **changes: Any) -> EditRequest:
    return request(*edits, **{"x_T": None, "x0": noise(), "check_reconstruction": False, **changes})


def test_it_is_its_definition_in_float64() -> None:
    model = tiny_model(dtype=torch.float64)
    result = EditSession(model).run(request(x_T=noise(torch.float64)))
    written = Written(model)
    model.unet.set_attn_processor(written)
    source, edit = written.run(noise(torch.float64))
    assert distance(result.source.latents, source) < 1e-10
    # Maps are compared in float64 here, in float32 otherwise: thresholds and squares need no more.
    assert distance(result["edit[0]"].latents, edit) < 1e-8
    assert len(written.maps) == 16


def test_a_zero_step_is_plain_sampling_with_the_edited_text(tiny_session: EditSession) -> None:
    off = Edit(TARGET, "pix2pix-zero", {"step_size": 0}, name="off")
    result = tiny_session.run(request(off, Edit(TARGET, "none", name="plain"), allow_no_op=True))
    assert distance(result["off"].latents, result["plain"].latents) < 1e-5


def test_no_direction_gives_the_source_again(tiny_session: EditSession) -> None:
    result = tiny_session.run(request(Edit(SOURCE, "pix2pix-zero"), allow_no_op=True))
    assert distance(result["edit[0]"].latents, result.source.latents) < 1e-4


def test_it_keeps_maps_closer_to_the_sources(tiny_session: EditSession) -> None:
    """What it is for: with the guidance, latents stay nearer to the source's than without."""
    near, far = (Edit(TARGET, "pix2pix-zero", {"step_size": s}, name=str(s)) for s in (1.0, 0.0))
    result = tiny_session.run(request(near, far, allow_no_op=True))
    assert distance(result["1.0"].latents, result["0.0"].latents) > 1e-3


def test_the_source_does_not_feel_it_and_the_model_is_left_as_it_was(tiny_session: EditSession) -> None:
    before = fingerprint(tiny_session.model.unet)
    with_edit, without = tiny_session.run(request()), tiny_session.run(request(Edit(TARGET, "none")))
    assert torch.equal(with_edit.source.latents, without.source.latents)
    assert fingerprint(tiny_session.model.unet) == before
    assert all(row.acted == row.expected == STEPS for row in with_edit.coverage)


def test_beside_a_method_that_controls_attention(tiny_session: EditSession) -> None:
    """Its extra predictions run uncontrolled, whatever is installed on the layers."""
    mine, other = Edit(TARGET, "pix2pix-zero", name="mine"), Edit(TARGET, "masactrl", {"start": 0}, name="other")
    both, alone = tiny_session.run(request(mine, other)), tiny_session.run(request(mine))
    assert distance(both["mine"].latents, alone["mine"].latents) < 1e-4


def test_real_pictures_need_one_source_row(tiny_session: EditSession) -> None:
    """The caption is the unconditional text too: per step 1 + 1 source, 2 with gradient, 1 + 2 without."""
    result = tiny_session.run(real())
    assert result.rows == {"inversion": STEPS - 2, "edit": STEPS * 7}
    assert (result.inversions[0].name, result.inversions[0].prompt) == ("ddim-regularised", SOURCE)


def test_sentences_are_averaged(tiny_session: EditSession) -> None:
    sentences = {"source_sentences": ["a cat", "a black cat"], "target_sentences": ["a dog"]}
    (edit,) = tiny_session.plan(request(Edit(TARGET, "pix2pix-zero", sentences))).edits
    assert dict(edit.plan.text) == {SOURCE: 1.0, "a dog": 1.0, "a cat": -0.5, "a black cat": -0.5}
    (edit,) = tiny_session.plan(request()).edits
    assert dict(edit.plan.text) == {TARGET: 1.0}


def test_without_guidance_and_in_bfloat16(tiny_session: EditSession) -> None:
    assert all(row.acted == row.expected for row in tiny_session.run(request(guidance=1.0)).coverage)
    half = EditSession(tiny_model(dtype=torch.bfloat16)).run(request())
    assert torch.isfinite(half["edit[0]"].latents).all()


def test_what_it_refuses(tiny_session: EditSession) -> None:
    with pytest.raises(InputError, match="source shows"):
        tiny_session.plan(real(source_prompt=None))
    for settings in ({"step_size": -1}, {"guidance": 0.5}, {"layers": ()}):
        with pytest.raises(InputError, match="pix2pix-zero"):
            Registry.load().make_method("pix2pix-zero", settings, None)


# -- regularised inversion ---------------------------------------------------------------------------------------------


def test_regularising_whitens() -> None:
    """Correlated, too loud noise comes out less correlated and nearer to unit variance."""
    generator = torch.Generator().manual_seed(0)
    eps = 1.3 * torch.nn.functional.avg_pool2d(torch.randn(1, 4, 66, 66, generator=generator), 3, 1) * 3
    out = RegularisedDDIM().regularise(eps, torch.Generator().manual_seed(1))
    neighbours = [(e * e.roll(1, -1)).mean() / e.var() for e in (eps, out)]
    assert abs(neighbours[1]) < abs(neighbours[0])
    assert abs(out.var() - 1) < abs(eps.var() - 1)
    assert divergence(out) < divergence(eps)


def test_white_noise_has_no_autocorrelation_to_speak_of() -> None:
    white = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(white[..., ::4, ::4], size=(64, 64))
    a, b = (float(autocorrelation(e, torch.Generator().manual_seed(0))) for e in (white, smooth))
    assert a < 0.2 * b


def test_without_regularisation_it_is_the_published_level_bookkeeping(tiny_session: EditSession) -> None:
    """x goes from level t - 1 to t + D - 1 with the noise at t; the first and the last timestep are left out."""
    model = tiny_session.model
    grid = beta_schedule("ddim", model.pipe.scheduler, 5, 0)
    abar, text = model.pipe.scheduler.alphas_cumprod, model.encode_text(SOURCE)
    x = noise()
    with torch.no_grad():
        for t in (201, 401, 601):
            e = model.predict(x, t, [text])
            x0 = (x - (1 - abar[t - 1]) ** 0.5 * e) / abar[t - 1] ** 0.5
            x = abar[t + 199] ** 0.5 * x0 + (1 - abar[t + 199]) ** 0.5 * e
    from attnctl.inversion import InversionCall

    inversion = RegularisedDDIM(RegularisedDDIM.Config(rounds=0))
    with torch.no_grad():
        found = inversion.invert(InversionCall(model, grid, noise(), text, text, text, 1.0, 0))
    assert distance(found.latents[-1:], x) < 1e-6
    assert torch.equal(found.latents[:3], noise().expand(3, -1, -1, -1))
    assert (len(found.latents), found.denoiser_rows) == (6, 3)
