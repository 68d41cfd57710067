"""`attnctl verify` against comparisons whose rows or header were changed by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from attnctl.cli import main
from attnctl.errors import InputError
from attnctl_evaluation.integrity import check_integrity
from attnctl_evaluation.verify import Replacements
from attnctl_evaluation.verify_comparison import verify_comparison

NOWHERE = Replacements()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparisons") / "then"
    words = ["compare", "--dataset", "microbench/tiny", "--methods", "none,fpe", "--limit", "1", "--steps", "2"]
    words += ["--metrics", "psnr", "--threads", "1", "--quiet", "--out", str(folder)]
    assert main(words) == 0
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "then"))


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def write(folder: Path, changed: list[dict[str, Any]]) -> None:
    (folder / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))


def header(folder: Path, way: str, value: Any) -> None:
    path = folder / "run.json"
    record = json.loads(path.read_text())
    *keys, last = way.split("/")
    at: Any = record
    for key in keys:
        at = at[int(key)] if isinstance(at, list) else at[key]
    at[last] = value
    path.write_text(json.dumps(record))


def again(folder: Path, tmp_path: Path) -> Any:
    return verify_comparison(folder, NOWHERE, 40.0, tmp_path / "again", None, 0)


def test_nothing_changed(folder: Path, tmp_path: Path) -> None:
    verdict = again(folder, tmp_path)
    assert (verdict.outcome, verdict.compared) == ("identical", 2)
    assert verdict.record == verdict.scores == verdict.damaged == verdict.environment == []
    assert check_integrity(folder)[1] == []


ROW_LIES = {
    "prompt": "a lie",
    "source_prompt": "a lie",
    "edit_type": "lie",
    "real": False,
    "coverage": [],
    "rows": {"edit": 1},
    "warnings": ["made up"],
    "cards": {},
    "scores": {},
    "pictures": {},
}


@pytest.mark.parametrize("field", ROW_LIES)
def test_a_lie_in_a_row_is_found(field: str, folder: Path, tmp_path: Path) -> None:
    changed = rows(folder)
    changed[1][field] = ROW_LIES[field]
    write(folder, changed)
    verdict = again(folder, tmp_path)
    assert verdict.outcome == "different"
    assert verdict.record or verdict.scores


HEADER_LIES = {
    "dataset/fingerprint": "0" * 64,
    "dataset/cases": 7,
    "methods/1/settings": {},
    "methods/1/method": "none",
    "methods/1/inversion": "direct",
    "baseline": "fpe",
    "settings/steps": 50,
    "settings/guidance": 1.0,
    "settings/size": [512, 512],
    "model/sha256": "0" * 64,
    "model/prediction": "epsilon",
    "cards/psnr/id": "0" * 8,
    "columns": [],
    "config/steps": 3,
    "title": "A lie",
}


@pytest.mark.parametrize("way", HEADER_LIES)
def test_a_lie_in_a_header_is_found(way: str, folder: Path, tmp_path: Path) -> None:
    header(folder, way, HEADER_LIES[way])
    try:
        verdict = again(folder, tmp_path)
    except InputError:  # refused outright
        return
    assert verdict.outcome == "different"
    assert verdict.record


@pytest.mark.parametrize("kept", [0, 1])
def test_rows_that_were_taken_out_are_missed(kept: int, folder: Path, tmp_path: Path) -> None:
    write(folder, rows(folder)[:kept])
    verdict = again(folder, tmp_path)
    assert verdict.outcome == "different"
    assert verdict.record[0].startswith(f"rows: {kept} in the record, 2 in the run")


def test_another_failure_is_another_outcome(folder: Path, tmp_path: Path) -> None:
    changed = rows(folder)
    changed[0] |= {"failure": {"kind": "NoOpError", "message": "x"}}
    write(folder, changed)
    assert any("failure" in line for line in again(folder, tmp_path).record)


@pytest.mark.parametrize("role", ["source", "truth", "mask"])
def test_pictures_beside_the_edit_are_compared(role: str, folder: Path, tmp_path: Path) -> None:
    changed = rows(folder)
    path = folder / changed[0]["pictures"][role]
    with Image.open(path) as image:
        Image.fromarray(255 - np.asarray(image.convert("RGB"))).save(path)
    for row in changed:
        row["sha256"] = {}
    write(folder, changed)
    verdict = again(folder, tmp_path)
    assert any(f"its {role} picture is different" in line for line in verdict.record)
    assert verdict.outcome == "different"


def test_no_model_is_fetched_because_a_record_names_it(folder: Path, tmp_path: Path) -> None:
    header(folder, "config/model", "somebody/some-model")
    with pytest.raises(InputError, match="'somebody/some-model', which is not on this machine"):
        again(folder, tmp_path)


def test_a_picture_of_another_size_is_seen_without_a_model(folder: Path) -> None:
    changed = rows(folder)
    path = folder / changed[0]["pictures"]["edit"]
    Image.new("RGB", (8, 8)).save(path)
    for row in changed:
        row["sha256"] = {}
    write(folder, changed)
    assert any("is 8 x 8, not the run's" in line for line in check_integrity(folder)[1])
