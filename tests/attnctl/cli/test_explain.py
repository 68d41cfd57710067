"""`attnctl explain` and `attnctl sites`: what would happen where, and that it is what happens."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from attnctl.runs.manifest import Manifest

LAYERS = "layers 2-3 (4x4), layers 4-5 (2x2), layers 6 (1x1), layers 7-9 (2x2), layers 10-12 (4x4)"


def test_a_plan_for_a_drawn_source(call, model: str) -> None:
    done = call("explain", "fpe", "--model", model, "--steps", "30")
    assert (done.code, done.err) == (0, "")
    row = re.escape(LAYERS) + r" +0-23 +cond +out = A\[source, source\] v\[self\] +264\n"
    assert re.search(r"self-attention maps +self +" + row, done.out)
    assert re.search(r"denoiser rows +edit 120\n", done.out)
    assert re.search(r"source +drawn", done.out)


def test_a_plan_for_a_real_picture(call, model: str) -> None:
    """The rows that METHODS counts for the paper's 50 steps: 190, not the 300 of the published code."""
    done = call("explain", "fpe", "--model", model, "--real")
    assert re.search(r"denoiser rows +190: inversion 50, edit 140\n", done.out), done.out
    assert re.search(r"inversion +ddim", done.out)
    assert re.search("put back on the inverted path (before|after) every step", done.out)  # equal in effect


@pytest.mark.parametrize("real", [False, True])
def test_what_is_expected_is_what_it_takes(call, model: str, photo: Path, real: bool, tmp_path: Path) -> None:
    common = ["--model", model, "--steps", "5", "--set", "self_replace=0.5", "--size", "64x64"]
    plan = call("explain", "fpe", *common, *(["--real"] if real else []), "--json").data
    source = ["--image", str(photo), "--no-reconstruction"] if real else ["--source-prompt", "a red cat"]
    assert call("run", "--method", "fpe", *common, *source, "--prompt", "a red dog", "--out", "o").code == 0
    record = Manifest.read(tmp_path / "o/manifest.json")
    assert plan["rows"] == record.rows
    (controller,) = plan["controllers"]
    (row,) = record.coverage
    assert controller["expected"] == row.expected == row.acted
    assert len(controller["paths"]) == row.sites


def test_settings_and_presets_change_the_plan(call, model: str) -> None:
    paper = call("explain", "fpe", "--model", model, "--preset", "paper", "--json").data
    assert len(paper["controllers"][0]["paths"]) == 16  # at 8x8 latents every site has at most 1024 tokens
    text = call("explain", "fpe", "--model", model, "--preset", "layers-4-14", "--json").data
    assert len(text["controllers"][0]["paths"]) == 11
    assert text["preset"] == "layers-4-14"
    large = call("explain", "fpe", "--model", model, "--preset", "paper", "--size", "512x512", "--json").data
    assert len(large["controllers"][0]["paths"]) == 11
    assert large["latent_size"] == [64, 64]


def test_a_method_that_controls_nothing_says_so(call, model: str) -> None:
    assert "It controls nothing" in call("explain", "none", "--model", model).out


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--set", "layers=50"], "self layers 50 do not exist"),
        (["--scheduler", "x"], "unknown scheduler 'x'"),
        (["--inversion", "x"], "unknown inversion 'x'"),
        (["--guidance", "0"], "guidance must be a finite number of at least 1"),
        (["--preset", "x"], "unknown preset of fpe 'x'"),
        (["--size", "63"], "multiples of 8"),
    ],
)
def test_explain_refuses_what_run_refuses(call, model: str, words: list[str], error: str) -> None:
    done = call("explain", "fpe", "--model", model, *words)
    assert done.code == 2
    assert error in done.error


def test_sites_in_execution_order(call, model: str) -> None:
    done = call("sites", "--model", model)
    lines = [line.split() for line in done.out.splitlines()[2:]]
    attention = [line for line in lines if line[1] in {"self", "cross"}]
    assert [int(line[0]) for line in attention] == [n for n in range(16) for _ in range(2)]
    assert [line[1] for line in attention] == ["self", "cross"] * 16
    assert [line[2] for line in attention if line[1] == "self"] == ["down"] * 6 + ["mid"] + ["up"] * 9
    assert attention[0][3:6] == ["8x8", "1", "2"]
    assert attention[12][-1] == "mid_block.attentions.0.transformer_blocks.0.attn1"
    assert len(lines) == 32 + 22  # a UNet of this shape has 22 residual blocks


def test_sites_of_one_kind_at_another_size(call, model: str) -> None:
    data = call("sites", "--model", model, "--kind", "cross", "--size", "64x96", "--json").data
    assert data["latent_size"] == [8, 12]
    assert {site["kind"] for site in data["sites"]} == {"cross"}
    assert [site["grid"] for site in data["sites"][:3]] == [[8, 12], [8, 12], [4, 6]]


def test_an_unknown_kind_of_site(call, model: str) -> None:
    assert "unknown kind of site 'slef': known are self, " in call("sites", "--model", model, "--kind", "slef").error
