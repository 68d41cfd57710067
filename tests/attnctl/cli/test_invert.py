"""`attnctl invert`, `attnctl cache`, and inversions and modifiers in `attnctl run`."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for kept inversions."""
    folder = tmp_path / "kept"
    monkeypatch.setenv("ATTNCTL_CACHE", str(folder))
    return folder


def test_a_picture_is_inverted_measured_and_kept(call, model: str, photo: Path, kept: Path) -> None:
    words = ("invert", "--image", photo, "--model", model, "--steps", "3", "--source-prompt", "a red car")
    first = call(*words, "--json", "--metrics", "psnr", "--out", "back.png")
    assert first.code == 0, first.err
    data = first.data
    (psnr,) = data["scores"].values()
    assert data["psnr"] == pytest.approx(psnr, abs=0.01)
    assert data["vae_psnr"] >= 0
    assert data["rows"] == {"inversion": 3, "reconstruction": 3}
    assert (data["inversion"], data["cached"], data["cache"]) == ("ddim", False, str(kept))
    with Image.open("back.png") as image:
        assert image.size == (64, 64)
    again = call(*words, "--json", "--metrics", "psnr")
    assert again.data["cached"]
    assert again.data["psnr"] == data["psnr"]
    table = call(*words, "--no-cache", "--metrics", "psnr").out
    assert f"{data['psnr']:.2f} dB" in table
    assert "nowhere" in table

    listed = call("cache").out
    assert "a red car" in listed
    assert "1 inversions" in listed
    (entry,) = call("cache", "list", "--json").data["entries"]
    assert (entry["inversion"], entry["steps"]) == ("ddim", 3)
    assert call("cache", "clear").out.startswith("removed 1 inversions")
    assert call("cache", "--json").data["entries"] == []


def test_settings_reach_the_inversion(call, model: str, photo: Path, kept: Path) -> None:
    words = ("invert", "--image", photo, "--model", model, "--steps", "2", "--inversion", "direct", "--json")
    done = call(*words, "--set", "offsets=true", "--metrics", "psnr")
    assert done.data["settings"] == {"offsets": True}
    assert call(*words, "--preset", "reference", "--metrics", "psnr").data["cached"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "the following arguments are required: --image"),
        (("--image", "no.png"), "no.png"),
        (("--image", "PHOTO", "--inversion", "null-text"), "null-text needs a prompt that describes the picture"),
        (("--image", "PHOTO", "--inversion", "nul-text"), "unknown inversion 'nul-text': known are null-text"),
        (("--image", "PHOTO", "--set", "stps=3"), "unknown setting of ddim 'stps'"),
        (("--image", "PHOTO", "--inversion", "direct", "--preset", "x"), "unknown preset of direct 'x'"),
        (("--image", "PHOTO", "--scheduler", "euler"), "--scheduler cannot be euler"),
        (("--image", "PHOTO", "--metrics", "lpipz"), "unknown metric 'lpipz'"),
        (("--image", "PHOTO", "--out", "PHOTO"), "exists already"),
    ],
)
def test_bad_input_is_refused(call, model: str, photo: Path, words: tuple[str, ...], said: str) -> None:
    given = [str(photo) if word == "PHOTO" else word for word in words]
    done = call("invert", *given, "--model", model)
    assert done.code == 2
    assert said in done.error


def test_an_unknown_action_is_refused(call) -> None:
    assert "unknown ACTION 'empty': known are" in call("cache", "empty").error


def test_modifiers_are_listed(call) -> None:
    assert "proximal" in call("modifiers").out
    shown = call("modifiers", "proximal").out
    assert "quantile" in shown
    assert "reference" in shown  # its preset
    assert "reference" in call("inversions", "direct").out
    assert "unknown modifier 'proximate': known are proximal" in call("modifiers", "proximate").error


def test_a_run_takes_an_inversion_with_settings_and_a_modifier(run, photo: Path, kept: Path) -> None:
    words = ["--image", photo, "--source-prompt", "a red car", "--prompt", "a blue car", "--steps", "2", "--json"]
    words += ["--inversion", "negative-prompt", "--set", "negative-prompt.interpolate=0.25", "--modifier", "proximal"]
    done = run(*words, "--set", "proximal.quantile=0.5", "--preset", "proximal.reference", "--set", "self_replace=0.5")
    assert done.code == 0, done.err
    manifest = done.data["manifest"]
    (edit,) = [lane for lane in manifest["lanes"] if lane["role"] == "edit"]
    assert edit["config"]["self_replace"] == 0.5
    assert (edit["modifiers"]["proximal"]["quantile"], edit["modifiers"]["proximal"]["shrink"]) == (0.5, "l0")
    (inversion,) = manifest["inversions"]
    assert inversion["settings"] == {"interpolate": 0.25}
    assert len(list(kept.iterdir())) == 1


@pytest.mark.parametrize(
    ("words", "said", "hint"),
    [
        (["--set", "direct.offsets=true"], "the inversion direct is no part of this", "add --inversion direct"),
        (["--set", "proximal.quantile=1"], "the modifier proximal is no part of this", "add --modifier proximal"),
        (["--modifier", "proximal,proximal"], "the modifier proximal is named twice", "name it once"),
        (["--modifier", "prox"], "unknown modifier 'prox': known are proximal", "did you mean 'proximal'"),
        (["--inversion", "direct", "--set", "direct.offset=1"], "unknown setting of direct 'offset'", "offsets"),
        (["--inversion", "null-text"], "null-text needs a prompt that describes the picture", "--source-prompt"),
        (
            ["--inversion", "null-text", "--source-prompt", "a car", "--negative-prompt", "ugly"],
            "null-text replaces the unconditional text, so --negative-prompt would have no effect",
            "leave the negative prompt empty",
        ),
    ],
)
def test_what_does_not_go_together_is_one_line(run, photo: Path, words: list[str], said: str, hint: str) -> None:
    done = run("--image", photo, "--prompt", "a blue car", *words)
    assert done.code == 2
    assert said in done.error
    assert hint in done.hint
    assert not list(Path().glob("attnctl-runs/*"))
