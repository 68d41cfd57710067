"""`attnctl verify` against records that lie, hold nothing, or name what a record may not name."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from attnctl.files import sha256_of_file
from attnctl.loading import load_model
from attnctl.registry import Registry
from attnctl.request import Edit, EditRequest
from attnctl.runs.carrying import carry_out, read_inputs
from attnctl.runs.manifest import record_digest
from attnctl.runs.output import RunOutput
from attnctl_evaluation.integrity import check_integrity
from attnctl_evaluation.verify import Comparison, Replacements, Verdict, verify_run

NOWHERE = Replacements()


@pytest.fixture(scope="module")
def original(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two edits of a real picture, made from Python: no command line stands behind it."""
    folder = tmp_path_factory.mktemp("runs")
    y, x = np.mgrid[0:64, 0:80]
    photo = folder / "photo.png"
    Image.fromarray(np.stack([3 * x, 3 * y, x + y], -1).astype(np.uint8)).save(photo)
    loaded, registry = load_model(model, device="cpu"), Registry.load()
    inputs = read_inputs(loaded, picture=str(photo))
    edits = (
        Edit("a blue cat on the grass", "fpe", {"self_replace": 0.9}, name="one"),
        Edit("a blue dog on the grass", "p2p", {"self_replace": 0.5}, name="two", modifiers={"proximal": {}}),
    )
    shared = {"pixels": inputs.pixels, "steps": 3, "seed": 4, "guidance": 5.0, "inversion": "direct"}
    request = EditRequest(edits, source_prompt="a red cat on the grass", **shared)
    output = RunOutput(str(folder / "run"), label="run", seed=4, force=False)
    carry_out(request, loaded, registry, output, inputs)
    return folder / "run"


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "run"))


def change(run: Path, path: str, value: Any, *, cover: bool = True) -> None:
    """Write a value into the record; with `cover` the liar also mends the record's digest."""
    file = run / "manifest.json"
    record = json.loads(file.read_text())
    *way, last = path.split("/")
    at: Any = record
    for key in way:
        at = at[int(key)] if isinstance(at, list) else at[key]
    if isinstance(at, list):
        at[int(last)] = value
    else:
        at[last] = value
    if cover:
        record["digest"] = record_digest(record)
    file.write_text(json.dumps(record))


def again(run: Path, tmp_path: Path, replaced: Replacements = NOWHERE) -> Any:
    return verify_run(run, replaced, 40.0, tmp_path / "again")


def test_a_run_from_python_reproduces_to_the_pixel(run: Path, tmp_path: Path) -> None:
    verdict = again(run, tmp_path)
    assert verdict.outcome == "identical"
    assert verdict.record == verdict.damaged == verdict.environment == []
    assert [p.name for p in verdict.pictures[:3]] == ["source", "one", "two"]
    assert sorted(p.name for p in verdict.pictures[3:]) == ["[reconstruction]", "[side-by-side]"]


LIES = {
    "lanes/1/prompt": "a green cat",
    "lanes/1/method": "none",
    "lanes/1/config/self_replace": 0.1,
    "lanes/1/preset": "paper",
    "lanes/2/modifiers": {},
    "lanes/0/prompt": "a dog",
    "lanes/1/role": "source",
    "settings/seed": 5,
    "settings/steps": 4,
    "settings/guidance": 7.5,
    "settings/scheduler": "euler",
    "settings/scheduler_config/beta_end": 0.02,
    "settings/negative_prompt": "ugly",
    "model/sha256": "0" * 64,
    "model/family": "sdxl",
    "model/prediction": "v_prediction",
    "coverage/0/acted": 1,
    "coverage/0/sites": 99,
    "coverage": [],
    "rows/edit": 1,
    "rows": {},
    "warnings": ["made up"],
    "inversions/0/psnr": 50.0,
    "inversions/0/name": "ddim",
    "inversions": [],
    "request/edits/0/prompt": "a green cat",
    "request/edits/0/method": "none",
    "request/edits/0/settings": {},
    "request/source_prompt": "a dog",
    "request/seed": 5,
    "request/steps": 2,
    "request/guidance": 2.0,
    "request/negative_prompt": "a tree",
    "request/inversion": "ddim",
    "request/keep_source": True,
    "input_picture/fit": "nearest-stretch",
    "input_picture/notes": ["rotated"],
    "files/side_by_side/file": "one.png",
}


@pytest.mark.parametrize("path", LIES)
def test_a_lie_in_a_record_is_found(path: str, run: Path, tmp_path: Path) -> None:
    from attnctl.errors import AttnctlError

    names = json.loads((run / "manifest.json").read_text())["files"]
    change(run, path.replace("side_by_side", next(iter(names))), LIES[path])
    try:
        verdict = again(run, tmp_path)
    except AttnctlError:  # refused outright, in one line and exit code 2
        return
    assert verdict.outcome == "different"
    assert verdict.record or verdict.damaged or any(p.outcome == "different" for p in verdict.pictures)


def test_a_lane_that_was_taken_out_is_missed(run: Path, tmp_path: Path) -> None:
    record = json.loads((run / "manifest.json").read_text())
    change(run, "lanes", record["lanes"][:2])
    verdict = again(run, tmp_path)
    assert verdict.outcome == "different"
    assert any(line.startswith("lanes.two: nothing in the record") for line in verdict.record)


@pytest.mark.parametrize("lanes", [slice(0, 0), slice(0, 1)])
def test_a_record_without_edits_is_no_success(lanes: slice, run: Path, tmp_path: Path) -> None:
    from attnctl.errors import InputError

    change(run, "lanes", json.loads((run / "manifest.json").read_text())["lanes"][lanes])
    with pytest.raises(InputError, match="without an edit or without pictures"):
        again(run, tmp_path)


def test_pictures_that_a_record_does_not_name_are_no_success(run: Path, tmp_path: Path) -> None:
    for i in (1, 2):
        change(run, f"lanes/{i}/picture", None)
    assert again(run, tmp_path).outcome == "different"


def test_a_changed_digit_is_seen_without_a_model(run: Path) -> None:
    assert check_integrity(run) == (len(list(run.iterdir())), [])
    change(run, "settings/seed", 9, cover=False)
    assert check_integrity(run)[1] == ["manifest.json was changed after the run"]


@pytest.mark.parametrize("damage", ["cut", "flip", "swap", "gone", "more", "link"])
def test_damaged_folders_are_seen_without_a_model(damage: str, run: Path, tmp_path: Path) -> None:
    one, two = run / "one.png", run / "two.png"
    if damage == "cut":
        one.write_bytes(one.read_bytes()[:100])
    elif damage == "flip":
        data = bytearray(one.read_bytes())
        data[-20] ^= 1
        one.write_bytes(bytes(data))
    elif damage == "swap":
        one.rename(run / "x"), two.rename(one), (run / "x").rename(two)
    elif damage == "gone":
        one.unlink()
    elif damage == "more":
        (run / "three.png").write_bytes(one.read_bytes())
    else:
        one.rename(tmp_path / "elsewhere.png")
        one.symlink_to(tmp_path / "elsewhere.png")
    assert check_integrity(run)[1]


def test_a_record_fetches_no_model_and_runs_no_plugin(run: Path, tmp_path: Path) -> None:
    from attnctl.errors import InputError

    change(run, "model/id", "somebody/some-model")
    with pytest.raises(InputError, match="'somebody/some-model', which is not on this machine"):
        again(run, tmp_path)
    change(run, "request/plugins", [{"name": "evil.py", "sha256": "0" * 64}])
    with pytest.raises(InputError, match=r"'evil\.py', which verifying would execute"):
        again(run, tmp_path)


def test_a_record_opens_no_picture_elsewhere(run: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.png"
    shutil.copy(run / "one.png", outside)
    change(run, "lanes/1/picture/file", "../outside.png")
    verdict = again(run, tmp_path)
    assert verdict.outcome == "different"
    assert "'../outside.png' is no file of the run's folder" in verdict.damaged


def test_an_input_that_only_the_record_names_must_be_that_file(run: Path, tmp_path: Path) -> None:
    from attnctl.errors import InputError

    other = tmp_path / "other.png"
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(other)
    change(run, "input_picture/path", str(other))
    with pytest.raises(InputError, match="is another file by now"):
        again(run, tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    change(run, "input_picture/path", str(tmp_path / "pipe.png"))
    with pytest.raises(InputError, match="cannot be read"):
        again(run, tmp_path)


def test_a_run_of_tensors_says_that_it_cannot_be_made_again(model: str, tmp_path: Path) -> None:
    from attnctl.errors import InputError

    loaded = load_model(model, device="cpu")
    request = EditRequest((Edit("a blue cat", "fpe"),), source_prompt="a red cat", steps=2, x_T=torch.randn(1, 4, 8, 8))
    output = RunOutput(str(tmp_path / "run"), label="run", seed=0, force=False)
    carry_out(request, loaded, Registry.load(), output)
    with pytest.raises(InputError, match="x_T as tensors that came from no file"):
        again(tmp_path / "run", tmp_path)


def test_old_records_are_verified_by_what_they_hold(run: Path, tmp_path: Path) -> None:
    record = json.loads((run / "manifest.json").read_text())
    del record["request"], record["digest"]
    record["schema_version"] = 1
    (run / "manifest.json").write_text(json.dumps(record))
    verdict = again(run, tmp_path)
    assert all(p.outcome == "identical" for p in verdict.pictures)
    assert check_integrity(run)[1] == []


def test_the_sheet_and_reconstructions_are_compared_too(run: Path, tmp_path: Path) -> None:
    record = json.loads((run / "manifest.json").read_text())
    for name, of in record["files"].items():
        with Image.open(run / of["file"]) as image:
            Image.fromarray(255 - np.asarray(image.convert("RGB"))).save(run / of["file"])
        change(run, f"files/{name}/sha256", sha256_of_file(run / of["file"]))
    verdict = again(run, tmp_path)
    assert verdict.damaged == verdict.record == []
    assert {p.name: p.outcome for p in verdict.pictures if p.outcome != "identical"} == {
        f"[{name}]": "different" for name in record["files"]
    }


def test_a_picture_behind_a_link_is_not_opened(run: Path, tmp_path: Path) -> None:
    (run / "one.png").rename(tmp_path / "elsewhere.png")
    (run / "one.png").symlink_to(tmp_path / "elsewhere.png")
    verdict = again(run, tmp_path)
    assert {p.name: p.outcome for p in verdict.pictures}["one"] == "missing"


@pytest.mark.parametrize(("path", "by"), [("settings/guidance", 1e-6), ("request/guidance", 1e-6)])
def test_what_was_asked_for_has_no_tolerance(path: str, by: float, run: Path, tmp_path: Path) -> None:
    change(run, path, 5.0 + by)
    verdict = again(run, tmp_path)
    assert any(line.startswith("settings.guidance: ") for line in verdict.record)
    assert verdict.outcome == "different"


def test_two_lanes_of_one_name_are_seen(run: Path, tmp_path: Path) -> None:
    lanes = json.loads((run / "manifest.json").read_text())["lanes"]
    change(run, "lanes", [*lanes, lanes[1]])
    assert "number of lanes: 4 in the record, nothing in the run" in again(run, tmp_path).record


def test_what_the_record_of_an_older_version_lacks_is_said(run: Path, tmp_path: Path) -> None:
    record = json.loads((run / "manifest.json").read_text())
    del record["request"], record["digest"]
    (run / "manifest.json").write_text(json.dumps(record | {"schema_version": 1}))
    assert any("schema 1" in line for line in again(run, tmp_path).environment)


def test_failures_alone_are_no_success() -> None:
    assert Verdict("x", 40.0, [Comparison("row", "identical", note="failed (NoOpError)")]).outcome == "different"
    assert Verdict("x", 40.0, []).outcome == "different"
    assert Verdict("x", 40.0, [Comparison("row", "identical", largest=0)]).outcome == "identical"


def test_a_set_aside_record_is_the_runs_own(run: Path) -> None:
    (run / "manifest-replaced-1.json").write_text("{}")
    assert check_integrity(run)[1] == []
    (run / "manifest-other.json").write_text("{}")
    assert check_integrity(run)[1] == ["manifest-other.json is not the run's"]


def test_a_record_of_nothing_is_not_intact(run: Path) -> None:
    for path in run.glob("*.png"):
        path.unlink()
    change(run, "lanes", [])
    change(run, "files", {})
    assert check_integrity(run)[1] == ["there are no pictures"]
