"""The embedded model: what its folder holds, that it loads in silence, and that it draws."""

import json
import warnings

import pytest
import torch

from attnctl.loading import embedded_folder

FOLDER = embedded_folder()


@pytest.fixture(scope="module")
def pipe():
    from diffusers import StableDiffusionPipeline

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return StableDiffusionPipeline.from_pretrained(FOLDER).to(torch.float32)


def test_the_folder_is_small_and_holds_no_pickles():
    files = [p for p in FOLDER.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 60e6
    assert {p.suffix for p in files} <= {".json", ".txt", ".safetensors"}
    index = json.loads((FOLDER / "model_index.json").read_text(encoding="utf-8"))
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert index["safety_checker"] == [None, None]


def test_it_loads_without_a_warning(pipe, caplog):
    assert pipe.safety_checker is None
    assert pipe.tokenizer.model_max_length == 77
    assert not caplog.records


def test_its_weights_are_stored_in_half_precision():
    from safetensors import safe_open

    for part in ("unet", "vae", "text_encoder"):
        (path,) = (FOLDER / part).glob("*.safetensors")
        with safe_open(path, framework="pt") as file:
            floats = {file.get_slice(key).get_dtype() for key in file.keys()} - {"I64"}  # noqa: SIM118
        assert floats == {"F16"}, part


def test_its_topology_is_that_of_stable_diffusion_1(pipe):
    names = [n for n, m in pipe.unet.named_modules() if type(m).__name__ == "BasicTransformerBlock"]
    down = [f"down_blocks.{b}.attentions.{i}" for b in range(3) for i in range(2)]
    up = [f"up_blocks.{b}.attentions.{i}" for b in range(1, 4) for i in range(3)]
    assert sorted(n.split(".transformer_blocks")[0] for n in names) == sorted([*down, *up, "mid_block.attentions.0"])
    assert pipe.unet.config.sample_size * pipe.vae_scale_factor == 128


def test_its_schedule_is_stable_diffusions_with_v_prediction(pipe):
    config = pipe.scheduler.config
    assert type(pipe.scheduler).__name__ == "DDIMScheduler"
    assert (config.beta_start, config.beta_end, config.beta_schedule) == (0.00085, 0.012, "scaled_linear")
    assert (config.steps_offset, config.set_alpha_to_one, config.clip_sample) == (1, False, False)
    assert config.prediction_type == "v_prediction"


def test_every_known_word_is_one_token_or_two(pipe):
    words = json.loads((FOLDER / "words.json").read_text(encoding="utf-8"))
    assert {"car", "mushroom", "striped", "road", "turquoise"} <= set(words)
    lengths = {word: len(pipe.tokenizer.tokenize(word)) for word in words}
    assert {w for w, n in lengths.items() if n != 1} == {"mushroom", "chocolate", "turquoise", "automobile"}
    assert max(lengths.values()) == 2


def test_unknown_words_become_letters_and_come_back(pipe):
    ids = pipe.tokenizer("a zebra, naïve")["input_ids"]
    assert "zebra" in pipe.tokenizer.decode(ids, skip_special_tokens=True)


def test_it_draws_what_it_is_told(pipe):
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    prompts = ["a red heart in the snow", "a blue heart in the snow"]
    images = pipe(prompts, num_inference_steps=12, guidance_scale=4.0, generator=generator, output_type="pt").images
    assert images.shape == (2, 3, 128, 128)
    middle = images[:, :, 32:96, 32:96].mean(dim=(2, 3))
    assert middle[0, 0] - middle[0, 2] > middle[1, 0] - middle[1, 2] + 0.1
