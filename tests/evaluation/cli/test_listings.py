"""`attnctl metrics` and `attnctl datasets`, from the words to the exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from attnctl.cli import main
from attnctl_evaluation.metrics.protocols import PROTOCOLS


@pytest.fixture(autouse=True)
def no_weights_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Caches that are empty, wherever the tests run."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def run(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    assert main(list(words)) == code
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.out if code == 0 else captured.err


def test_all_metrics_and_protocols_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "metrics")
    found = json.loads(run(capsys, "metrics", "--json"))
    names = {metric["name"] for metric in found["metrics"]}
    assert names >= {"clip-score", "clip-directional", "lpips", "psnr", "mse", "ssim", "structure-distance"}
    assert all(name in text for name in names | set(PROTOCOLS))
    assert all(metric["summary"] and metric["better"] for metric in found["metrics"])


def test_a_metric_is_shown_with_its_card(capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "metrics", "psnr", "--set", "region=outside", "--set", "masking=black")
    assert "psnr.outside@" in text
    assert "black in both" in text
    found = json.loads(run(capsys, "metrics", "psnr", "--json"))
    assert found["card"]["unit"] == "dB"
    assert {s["name"] for s in found["settings"]} >= {"region", "masking", "cap"}


def test_a_metric_without_weights_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert "AlexNet weights, which are not on this machine; name a file" in run(capsys, "metrics", "lpips")
    assert json.loads(run(capsys, "metrics", "lpips", "--json"))["card"] is None


def test_a_protocol_is_shown_with_its_columns_and_notes(capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "metrics", "pie-bench/v1-official")
    assert "lpips-squeeze x1e3 unedited" in text
    assert "net=squeeze" in text
    found = json.loads(run(capsys, "metrics", "fpe/v1", "--json"))
    assert [c["column"] for c in found["columns"]] == ["CS", "CDS"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("metrics", "psrn"), "error: unknown metric 'psrn'"),
        (("metrics", "psnr", "--set", "region=left"), "error: psnr: region=left is not allowed"),
        (("datasets", "microbanch"), "error: unknown data set 'microbanch'"),
        (("datasets", "microbench/huge"), "error: unknown preset of microbench 'huge'"),
        (("datasets", "microbench:/x"), "error: microbench reads no files"),
        (("datasets", "folder:/no/such/place"), "error: '/no/such/place'"),
        (("datasets", "microbench", "--set", "per_type=0"), "error: microbench: per_type=0"),
    ],
)
def test_bad_input_is_one_line_and_a_hint(words: tuple[str, ...], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = run(capsys, *words, code=2).splitlines()
    assert said[0].startswith(why)
    assert said[1].startswith("hint: ")
    assert len(said) == 2


def test_all_data_sets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    names = {found["name"] for found in json.loads(run(capsys, "datasets", "--json"))}
    assert names >= {"microbench", "car-fake-edit", "pie-bench", "ti2i", "folder"}
    assert "pie-bench:PATH" in run(capsys, "datasets")


def test_a_data_set_is_counted_by_type_and_missing_pictures_too(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = json.loads(run(capsys, "datasets", "microbench/tiny", "--json"))
    assert found["cases"] == 20
    assert set(found["edit_types"].values()) == {2}
    (tmp_path / "edits.csv").write_text("image,prompt,edit_type\na.png,<b>a [red] car</b>,style\nb.png,a car,style\n")
    text = run(capsys, "datasets", f"folder:{tmp_path}")
    assert "2, 2 of them without their picture" in text
    assert "<b>a [red] car</b>" in text
    assert "there is no picture" in text
    assert "say folder:PATH" in run(capsys, "datasets", "folder")


def test_both_commands_are_in_the_help_and_among_the_plugins(capsys: pytest.CaptureFixture[str]) -> None:
    assert "list metrics" in run(capsys, "--help")
    found = json.loads(run(capsys, "plugins", "--json"))
    assert ["command metrics", "command datasets"] in [p["provides"] for p in found]
    assert not [p for p in found if p["owner"] == "attnctl" and p["error"]]
