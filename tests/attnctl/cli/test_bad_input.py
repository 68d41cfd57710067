"""What people get wrong: one error line, one hint, exit 2, and nothing left behind."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PAIR = ["--source-prompt", "a red car", "--prompt", "a blue car"]
TROUBLE = str(Path(__file__).with_name("plugin_for_tests.py"))


@pytest.mark.parametrize(
    ("words", "error", "hint"),
    [
        (
            ["--set", "self_replase=1"],
            "unknown setting of fpe 'self_replase': known are self_replace, ",
            "self_replace",
        ),
        (["--set", "self_replace=1.5"], "fpe: self_replace=1.5 is not allowed", "Fraction of the schedule"),
        (["--set", "self_replace=lots"], "fpe: self_replace=lots is not allowed", "Fraction of the schedule"),
        (["--set", "layers="], "fpe: layers is empty; leave it out", "its settings are self_replace, "),
        (["--set", "self_replace"], "--set takes name=value, found 'self_replace'", "--set"),
        (["--set", "p2p2.x=1"], "'p2p2' is not a method of this run", "those are fpe"),
        (["--set", "fpe.x=1"], "unknown setting of fpe 'x'", "did you mean"),
        (["--preset", "papper"], "unknown preset of fpe 'papper': known are paper, layers-4-14", "'paper'"),
        (["--preset", "paper", "--preset", "fpe.layers-4-14"], "fpe is given two presets", "one"),
        (["--scheduler", "DDIM"], "unknown scheduler 'DDIM': known are ddim, ", "'ddim'"),
        (["--inversion", "ddim"], "--inversion is for real pictures", "--image"),
        (["--seed", "-1"], "a seed must lie between 0 and 2**63 - 1, found -1", "0"),
        (["--seed", str(2**64)], "a seed must lie between 0 and 2**63 - 1", "0"),
        (["--steps", "0"], "steps must be at least 1, found 0", "50"),
        (["--guidance", "0.9"], "guidance must be a finite number of at least 1, found 0.9", "7.5"),
        (["--guidance", "nan"], "guidance must be a finite number of at least 1, found nan", "7.5"),
        (["--guidance", "inf"], "guidance must be a finite number of at least 1, found inf", "7.5"),
        (["--max-rows", "0"], "max_rows must be at least 1", ""),
        (["--dtype", "fp16"], "unknown dtype 'fp16': known are float16, ", "'float16'"),
        (["--prompt", "  "], "a target prompt is empty", "edited picture"),
        (["--prompt", "a \udcff car"], "a prompt holds bytes that are not UTF-8", "UTF-8"),
        (["--model", "mcro"], "unknown model 'mcro': known are micro", "did you mean 'micro'?"),
        (["--model", "no/such/folder"], "unknown model 'no/such/folder'", "check the path"),
        (["--model", "weights.ckpt"], "weights.ckpt is a pickled checkpoint", ".safetensors"),
        (["--model", "missing.safetensors"], "there is no file missing.safetensors", "check the path"),
        (["--plugin", "missing.py"], "there is no plugin file missing.py", "--plugin"),
    ],
)
def test_values_that_cannot_be(run, words: list[str], error: str, hint: str, tmp_path: Path) -> None:
    """All of these are told before the model is loaded, and before a folder is made."""
    done = run(*PAIR, *words)
    assert done.code == 2
    assert error in done.error
    assert hint in done.hint
    assert done.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "error", "hint"),
    [
        (["--size", "60x64"], "sides that are multiples of 8, found 60x64", "64x64"),
        (["--size", "4x64"], "sides that are multiples of 8, found 4x64", "8x64"),
        (["--set", "layers=4-99"], "self layers 16-99 do not exist in this model", "self layers are 0-15"),
        (["--set", "min_downscale=64"], "self downscale >= 64 selects no site", "layers 0-1 (8x8)"),
        (["--set", "layers=0,1"], "selects no site", "self sites that exist"),  # they lie above the relative rule
        (["--steps", "1000"], "steps must lie between 1 and 999, found 1000", "50"),
        (["--device", "cuda:99"], "unknown device 'cuda:99': known are", "did you mean"),
        (["--device", "gpu"], "unknown device 'gpu': known are", "did you mean"),
    ],
)
def test_values_that_this_model_cannot_take(run, words: list[str], error: str, hint: str, tmp_path: Path) -> None:
    """These need the model to be told; the folder that was made for the run is gone again."""
    done = run(*PAIR, *words)
    assert done.code == 2
    assert error in done.error
    assert hint in done.hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["run", "--method"], ["explain"], ["methods"]])
def test_an_unknown_method_lists_the_known_ones(call, command: list[str], model: str) -> None:
    words = [] if command == ["methods"] else ["--model", model]
    done = call(*command, "fpee", *words, *(PAIR if command[0] == "run" else []))
    assert "unknown method 'fpee': known are fpe, " in done.error
    assert done.hint == "hint: did you mean 'fpe'?"


def test_no_method_lists_the_known_ones(call, model: str) -> None:
    done = call("run", "--model", model, *PAIR)
    assert "no method is named; known are " in done.error
    assert "fpe" in done.error


def test_one_method_twice(run) -> None:
    assert "the method fpe is named twice" in run(*PAIR, "--method", "none,fpe").error


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--prompt", "a blue car"], "a generated source needs a source prompt"),
        (["--source-prompt", "", "--prompt", "a blue car"], "a generated source needs a source prompt"),
        (["--source-prompt", "a red car"], "there is no target prompt"),
    ],
)
def test_prompts_that_are_missing(run, words: list[str], error: str) -> None:
    assert error in run(*words).error


def test_a_real_picture_takes_no_other_scheduler(run, photo: Path) -> None:
    done = run("--image", photo, "--prompt", "a car", "--scheduler", "euler")
    assert "a real picture is inverted with DDIM, so --scheduler cannot be euler" in done.error


def test_an_unknown_inversion_lists_the_known_ones(run, photo: Path) -> None:
    done = run("--image", photo, "--prompt", "a car", "--inversion", "dim")
    assert "unknown inversion 'dim': known are ddim" in done.error


def bad_models(folder: Path) -> dict[str, Path]:
    """Model folders that lack something, by what they lack."""
    made = {}
    for name in ("no index", "no unet", "pickled", "no weights", "no words", "family", "no json"):
        made[name] = folder / name.replace(" ", "-")
        for part in ("unet", "vae", "text_encoder"):
            (made[name] / part).mkdir(parents=True)
            (made[name] / part / "config.json").write_text("{}")
            (made[name] / part / "model.safetensors").write_bytes(b"")
        (made[name] / "tokenizer").mkdir()
        (made[name] / "tokenizer/vocab.json").write_text("{}")
        (made[name] / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    (made["no index"] / "model_index.json").unlink()
    shutil.rmtree(made["no unet"] / "unet")
    (made["pickled"] / "unet/model.safetensors").rename(made["pickled"] / "unet/diffusion_pytorch_model.bin")
    (made["no weights"] / "vae/model.safetensors").unlink()
    (made["no words"] / "tokenizer/vocab.json").unlink()
    (made["family"] / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    (made["no json"] / "model_index.json").write_text("{")
    return made


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("no index", "has no model_index.json"),
        ("no unet", "has no unet/config.json"),
        ("pickled", "has only pickled weights (diffusion_pytorch_model.bin) in unet/"),
        ("no weights", "has no weights in vae/"),
        ("no words", "has no vocabulary in tokenizer/"),
        ("family", "is a FluxPipeline, a family that is not supported"),
        ("no json", "model_index.json cannot be read"),
    ],
)
@pytest.mark.parametrize("command", ["run", "sites", "explain"])
def test_a_model_folder_that_lacks_something(call, command: str, fault: str, error: str, tmp_path: Path) -> None:
    folder = bad_models(tmp_path / "models")[fault]
    words = {"run": ["--method", "fpe", *PAIR], "sites": [], "explain": ["fpe"]}[command]
    done = call(command, *words, "--model", folder)
    assert done.code == 2
    assert error in done.error
    assert not (tmp_path / "attnctl-runs").exists()


def test_weights_that_are_damaged(call, model: str, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(model, folder)
    weights = next((folder / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    done = call("run", "--method", "fpe", "--model", folder, *PAIR)
    assert f"{folder} cannot be loaded" in done.error
    assert not (tmp_path / "attnctl-runs").exists()


def test_an_inpainting_model_is_refused(call, model: str, tmp_path: Path) -> None:
    """Its denoiser takes nine channels: latents, mask, masked latents."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "inpainting"
    shutil.copytree(model, folder)
    config = json.loads((folder / "unet/config.json").read_text())
    (folder / "unet/config.json").write_text(json.dumps({**config, "in_channels": 9}))
    weights = next((folder / "unet").glob("*.safetensors"))
    tensors = load_file(weights)
    old = tensors["conv_in.weight"]
    tensors["conv_in.weight"] = torch.cat([old, torch.zeros(old.shape[0], 5, 3, 3)], dim=1)
    save_file(tensors, weights, metadata={"format": "pt"})
    done = call("sites", "--model", folder)
    assert "has a denoiser with 9 input channels for 4 latent channels" in done.error


def test_a_hub_model_without_a_network(call) -> None:
    done = call("run", "--method", "fpe", "--model", "nobody/nothing", *PAIR)
    assert "nobody/nothing cannot be loaded" in done.error
    assert "check the name and the network" in done.hint


def write_pictures(folder: Path) -> dict[str, Path]:
    """Pictures that many programs stumble over, by what they are."""
    y, x = np.mgrid[0:80, 0:60]
    rgb = np.stack([4 * x, 3 * y, x + y], axis=-1).astype(np.uint8)
    image = Image.fromarray(rgb)
    paths = {name: folder / f"{name}.png" for name in ("plain", "alpha", "deep", "truncated", "empty", "text", "huge")}
    paths |= {name: folder / f"{name}.jpg" for name in ("cmyk", "rotated")}
    image.save(paths["plain"])
    image.convert("CMYK").save(paths["cmyk"])
    Image.fromarray((y * 800).astype(np.uint16)).save(paths["deep"])
    rgba = image.convert("RGBA")
    rgba.putalpha(Image.fromarray((4 * x).astype(np.uint8)))
    rgba.save(paths["alpha"])
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(paths["rotated"], exif=exif)
    paths["truncated"].write_bytes(paths["plain"].read_bytes()[:-100])
    paths["empty"].write_bytes(b"")
    paths["text"].write_text("not a picture")
    header = b"IHDR" + (60000).to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    checksum = zlib.crc32(header).to_bytes(4, "big")
    end = b"\x00\x00\x00\x00IDAT" + zlib.crc32(b"IDAT").to_bytes(4, "big")
    paths["huge"].write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00\x00\r" + header + checksum + end)
    return paths


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("truncated", "is damaged or incomplete"),
        ("empty", "is empty (0 bytes)"),
        ("text", "is not a picture that can be read"),
        ("huge", "is too large:"),
        ("missing", "there is no picture"),
        ("folder", "is a folder, not a picture"),
    ],
)
def test_pictures_that_cannot_be_read(run, kind: str, error: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    paths = write_pictures(tmp_path / "in") | {"missing": tmp_path / "in/none.png", "folder": tmp_path / "in"}
    done = run("--image", paths[kind], "--prompt", "a blue car")
    assert done.code == 2
    assert error in done.error
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("kind", "note"),
    [
        ("cmyk", "converted from CMYK to RGB"),
        ("deep", "16-bit values scaled to 8 bits"),
        ("alpha", "transparent parts laid on white"),
        ("rotated", "rotated as its EXIF orientation says"),
    ],
)
def test_unusual_pictures_are_read_and_it_is_said_how(run, kind: str, note: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = write_pictures(tmp_path / "in")[kind]
    done = run(
        "--image", path, "--prompt", "a blue car", "--steps", "1", "--no-reconstruction", "--set", "self_replace=1"
    )
    assert done.code == 0, done.err
    assert f"note: {path}: {note}" in done.err


def test_an_unknown_fit(run, photo: Path) -> None:
    done = run("--image", photo, "--prompt", "a car", "--fit", "strech")
    assert "unknown fit 'strech': known are stretch" in done.error


def test_a_folder_that_holds_files_is_left_alone(run, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/source.png").write_text("precious")
    done = run(*PAIR, "--out", "mine")
    assert "--out 'mine' already holds files" in done.error
    assert "--force" in done.hint
    assert (tmp_path / "mine/source.png").read_text() == "precious"
    assert len(list((tmp_path / "mine").iterdir())) == 1


def test_a_place_that_cannot_be_written_to(run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "is a file, not a folder" in run(*PAIR, "--out", "file").error
    assert "cannot write 'file/in/it'" in run(*PAIR, "--out", "file/in/it").error


def test_a_failed_run_with_force_leaves_the_older_run_as_it_was(run, tmp_path: Path) -> None:
    assert run(*PAIR, "--out", "o", "--steps", "1").code == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "o").iterdir()}
    assert run(*PAIR, "--out", "o", "--force", "--size", "60x60").code == 2
    assert {p.name: p.read_bytes() for p in (tmp_path / "o").iterdir()} == before


def test_latents_that_are_not_numbers(run, tmp_path: Path) -> None:
    done = run(*PAIR, "--plugin", TROUBLE, method="nan")
    assert done.code == 2
    assert "the latents of nan became NaN or infinite in step 1" in done.error
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_numbers(call, model: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "nan-model"
    shutil.copytree(model, folder)
    weights = next((folder / "unet").glob("*.safetensors"))
    tensors = load_file(weights)
    tensors["conv_out.bias"][0] = float("nan")
    save_file(tensors, weights, metadata={"format": "pt"})
    done = call("run", "--method", "fpe", "--model", folder, *PAIR, "--steps", "2")
    assert "became NaN or infinite in step 0" in done.error


def test_more_memory_than_there_is(run, tmp_path: Path) -> None:
    """torch's own refusal, outside the denoiser's call."""
    done = run(*PAIR, "--plugin", TROUBLE, method="too-much")
    assert done.code == 2
    assert "out of memory while denoising, 1 of 4 done" in done.error
    assert "--size" in done.hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space, which only Linux enforces")
def test_a_picture_that_does_not_fit_into_memory(model: str, tmp_path: Path) -> None:
    """A process with little memory left: fewer rows are tried first, then it says what to reduce."""
    code = f"""
        import resource, sys
        from attnctl.cli import main
        words = ["run", "--method", "fpe", "--model", {model!r}, *{PAIR!r}, "--steps", "1", "--set", "self_replace=1"]
        assert main([*words, "--out", "fits"]) == 0
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**27, resource.RLIM_INFINITY))
        sys.exit(main([*words, "--size", "4096x4096", "--out", "large"]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], check=False, cwd=tmp_path, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "error: out of memory" in done.stderr
    assert "hint: use a smaller --size" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fits"]


def test_a_bug_is_one_line_and_a_traceback_on_request(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run(*PAIR, "--plugin", TROUBLE, method="bug")
    assert done.code == 1
    assert "error: internal: KeyError: 'missing'" in done.error
    assert "ATTNCTL_DEBUG=1" in done.hint
    monkeypatch.setenv("ATTNCTL_DEBUG", "1")
    done = run(*PAIR, "--plugin", TROUBLE, method="bug")
    assert done.code == 1
    assert "Traceback (most recent call last)" in done.err
    assert "plugin_for_tests.py" in done.err
    assert list(tmp_path.iterdir()) == []
