"""Latents are normalised as the autoencoder's configuration says, or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attnctl.errors import ModelError
from attnctl.model import Model, check_supported
from attnctl.testing import tiny_sd, tiny_sdxl

MEAN, STD = [-1.5, 1.9, -1.4, 2.5], [8.5, 5.9, 6.5, 5.2]


def test_mean_and_deviation_are_those_of_diffusers_pipelines() -> None:
    from diffusers import StableDiffusionXLImg2ImgPipeline

    pipe = tiny_sdxl()
    pipe.vae.register_to_config(latents_mean=MEAN, latents_std=STD, scaling_factor=0.5)
    model = Model(pipe, "x", family="sdxl")
    x = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1))
    expected = pipe("a cat", num_inference_steps=1, guidance_scale=1.0, latents=x, height=64, width=64)
    assert expected is not None
    back = model.latents.decode(x)
    mean, std = (torch.tensor(v).view(1, 4, 1, 1) for v in (MEAN, STD))
    plain = pipe.vae.decode(x * std / 0.5 + mean).sample
    assert (back - (plain[0] / 2 + 0.5).clamp(0, 1)).abs().max() < 1e-5
    pixels = torch.rand((3, 64, 64), generator=torch.Generator().manual_seed(2)) * 2 - 1
    parts = {k: v for k, v in pipe.components.items() if k not in ("image_encoder", "feature_extractor")}
    other = StableDiffusionXLImg2ImgPipeline(**parts, add_watermarker=False)
    other.vae.encode = _means(pipe.vae.encode)
    given = other.prepare_latents(pixels[None], torch.tensor([1]), 1, 1, torch.float32, "cpu", add_noise=False)
    del other.vae.encode
    assert (model.encode_picture(pixels) - given).abs().max() < 1e-5


def _means(encode: Any) -> Any:
    """diffusers draws from the posterior; its mode is the mean that is compared here."""

    def wrapped(*args: Any, **options: Any) -> Any:
        found = encode(*args, **options)
        found.latent_dist.sample = lambda generator=None: found.latent_dist.mean
        return found

    return wrapped


@pytest.mark.parametrize("fields", [{"shift_factor": 0.3}, {"shift_factor": 0.3, "scaling_factor": 1.5}])
def test_a_shift_is_taken_off_and_put_back(fields: dict[str, float]) -> None:
    pipe = tiny_sd()
    pipe.vae.register_to_config(**fields)
    model = Model(pipe, "x", family="sd")
    pixels = torch.rand((3, 64, 64), generator=torch.Generator().manual_seed(2)) * 2 - 1
    mean = pipe.vae.encode(pixels[None]).latent_dist.mean
    expected = (mean - 0.3) * pipe.vae.config.scaling_factor
    assert torch.allclose(model.encode_picture(pixels), expected, atol=1e-6)
    plain = (pipe.vae.decode(mean).sample[0] / 2 + 0.5).clamp(0, 1)
    assert torch.allclose(model.decode_latents(expected), plain, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"latents_mean": MEAN}, "has no latents_std"),
        ({"latents_std": STD}, "has no latents_mean"),
        ({"latents_mean": MEAN[:3], "latents_std": STD}, "latents_mean is .* expected 4 numbers"),
        ({"latents_mean": MEAN, "latents_std": [1, 1, 1, 0]}, "latents_std is .* above 0"),
        ({"latents_mean": MEAN, "latents_std": [1, 1, 1, float("nan")]}, "latents_std is"),
        ({"scaling_factor": None}, "scaling_factor is None"),
        ({"scaling_factor": 0}, "scaling_factor is 0"),
        ({"shift_factor": "x"}, "shift_factor is 'x'"),
    ],
)
def test_configurations_that_leave_it_open_are_refused(fields: dict[str, Any], message: str) -> None:
    pipe = tiny_sd()
    pipe.vae.register_to_config(**fields)
    with pytest.raises(ModelError, match=message):
        check_supported(pipe, "x")


def test_a_tiny_autoencoder_works_and_others_are_refused() -> None:
    import diffusers

    pipe = tiny_sd()
    pipe.vae = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4
    ).eval()
    model = Model(pipe, "x", family=check_supported(pipe, "x"))
    pixels = torch.rand((3, 64, 64), generator=torch.Generator().manual_seed(2)) * 2 - 1
    x = model.encode_picture(pixels)
    assert torch.equal(x, pipe.vae.encode(pixels[None]).latents)
    assert torch.allclose(model.decode_latents(x), (pipe.vae.decode(x).sample[0] / 2 + 0.5).clamp(0, 1))
    pipe.vae = diffusers.VQModel(block_out_channels=(32,), latent_channels=4)
    with pytest.raises(ModelError, match="autoencoder is a VQModel"):
        check_supported(pipe, "x")
