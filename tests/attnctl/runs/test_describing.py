"""The record of real runs on a tiny model."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import torch

from attnctl.loading import load_model
from attnctl.pictures import load_picture, to_image
from attnctl.request import Edit, EditRequest
from attnctl.result import CoverageRow, InversionReport
from attnctl.runs.describing import describe_device, describe_model, describe_run
from attnctl.runs.manifest import (
    CoverageRecord,
    FileRecord,
    InversionRecord,
    Manifest,
    model_files,
    model_fingerprint,
)
from attnctl.runs.runfolder import open_run_folder
from attnctl.runs.strip import side_by_side
from attnctl.session import EditSession
from attnctl.testing.tiny import tiny_sd


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("models") / "tiny"
    tiny_sd(place)
    return place


@pytest.fixture(scope="module")
def model(folder):
    return load_model(str(folder), device="cpu", dtype="float32")


def finished(model, out):
    """Run one edit of a generated picture, write everything, return the record."""
    edit = Edit("a blue car on a road", "fpe", settings={"self_replace": 0.5})
    request = EditRequest((edit,), source_prompt="a red car on a road", steps=2, seed=3, size=(16, 32))
    result = EditSession(model).run(request)
    run = open_run_folder(out)
    images = {lane.name: to_image(lane.pixels) for lane in result.lanes}
    pictures = {}
    for name, image in images.items():
        path, digest = run.write_picture(name, image)
        pictures[name] = FileRecord(file=path.name, sha256=digest)
    path, digest = run.write_picture("side-by-side", side_by_side(list(images.values()), list(images)))
    strip = {"side_by_side": FileRecord(file=path.name, sha256=digest)}
    made = describe_run(request, result, model, pictures=pictures, files=strip, command=["attnctl", "run"])
    made.write(run.manifest)
    return request, result, run, made


def test_a_run_is_described_completely(model, folder, tmp_path):
    request, result, run, made = finished(model, tmp_path / "out")
    assert Manifest.read(run.manifest) == made
    assert (made.settings.seed, made.settings.steps, made.settings.size) == (3, 2, (16, 32))
    assert made.settings.guidance == request.guidance
    assert made.settings.scheduler_config["beta_schedule"] == "scaled_linear"
    assert not any(key.startswith("_") for key in made.settings.scheduler_config)
    source, edit = made.lanes
    assert (source.role, source.prompt, source.method) == ("source", "a red car on a road", "")
    assert (edit.role, edit.prompt, edit.method) == ("edit", "a blue car on a road", "fpe")
    assert edit.config["self_replace"] == 0.5
    assert edit.config == result.edits[0].settings
    assert [row.model_dump() for row in made.coverage] == [dataclasses.asdict(row) for row in result.coverage]
    assert made.coverage[0].acted > 0
    assert made.rows == result.rows
    assert made.model.id == str(folder)
    assert made.model.sha256 == model_fingerprint(folder)
    assert made.model.files == model_files(folder)
    assert (made.device.kind, made.device.dtype, made.device.threads) == ("cpu", "float32", torch.get_num_threads())
    assert made.volatile.seconds == result.seconds
    assert made.volatile.created.endswith("+00:00")
    for lane in made.lanes:
        read = load_picture(run.path / lane.picture.file)
        assert read.sha256 == lane.picture.sha256
        assert read.size == (16, 32)
    assert sorted(p.name for p in run.path.iterdir()) == sorted(
        {"manifest.json", made.files["side_by_side"].file, *(lane.picture.file for lane in made.lanes)}
    )


def test_a_second_run_gives_the_same_record_but_for_volatile(model, tmp_path):
    first, second = (finished(model, tmp_path / name)[3] for name in ("one", "two"))
    assert first.comparable() == second.comparable()


def test_another_seed_gives_another_record(model, tmp_path):
    request, result, _, made = finished(model, tmp_path / "out")
    other = dataclasses.replace(request, seed=4)
    assert describe_run(other, result, model, pictures={}).comparable() != made.comparable()


def test_a_moved_model_has_the_same_fingerprint(model, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    copy = load_model(str(tmp_path / "copy"), device="cpu", dtype="float32")
    assert describe_model(copy).sha256 == describe_model(model).sha256


def test_a_hub_model_is_named_with_its_commit(model, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789abcdef0123456789abcdef01234567"
    place = tmp_path / "models--owner--tiny"
    shutil.copytree(folder, place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "v1").write_text(commit)
    hub = dataclasses.replace(model, name="owner/tiny", revision="v1", folder=None)
    made = describe_model(hub)
    assert (made.id, made.revision, made.commit) == ("owner/tiny", "v1", commit)
    assert made.sha256 == describe_model(model).sha256
    gone = describe_model(dataclasses.replace(hub, revision="v2"))
    assert (gone.commit, gone.sha256, gone.files) == (None, None, {})


def test_records_have_the_fields_of_what_they_record():
    assert set(CoverageRecord.model_fields) == {f.name for f in dataclasses.fields(CoverageRow)}
    assert set(InversionRecord.model_fields) == {f.name for f in dataclasses.fields(InversionReport)}


@pytest.mark.gpu
def test_a_gpu_is_named():
    made = describe_device(torch.device("cuda:0"), torch.float16)
    assert made.name == torch.cuda.get_device_name(0)
    assert (made.kind, made.dtype, made.threads) == ("cuda:0", "float16", None)
