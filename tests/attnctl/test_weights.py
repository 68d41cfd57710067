"""What is in a model folder: variants by part, tensors that do not fit, configurations that ask for too much."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from attnctl.errors import ModelError
from attnctl.loading import load_model, load_structure
from attnctl.request import Edit, EditRequest
from attnctl.session import EditSession
from attnctl.testing import tiny_sd
from attnctl.weights import pick_variant


@pytest.fixture
def folder(tiny_model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_folder, tmp_path / "model"))


@pytest.mark.parametrize(
    "options",
    [
        {"variant": "fp16"},
        {"variant": "fp16", "max_shard_size": "200KB"},
        {"variant": "bf16"},
        {"variant": "non_ema"},
        {"max_shard_size": "200KB"},
    ],
)
def test_variants_and_shards_are_the_same_model(options: dict[str, Any], tmp_path: Path) -> None:
    pipe = tiny_sd()
    pipe.save_pretrained(tmp_path / "m", **options)
    model = load_model(str(tmp_path / "m"), device="cpu")
    weights = pipe.unet.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in model.unet.state_dict().items())
    variant = options.get("variant")
    assert len(model.notes) == (3 if variant else 0)
    assert all(f"from its {variant} weights" in note for note in model.notes)


def test_each_part_has_its_own_variant_and_a_run_says_which(folder: Path) -> None:
    vae = folder / "vae" / "diffusion_pytorch_model.safetensors"
    vae.rename(vae.with_name("diffusion_pytorch_model.fp16.safetensors"))
    unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
    unet.rename(unet.with_name("diffusion_pytorch_model.bf16.safetensors"))
    model = load_model(str(folder), device="cpu")
    request = EditRequest((Edit("a dog", "none"),), source_prompt="a cat", steps=1)
    said = EditSession(model).run(request).warnings
    assert any("vae is loaded from its fp16 weights" in text for text in said)
    assert any("unet is loaded from its bf16 weights" in text for text in said)
    assert not any("text_encoder" in text for text in said)


def test_the_plain_weights_win_then_the_wanted_type(folder: Path) -> None:
    part = folder / "unet"
    for variant in ("fp16", "bf16", "ema"):
        shutil.copy(
            part / "diffusion_pytorch_model.safetensors", part / f"diffusion_pytorch_model.{variant}.safetensors"
        )
    assert pick_variant(part, "m", "bfloat16") == ""
    (part / "diffusion_pytorch_model.safetensors").unlink()
    assert [pick_variant(part, "m", d) for d in ("bfloat16", "float16", "float32")] == ["bf16", "fp16", "fp16"]


def test_names_that_no_library_uses_are_named(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_name("my_unet.safetensors"))
    with pytest.raises(ModelError, match=r"weights in unet/ that no loader looks for: my_unet.safetensors"):
        load_model(str(folder), device="cpu")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize(
    ("fault", "message"), [("missing", "lacks 1 tensors in"), ("extra", "has no place for"), ("shape", "other shapes")]
)
def test_tensors_that_do_not_fit_are_named(part: str, fault: str, message: str, folder: Path) -> None:
    path = next((folder / part).glob("*.safetensors"))
    tensors = load_file(path)
    key = sorted(k for k, t in tensors.items() if t.ndim)[len(tensors) // 2]
    if fault == "missing":
        del tensors[key]
    elif fault == "extra":
        tensors["foo.weight"] = torch.zeros(2)
    else:
        tensors[key] = torch.zeros(3, 3)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=message) as caught:
        load_model(str(folder), device="cpu")
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    if fault == "extra":
        assert "foo.weight" in str(caught.value)


@pytest.mark.parametrize(
    ("file", "setting", "value"),
    [
        ("scheduler/scheduler_config.json", "num_train_timesteps", 10**9),
        ("unet/config.json", "layers_per_block", 10**6),
        ("unet/config.json", "block_out_channels", [10**9, 16, 32, 32]),
        ("text_encoder/config.json", "num_hidden_layers", 10**6),
        ("text_encoder/config.json", "hidden_size", 10**6),
        ("vae/config.json", "block_out_channels", [8] * 10**4),
    ],
)
def test_configurations_that_ask_for_too_much_are_refused(file: str, setting: str, value: Any, folder: Path) -> None:
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), setting: value}))
    for load in (load_model, load_structure):
        with pytest.raises(ModelError, match=f"asks for {setting} = ") as caught:
            load(str(folder))
        assert file in str(caught.value)


def test_a_configuration_nested_without_end_is_refused(folder: Path) -> None:
    (folder / "vae" / "config.json").write_text("[" * 100_000)
    with pytest.raises(ModelError, match="cannot be read"):
        load_model(str(folder))
