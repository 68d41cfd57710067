"""The tiny pipelines are real: saved, loaded, the topology of the models that people use."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from attnctl.families.unet import enumerate_sites
from attnctl.testing import tiny_model, tiny_sd, tiny_sdxl
from attnctl.testing.tiny import TEXT_LENGTH, WORDS, tiny_tokenizer


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
