"""`attnctl verify` on folders of `attnctl run`: the same pictures again, or what is in the way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from attnctl.cli import main
from attnctl.runs.manifest import record_digest
from attnctl_evaluation.verify import compare_pictures, environment_differences

PAIR = ("--source-prompt", "a red car", "--prompt", "a blue car")


@pytest.fixture
def done(call: Callable[..., Any], model: str) -> Path:
    """A finished run of two methods."""
    words = ("run", "--method", "fpe,none", "--model", model, "--steps", 3, *PAIR, "--seed", 5, "--out", "then")
    code, _, err = call(*words)
    assert code == 0, err
    return Path("then")


def test_a_run_reproduces(call: Callable[..., Any], done: Path) -> None:
    code, out, _ = call("verify", done, "--json")
    verdict = json.loads(out)
    assert (code, verdict["outcome"]) == (0, "identical")
    assert {p["name"]: p["largest"] for p in verdict["pictures"]} == {
        "source": 0,
        "fpe": 0,
        "none": 0,
        "[side-by-side]": 0,
    }
    assert verdict["damaged"] == verdict["environment"] == []


def test_what_was_made_again_can_be_kept(call: Callable[..., Any], done: Path) -> None:
    code, out, _ = call("verify", done, "--keep", "again")
    assert code == 0
    assert "It reproduces: every pixel is equal." in out
    assert Path("again/fpe.png").read_bytes() == (done / "fpe.png").read_bytes()


def test_a_changed_picture_is_found(call: Callable[..., Any], done: Path) -> None:
    with Image.open(done / "fpe.png") as image:
        pixels = np.asarray(image).copy()
    pixels[:32] = 255 - pixels[:32]
    Image.fromarray(pixels).save(done / "fpe.png")
    code, out, _ = call("verify", done, "--json")
    verdict = json.loads(out)
    assert (code, verdict["outcome"]) == (1, "different")
    assert verdict["damaged"] == ["fpe.png was changed after the run"]
    assert {p["name"]: p["outcome"] for p in verdict["pictures"]}["fpe"] == "different"
    assert "It does not reproduce." in call("verify", done)[1]


def test_another_environment_is_named(call: Callable[..., Any], done: Path) -> None:
    path = done / "manifest.json"
    record = json.loads(path.read_text())
    record["environment"]["packages"]["torch"] = "1.0"
    record["digest"] = record_digest(record)
    path.write_text(json.dumps(record))
    code, out, _ = call("verify", done, "--json")
    (first,) = json.loads(out)["environment"]
    assert code == 0
    assert first.startswith("torch: 1.0 then, ")


def test_another_model_under_the_same_name_is_another_run(call: Callable[..., Any], done: Path) -> None:
    path = done / "manifest.json"
    record = json.loads(path.read_text())
    record["model"]["sha256"] = "0" * 64
    record["digest"] = record_digest(record)
    path.write_text(json.dumps(record))
    code, out, _ = call("verify", done, "--json")
    (line,) = json.loads(out)["record"]
    assert code == 1
    assert line.startswith("model.sha256: '0000")


def test_a_real_picture_that_moved(call: Callable[..., Any], model: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save("photo.png")
    words = ("run", "--method", "none", "--model", model, "--steps", 3, "--image", "photo.png", "--prompt", "a car")
    assert call(*words, "--out", "then")[0] == 0
    Path("photo.png").rename("moved.png")
    code, _, err = call("verify", "then")
    assert code == 2
    assert "error: the run's image 'photo.png' cannot be read" in err
    assert "hint: say with --image" in err
    code, out, _ = call("verify", "then", "--image", "moved.png")
    assert (code, "every pixel is equal" in out) == (0, True)
    Image.fromarray(255 - noise).save("other.png")
    code, out, _ = call("verify", "then", "--image", "other.png", "--json")
    assert (code, json.loads(out)["environment"]) == (1, ["image: other.png is another file than the run's"])


def test_plugin_files_are_not_loaded_by_themselves(call: Callable[..., Any], done: Path) -> None:
    path = done / "manifest.json"
    record = json.loads(path.read_text())
    record["volatile"]["command"] += ["--plugin", "evil.py"]
    path.write_text(json.dumps(record))
    Path("evil.py").write_text("raise SystemExit('loaded')\n")
    code, _, err = call("verify", done)
    assert code == 2
    assert "'evil.py', which verifying would execute" in err


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: None, "holds no run"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "is not JSON"),
    ],
)
def test_folders_without_a_run_are_refused(
    make: Callable[[Path], object], says: str, call: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    make(folder)
    code, _, err = call("verify", folder)
    assert (code, says in err) == (2, True)


@pytest.mark.parametrize("command", [[], ["attnctl", "run", "--help"], ["attnctl", "run", "--method", "none"]])
def test_a_recorded_command_is_for_people_alone(command: list[str], call: Callable[..., Any], done: Path) -> None:
    path = done / "manifest.json"
    record = json.loads(path.read_text())
    record["volatile"]["command"] = command
    record["digest"] = record_digest(record)
    path.write_text(json.dumps(record))
    code, out, _ = call("verify", done, "--json")
    assert (code, json.loads(out)["outcome"]) == (0, "identical")


def test_integrity_is_told_without_a_model(call: Callable[..., Any], done: Path) -> None:
    code, out, _ = call("verify", done, "--integrity")
    assert (code, "files are what was written" in out) == (0, True)
    (done / "fpe.png").unlink()
    code, out, _ = call("verify", done, "--integrity", "--json")
    assert (code, json.loads(out)["faults"]) == (1, ["fpe.png is not there any more"])


def test_pictures_are_compared_by_pixels(tmp_path: Path) -> None:
    grey = np.full((8, 8, 3), 100, np.uint8)
    for name, pixels in (("a", grey), ("b", grey + 1), ("c", grey + 50), ("d", grey[:4])):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")

    def compared(other: str, tolerance: float = 40.0) -> Any:
        return compare_pictures("x", tmp_path / "a.png", tmp_path / f"{other}.png", tolerance)

    assert compared("a").outcome == "identical"
    assert (compared("b").outcome, compared("b").psnr, compared("b").largest) == ("close", 48.13, 1)
    assert compared("b", 50).outcome == "different"
    assert compared("c").outcome == "different"
    assert compared("d").note == "8x8 pixels became 8x4"
    assert compared("missing").outcome == "missing"


def test_differences_of_environments_are_sentences() -> None:
    then = {"python": "3.11", "packages": {"torch": "1", "gone": "2"}, "device": {"kind": "cpu", "threads": 1}}
    now = {"python": "3.11", "packages": {"torch": "1"}, "device": {"kind": "cuda:0", "threads": 1}}
    assert environment_differences(then, now) == ["gone: 2 then, none now", "device kind: cpu then, cuda:0 now"]


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison of two methods on two drawn cases."""
    folder = tmp_path_factory.mktemp("comparisons") / "then"
    words = ["compare", "--dataset", "microbench/tiny", "--methods", "none,fpe", "--limit", "2", "--steps", "2"]
    words += ["--metrics", "psnr,mse.truth", "--threads", "1", "--quiet", "--out", str(folder)]
    assert main(words) == 0
    return folder


def test_a_comparison_reproduces(call: Callable[..., Any], comparison: Path) -> None:
    code, out, err = call("verify", comparison, "--json")
    verdict = json.loads(out)
    assert (code, verdict["outcome"]) == (0, "identical"), (out, err)
    assert len(verdict["pictures"]) == 4
    assert verdict["scores"] == verdict["environment"] == []


def test_a_changed_comparison_is_found(call: Callable[..., Any], comparison: Path, tmp_path: Path) -> None:
    """One case of it alone: a picture, a score, and an outcome that are not what comes out now."""
    folder = tmp_path / "changed"
    shutil.copytree(comparison, folder)
    rows = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    case = rows[0]["case"]
    rows[0]["scores"]["psnr"]["value"] += 1
    path = folder / rows[1]["pictures"]["edit"]
    with Image.open(path) as image:
        Image.fromarray(255 - np.asarray(image)).save(path)
    rows[2] |= {"status": "failed", "failure": {"kind": "NoOpError", "message": "x"}}
    (folder / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, _ = call("verify", folder, "--json")
    verdict = json.loads(out)
    assert (code, verdict["outcome"]) == (1, "different")
    assert [p["outcome"] for p in verdict["pictures"]] == ["identical", "different", "different", "identical"]
    assert verdict["pictures"][2]["note"] == "failed (NoOpError) then, ok now"
    assert [text.split(",")[0] for text in verdict["scores"]] == [f"{case} none seed 0"]
    samples = [json.loads(call("verify", folder, "--sample", 1, "--seed", n, "--json")[1]) for n in (0, 0, 1, 2, 3)]
    assert samples[0] == samples[1]
    assert {s["skipped"] for s in samples} == {2}
    assert len({s["pictures"][0]["name"] for s in samples}) == 2


def test_pictures_of_other_code_cannot_be_made_again(
    call: Callable[..., Any], comparison: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "foreign"
    shutil.copytree(comparison, folder)
    header = json.loads((folder / "run.json").read_text())
    header["model"] = {}
    (folder / "run.json").write_text(json.dumps(header))
    code, _, err = call("verify", folder)
    assert (code, "were made by other code" in err) == (2, True)


def test_plugin_files_of_a_comparison_are_named_again(
    call: Callable[..., Any], comparison: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "plugged"
    shutil.copytree(comparison, folder)
    header = json.loads((folder / "run.json").read_text())
    header["config"]["plugins"] = ["evil.py"]
    (folder / "run.json").write_text(json.dumps(header))
    assert "'evil.py', which verifying would execute" in call("verify", folder)[2]
    assert "--sample must be at least 1" in call("verify", folder, "--sample", 0)[2]
