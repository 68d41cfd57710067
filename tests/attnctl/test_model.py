"""A model taken apart: text in, predictions out, pictures to latents and back."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attnctl.errors import InputError
from attnctl.model import Model
from attnctl.testing import tiny_model, tiny_sdxl
from attnctl.testing.conformance import distance
from attnctl.text import Text


def test_texts_are_encoded_as_the_reference_does(golden: Any) -> None:
    inputs, case = golden.case("unit_text")
    model = golden.session.model
    for i, prompt in enumerate(inputs["prompts"]):
        padded = model.pipe.tokenizer(prompt, padding="max_length", max_length=77, truncation=True).input_ids
        assert padded == case["in.ids"][i].tolist(), prompt
        assert distance(model.encode_text(prompt).embeds[0], case["out.embeddings"][i]) < 1e-5, prompt


def test_the_autoencoder_is_used_as_the_reference_does(golden: Any) -> None:
    _, case = golden.case("unit_vae")
    model = golden.session.model
    assert distance(model.encode_picture(case["in.image"][0]), case["out.latent"]) < 1e-4
    expected = (case["out.decoded"][0] / 2 + 0.5).clamp(0, 1)
    assert distance(model.decode_latents(case["out.latent"]), expected) < 1e-4


@pytest.mark.slow
def test_the_denoiser_is_run_as_the_reference_does(golden: Any) -> None:
    _, case = golden.case("unit_unet")
    model = golden.session.model
    texts = [Text("", {"embeds": case["in.context"][i : i + 1]}) for i in range(4)]
    for t in (901, 501, 1):
        assert distance(model.predict(case["in.x"], t, texts), case[f"out.eps_t{t}"]) < 1e-4


def test_a_text_does_not_depend_on_what_else_is_encoded(shared_tiny_model: Model) -> None:
    first = shared_tiny_model.encode_text("a red cat").embeds
    shared_tiny_model.forget()
    shared_tiny_model.encode_text("a dog")
    again = shared_tiny_model.encode_text("a red cat")
    assert torch.equal(first, again.embeds)
    assert shared_tiny_model.encode_text("a red cat") is again
    assert again.same_as(shared_tiny_model.encode_text("a red cat", unconditional=True))
    assert not again.same_as(shared_tiny_model.encode_text("a red dog"))


def test_texts_of_models_with_two_encoders_differ_if_either_does() -> None:
    model = Model(tiny_sdxl(), "xl", family="sdxl")
    one = model.encode_text("a cat")
    assert one.embeds.shape == (1, 77, 64)
    assert not one.reworded({"pooled": one.parts["pooled"] + 1}).same_as(one)
    empty, trained = model.encode_text(""), model.encode_text("", unconditional=True)
    assert empty.embeds.abs().sum() > 0
    assert trained.embeds.abs().sum() == 0 == trained.parts["pooled"].abs().sum()


@pytest.mark.parametrize(
    ("size", "latent"), [(None, (8, 8)), ((64, 96), (8, 12)), ((8, 8), (1, 1)), ((512, 768), (64, 96))]
)
def test_sizes_become_latent_sizes(size: Any, latent: tuple[int, int], shared_tiny_model: Model) -> None:
    assert shared_tiny_model.latent_size(size) == latent


@pytest.mark.parametrize(
    ("size", "near"),
    [((60, 64), "64x64"), ((64, 65), "64x64"), ((0, 64), "8x64"), ((-8, 3), "8x8"), ((101, 61), "104x64")],
)
def test_sizes_that_do_not_fit_are_refused_with_the_nearest_that_do(
    size: tuple[int, int], near: str, shared_tiny_model: Model
) -> None:
    with pytest.raises(InputError, match=f"multiples of 8, found {size[0]}x{size[1]}") as caught:
        shared_tiny_model.latent_size(size)
    assert near in caught.value.hint


def test_the_part_of_a_prompt_that_is_cut_off_is_known(shared_tiny_model: Model) -> None:
    assert shared_tiny_model.cut_text("a red cat") == ""
    exact = " ".join(["cat"] * 75)
    assert shared_tiny_model.cut_text(exact) == ""
    assert shared_tiny_model.cut_text(exact + " red dog") == "red dog"
    cut = shared_tiny_model.encode_text(exact + " red dog").embeds
    assert torch.equal(cut, shared_tiny_model.encode_text(exact).embeds)


def test_noise_is_the_seeds_whatever_the_type(shared_tiny_model: Model) -> None:
    one = shared_tiny_model.initial_noise(3, (8, 12))
    assert one.shape == (1, 4, 8, 12)
    assert torch.equal(one, shared_tiny_model.initial_noise(3, (8, 12)))
    assert not torch.equal(one, shared_tiny_model.initial_noise(4, (8, 12)))
    low = tiny_model(dtype=torch.bfloat16).initial_noise(3, (8, 12))
    assert torch.equal(low, one.to(torch.bfloat16))


def test_drawing_noise_leaves_the_process_alone(shared_tiny_model: Model) -> None:
    before = torch.get_rng_state()
    shared_tiny_model.initial_noise(3, (8, 8))
    tiny_model()
    assert torch.equal(torch.get_rng_state(), before)


def test_pictures_are_encoded_to_the_mean_without_chance(shared_tiny_model: Model) -> None:
    pixels = torch.rand((3, 64, 96), generator=torch.Generator().manual_seed(0)) * 2 - 1
    x = shared_tiny_model.encode_picture(pixels)
    assert x.shape == (1, 4, 8, 12)
    assert torch.equal(x, shared_tiny_model.encode_picture(pixels))
    assert shared_tiny_model.decode_latents(x).shape == (3, 64, 96)


def test_an_autoencoder_that_overflows_in_half_precision_is_run_in_float32_for_a_moment() -> None:
    pipe = tiny_model().pipe
    pipe.vae.register_to_config(force_upcast=True)
    pipe.vae.to(torch.float16)
    model = Model(pipe, "half")
    seen: list[torch.dtype] = []
    pipe.vae.decoder.register_forward_pre_hook(lambda m, args: seen.append(args[0].dtype))
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.isfinite(model.decode_latents(x)).all()
    assert seen == [torch.float32]
    assert pipe.vae.dtype == torch.float16
    pipe.vae.register_to_config(force_upcast=False)
    model.decode_latents(x)
    assert seen == [torch.float32, torch.float16]
