"""The tiny pipelines are real: saved, loaded, the topology of the models that people use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from attnctl.families.unet import enumerate_sites
from attnctl.testing import tiny_flux, tiny_model, tiny_sd, tiny_sd3, tiny_sdxl
from attnctl.testing.tiny import TEXT_LENGTH, WORDS, tiny_tokenizer
from attnctl.testing.tiny_transformers import tiny_t5_tokenizer


def test_weights_come_from_the_seed_and_leave_the_process_alone() -> None:
    before = torch.get_rng_state()
    one, same, other = tiny_sd(), tiny_sd(), tiny_sd(seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    for part in ("unet", "vae", "text_encoder"):
        weights = [torch.cat([w.flatten() for w in getattr(p, part).parameters()]) for p in (one, same, other)]
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])


def test_what_is_saved_is_safetensors_and_loads_in_diffusers(tmp_path: Path) -> None:
    import diffusers

    made = tiny_sd(tmp_path / "sd", prediction_type="v_prediction", sample_size=16)
    assert not [p for p in (tmp_path / "sd").rglob("*") if p.suffix in {".bin", ".pt", ".ckpt"}]
    loaded = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "sd", use_safetensors=True)
    assert loaded.scheduler.config.prediction_type == "v_prediction"
    assert loaded.unet.config.sample_size == 16
    prompt = "a red cat on the grass"
    assert loaded.tokenizer(prompt).input_ids == made.tokenizer(prompt).input_ids
    for name, weight in made.unet.state_dict().items():
        assert torch.equal(loaded.unet.state_dict()[name], weight)


def test_words_are_one_token_each_and_others_are_spelled() -> None:
    tokenizer = tiny_tokenizer()
    assert tokenizer.model_max_length == TEXT_LENGTH == 77
    for word in WORDS:
        assert len(tokenizer(word).input_ids) == 3, word
    assert tokenizer.tokenize("a zebra, 42!") == [
        "a</w>",
        "z",
        "e",
        "b",
        "r",
        "a</w>",
        ",</w>",
        "4</w>",
        "2</w>",
        "!</w>",
    ]
    padded = tokenizer("a cat", padding="max_length").input_ids
    assert len(padded) == 77
    assert set(padded[3:]) == {tokenizer.eos_token_id}


@pytest.mark.parametrize(("make", "blocks"), [(tiny_sd, 16), (tiny_sdxl, 2 * 2 + 2 * 3 + 3 + 3 * 3 + 3 * 2)])
def test_topologies_are_those_of_the_real_models(make: object, blocks: int) -> None:
    sites = enumerate_sites(make().unet)  # type: ignore[operator]
    assert sum(s.kind == "self" for s in sites) == sum(s.kind == "cross" for s in sites) == blocks


def test_texts_move_predictions_and_attention_is_not_uniform() -> None:
    """Otherwise every edit would be faint, and tests of edits would see nothing."""
    model = tiny_model()
    x = model.initial_noise(0, (8, 8))
    one, other = (model.predict(x, 501, [model.encode_text(p)]) for p in ("a red cat", "a blue dog"))
    assert 0.5 < one.std() < 2
    assert (one - other).std() > 0.1 * one.std()


def test_a_type_can_be_asked_for() -> None:
    model = tiny_model(dtype=torch.bfloat16)
    assert {p.dtype for part in (model.unet, model.pipe.vae, model.pipe.text_encoder) for p in part.parameters()} == {
        torch.bfloat16
    }


# -- transformers ------------------------------------------------------------------------------------------------------

PROMPTS = ("a red cat on the grass", "a blue dog on the beach")


def generate(pipe: Any, prompt: str) -> torch.Tensor:
    """Three steps of the stock pipeline on a picture that is not square, (1, 16, 8, 12) or packed (1, 24, 64)."""
    x = torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(1))
    if hasattr(pipe, "_pack_latents"):
        x = pipe._pack_latents(x, 1, 16, 8, 12)
    size = {"height": 64, "width": 96, "max_sequence_length": 24}
    return pipe(prompt, latents=x, num_inference_steps=3, output_type="latent", **size).images  # type: ignore[no-any-return]


def without_t5() -> Any:
    return tiny_sd3(t5=False)


def of_version_3() -> Any:
    return tiny_sd3(dual=False)


def without_guidance() -> Any:
    return tiny_flux(guidance_embeds=False)


@pytest.mark.parametrize("make", [tiny_sd3, of_version_3, without_t5, tiny_flux, without_guidance])
def test_tiny_transformers_run_in_their_stock_pipelines_and_listen_to_the_text(make: Any) -> None:
    before = torch.get_rng_state()
    pipe = make()
    assert torch.equal(torch.get_rng_state(), before)
    one, other = (generate(pipe, prompt) for prompt in PROMPTS)
    assert 0.3 < one.std() < 4
    assert (one - other).norm() > 0.1 * one.norm()
    assert torch.equal(generate(make(), PROMPTS[0]), one)


@pytest.mark.parametrize("make", [tiny_sd3, tiny_flux])
def test_tiny_transformers_are_saved_as_safetensors_and_load_in_diffusers(make: Any, tmp_path: Path) -> None:
    import diffusers

    made = make(tmp_path / "model", seed=3)
    assert not [p for p in (tmp_path / "model").rglob("*") if p.suffix in {".bin", ".pt", ".ckpt"}]
    loaded = type(made).from_pretrained(tmp_path / "model", use_safetensors=True)
    assert isinstance(loaded, diffusers.DiffusionPipeline)
    loaded.set_progress_bar_config(disable=True)
    for name, part in made.components.items():
        if isinstance(part, torch.nn.Module):
            weights = getattr(loaded, name).state_dict()
            assert all(torch.equal(weights[key], weight) for key, weight in part.state_dict().items()), name
    one, same, other = (generate(pipe, PROMPTS[0]) for pipe in (made, loaded, make()))
    assert (one - same).norm() < 1e-4 * one.norm()  # weights that lie elsewhere in memory are multiplied otherwise
    assert (one - other).norm() > 0.1 * one.norm()


def test_topologies_of_transformers_are_those_of_the_real_models() -> None:
    new, old, flux = tiny_sd3().transformer, tiny_sd3(dual=False, t5=False).transformer, tiny_flux().transformer
    assert [block.attn2 is not None for block in new.transformer_blocks] == [True] * 3 + [False] * 3
    assert all(block.attn2 is None and block.attn.norm_q is None for block in old.transformer_blocks)
    assert all(block.attn.norm_q is not None for block in new.transformer_blocks)
    assert new.transformer_blocks[-1].context_pre_only
    assert (len(flux.transformer_blocks), len(flux.single_transformer_blocks)) == (3, 5)
    assert tiny_flux().scheduler.config.use_dynamic_shifting
    assert not without_guidance().transformer.config.guidance_embeds


def test_t5_has_no_start_token_and_knows_the_words() -> None:
    tokenizer = tiny_t5_tokenizer()
    assert tokenizer.tokenize("a red cat") == ["▁", "a", "▁red", "▁cat"]
    ids = tokenizer("a red cat").input_ids
    assert ids[-1] == tokenizer.eos_token_id
    assert ids[0] not in tokenizer.all_special_ids
    assert tokenizer.unk_token_id not in tokenizer("a small zebra, 42!").input_ids
    assert {len(tokenizer.tokenize(word)) for word in WORDS if len(word) > 1} == {1}
