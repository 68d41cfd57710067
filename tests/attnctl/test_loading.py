"""Finding and loading models: safetensors only, and every fault in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from attnctl.errors import AttnctlError, InputError, ModelError
from attnctl.loading import inspect_file, inspect_folder, load_model, locate, pick_device
from attnctl.request import Edit, EditRequest
from attnctl.session import EditSession
from attnctl.testing import tiny_model, tiny_sdxl


@pytest.fixture
def folder(tiny_model_folder: Path, tmp_path: Path) -> Path:
    """A model folder of one's own."""
    return Path(shutil.copytree(tiny_model_folder, tmp_path / "model"))


def change_index(folder: Path, **fields: object) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def pickled(folder: Path) -> None:
    for path in folder.rglob("*.safetensors"):
        torch.save(load_file(path), path.with_name("diffusion_pytorch_model.bin"))
        path.unlink()


def truncated(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


# -- what loads --------------------------------------------------------------------------------------------------------


def test_a_folder_loads_with_the_very_weights_it_holds(tiny_model_folder: Path) -> None:
    model = load_model(str(tiny_model_folder), device="cpu")
    same = tiny_model()
    for name, weight in model.unet.state_dict().items():
        assert torch.equal(weight, same.unet.state_dict()[name]), name
    assert (model.family, model.folder, model.dtype, model.device.type) == (
        "sd",
        tiny_model_folder,
        torch.float32,
        "cpu",
    )
    assert (model.default_size, model.vae_scale, model.latent_channels, model.text_length) == ((64, 64), 8, 4, 77)
    assert not any(
        w.requires_grad for p in (model.unet, model.pipe.vae, model.pipe.text_encoder) for w in p.parameters()
    )
    request = EditRequest((Edit("a dog", "none"),), source_prompt="a cat", steps=2)
    one, other = EditSession(model).run(request), EditSession(same).run(request)
    assert torch.equal(one.source.pixels, other.source.pixels)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_type_can_be_asked_for(dtype: str, tiny_model_folder: Path) -> None:
    model = load_model(str(tiny_model_folder), device="cpu", dtype=dtype)
    assert model.dtype == getattr(torch, dtype)
    assert {p.dtype for p in model.pipe.text_encoder.parameters()} == {model.dtype}


def test_an_sdxl_folder_loads(tmp_path: Path) -> None:
    tiny_sdxl(tmp_path / "xl")
    model = load_model(str(tmp_path / "xl"), device="cpu")
    assert model.family == "sdxl"
    assert not any(w.requires_grad for w in model.pipe.text_encoder_2.parameters())
    assert len([s for s in model.sites if s.kind == "self"]) == 2 * 2 + 2 * 3 + 3 + 3 * 3 + 3 * 2


def test_an_img2img_checkpoint_is_a_text_to_image_model(folder: Path) -> None:
    change_index(folder, _class_name="StableDiffusionImg2ImgPipeline")
    assert type(load_model(str(folder), device="cpu").pipe).__name__ == "StableDiffusionPipeline"


def test_half_precision_files_alone_are_enough(folder: Path) -> None:
    for path in folder.rglob("*.safetensors"):
        path.rename(path.with_name(path.name.replace(".safetensors", ".fp16.safetensors")))
    assert load_model(str(folder), device="cpu").dtype == torch.float32


def test_a_safety_checker_is_never_loaded(folder: Path) -> None:
    checker = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    change_index(folder, safety_checker=checker, requires_safety_checker=True)
    assert load_model(str(folder), device="cpu").pipe.safety_checker is None


# -- what does not -----------------------------------------------------------------------------------------------------

DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no index": (lambda f: (f / "model_index.json").unlink(), "has no model_index.json"),
    "index is no JSON": (lambda f: (f / "model_index.json").write_text("{"), "cannot be read"),
    "index is a list": (lambda f: (f / "model_index.json").write_text("[]"), "cannot be read"),
    "family": (lambda f: change_index(f, _class_name="FluxPipeline"), "is a FluxPipeline, a family that is not"),
    "inpainting": (lambda f: change_index(f, _class_name="StableDiffusionInpaintPipeline"), "not supported"),
    "no denoiser": (lambda f: shutil.rmtree(f / "unet"), "has no unet/config.json"),
    "no weights": (lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").unlink(), "has no weights in vae/"),
    "pickles": (pickled, r"has only pickled weights \(diffusion_pytorch_model.bin\) in unet/"),
    "truncated": (truncated, "cannot be loaded"),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), "has no vocabulary in tokenizer/"),
}


@pytest.mark.parametrize("damage", sorted(DAMAGES))
def test_damaged_folders_are_refused_in_one_line(damage: str, folder: Path) -> None:
    harm, message = DAMAGES[damage]
    harm(folder)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(str(folder), device="cpu")
    assert caught.value.hint
    assert "\n" not in f"{caught.value}{caught.value.hint}"
    assert str(folder) in str(caught.value)


def test_folders_are_looked_at_before_anything_heavy_is_imported(folder: Path) -> None:
    assert inspect_folder(folder, "m").pipeline == "StableDiffusionPipeline"
    (folder / "unet" / "config.json").unlink()
    with pytest.raises(ModelError, match=r"^m has no unet/config.json"):
        inspect_folder(folder, "m")


def test_denoisers_with_other_inputs_are_refused(folder: Path) -> None:
    """An inpainting model under a text-to-image name, and a guidance-distilled one."""
    import diffusers

    plain = json.loads((folder / "unet" / "config.json").read_text())
    for fields, message in (({"in_channels": 9}, "9 input channels for 4"), ({"time_cond_proj_dim": 8}, "distilled")):
        config = {**plain, **fields}
        diffusers.UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")
        with pytest.raises(ModelError, match=message):
            load_model(str(folder), device="cpu")


def test_hub_models_without_a_network_say_what_to_do() -> None:
    with pytest.raises(ModelError, match="nobody/no-such-model cannot be loaded") as caught:
        load_model("nobody/no-such-model", device="cpu")
    assert "local folder" in caught.value.hint
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("macro", InputError, "unknown model 'macro': known are micro"),
        ("", InputError, "unknown model ''"),
        ("./nothing/here", InputError, "unknown model"),
        ("a/b/c", InputError, "unknown model 'a/b/c'"),
        ("/no/such/model.safetensors", InputError, "there is no file /no/such/model.safetensors"),
        ("model.ckpt", ModelError, "pickled checkpoint"),
        ("some/model.bin", ModelError, "pickled checkpoint"),
    ],
)
def test_names_that_lead_nowhere_are_refused(name: str, kind: type[AttnctlError], message: str) -> None:
    with pytest.raises(kind, match=message):
        load_model(name, device="cpu")


def test_names_are_told_apart_by_what_is_there(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.safetensors").write_bytes(b"")
    assert locate("model") == (Path("model"), False)
    assert locate("owner/name") == (None, False)
    assert locate("x.safetensors") == (Path("x.safetensors"), True)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert locate("owner/name") == (Path("owner/name"), False)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"lora_unet_down_blocks_0.lora_up.weight": torch.zeros(1)}, "holds no whole model of a known family"),
        ({"decoder.conv_in.weight": torch.zeros(1)}, "none of its 1 tensors"),
        ({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(1)}, "cannot be loaded"),
    ],
)
def test_single_files_that_are_no_checkpoint_are_refused(
    tensors: dict[str, torch.Tensor], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "file.safetensors"
    save_file(tensors, path)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(str(path), device="cpu")
    assert "\n" not in f"{caught.value}{caught.value.hint}"


def test_a_damaged_single_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(b"not a safetensors file at all")
    with pytest.raises(ModelError, match="cannot be read"):
        load_model(str(path), device="cpu")


def test_the_family_of_a_single_file_is_told_by_its_tensors(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    names = ["model.diffusion_model.out.2.bias", "cond_stage_model.transformer.text_model.final_layer_norm.bias"]
    save_file({name: torch.zeros(1) for name in names}, path)
    assert inspect_file(path, "m").pipeline == "StableDiffusionPipeline"
    names = ["model.diffusion_model.out.2.bias", "conditioner.embedders.1.model.ln_final.bias"]
    save_file({name: torch.zeros(1) for name in names}, path)
    assert inspect_file(path, "m").pipeline == "StableDiffusionXLPipeline"


def test_types_and_devices_that_do_not_exist_are_refused(tiny_model_folder: Path) -> None:
    with pytest.raises(InputError, match="unknown dtype 'float8': known are float16"):
        load_model(str(tiny_model_folder), dtype="float8")
    for device in ("cuda:99", "gpu", "meta"):
        with pytest.raises(InputError, match=f"unknown device '{device}': known are"):
            load_model(str(tiny_model_folder), device=device)


def test_the_best_device_there_is_is_picked() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert pick_device(None).type == expected
