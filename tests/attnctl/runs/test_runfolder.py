"""Run folders: fresh names, nothing overwritten by accident, nothing outside."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from attnctl.errors import InputError
from attnctl.files import sha256_of_file
from attnctl.runs.runfolder import RunFolder, open_run_folder


def test_fresh_folders_count_up(tmp_path):
    root = tmp_path / "deep" / "runs"
    first = open_run_folder(method="fpe", seed=7, root=root)
    second = open_run_folder(method="fpe", seed=7, root=root)
    other = open_run_folder(method="fpe", seed=8, root=root)
    assert [f.path.name for f in (first, second, other)] == ["fpe-7-1", "fpe-7-2", "fpe-8-1"]
    first.path.rmdir()
    assert open_run_folder(method="fpe", seed=7, root=root).path.name == "fpe-7-3"


def test_the_default_root_is_in_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_run_folder(method="none").path == Path("attnctl-runs/none-0-1")


def test_a_method_name_cannot_leave_the_root(tmp_path):
    made = open_run_folder(method="../../evil", seed=-1, root=tmp_path / "runs")
    assert made.path == tmp_path / "runs" / "evil--1-1"


def test_folders_made_at_the_same_time_are_different(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: open_run_folder(method="m", root=tmp_path).path, range(24)))
    assert len(set(made)) == 24


@pytest.mark.parametrize("name", ["new", "new/deeper", "ünï 一"])
def test_out_is_made(tmp_path, name):
    assert open_run_folder(tmp_path / name).path.is_dir()


def test_an_empty_out_is_used_and_left_empty(tmp_path):
    assert open_run_folder(tmp_path).path == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_an_out_with_files_needs_force_and_loses_nothing(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "manifest.json").write_text("old record")
    with pytest.raises(InputError, match=r"already holds files \(2, for example 'manifest.json'\)") as caught:
        open_run_folder(tmp_path)
    assert "--force" in caught.value.hint
    assert (tmp_path / "manifest.json").read_text() == "old record"
    run = open_run_folder(tmp_path, force=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "manifest-replaced-1.json").read_text() == "old record"
    assert not run.manifest.exists()
    run.manifest.write_text("newer record")
    open_run_folder(tmp_path, force=True)
    assert (tmp_path / "manifest-replaced-2.json").read_text() == "newer record"
    assert (tmp_path / "manifest-replaced-1.json").read_text() == "old record"


def test_force_replaces_files_of_the_same_name(tmp_path):
    open_run_folder(tmp_path).write_bytes("edit", ".txt", b"old")
    open_run_folder(tmp_path, force=True).write_bytes("edit", ".txt", b"new")
    assert (tmp_path / "edit.txt").read_bytes() == b"new"


def test_an_out_that_is_a_file(tmp_path):
    (tmp_path / "a").write_text("x")
    with pytest.raises(InputError, match="is a file, not a folder"):
        open_run_folder(tmp_path / "a", force=True)


@pytest.mark.parametrize("below", ["a/b", "a\0b", "x" * 300])
def test_an_out_that_cannot_be_made(tmp_path, below):
    (tmp_path / "a").write_text("x")
    with pytest.raises(InputError, match="cannot write"):
        open_run_folder(f"{tmp_path}/{below}")
    with pytest.raises(InputError, match="cannot write"):
        open_run_folder(method="m", root=f"{tmp_path}/{below}")


def test_a_folder_that_refuses_files_is_found_out_before_the_run(tmp_path, monkeypatch):
    def read_only(self: Path, data: bytes) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_bytes", read_only)  # what a read-only mount answers, even to root
    with pytest.raises(InputError, match="permission denied"):
        open_run_folder(tmp_path / "out")


def test_each_stem_has_one_file_of_its_own(tmp_path):
    run = open_run_folder(tmp_path)
    names = [run.file(stem).name for stem in ("edit A", "edit/a", "edit A", "Edit a", "../edit-a-2")]
    assert names == ["edit-a.png", "edit-a-2.png", "edit-a.png", "edit-a-3.png", "edit-a-2-2.png"]
    assert run.file("edit A", ".txt").name == "edit-a.txt"
    assert run.file("manifest", ".json") != run.manifest


@given(st.lists(st.text(max_size=30), max_size=12))
@example(["straße", "strasse"])
@settings(deadline=None)
def test_files_stay_inside_and_apart(stems):
    run = RunFolder(Path("root"))
    paths = [run.file(stem) for stem in stems]
    assert all(path.parent == Path("root") and path.suffix == ".png" for path in paths)
    assert len(set(paths)) == len(set(stems))
    assert len({path.name.casefold() for path in paths}) == len(set(stems))


@pytest.mark.parametrize("suffix", ["png", ".PNG", "./x", ".", ".tar.gz", ".png/"])
def test_a_suffix_of_another_form_is_a_programming_error(tmp_path, suffix):
    with pytest.raises(ValueError, match="suffix"):
        RunFolder(tmp_path).file("a", suffix)


def test_pictures_are_written_with_their_digest(tmp_path):
    run = open_run_folder(tmp_path)
    path, digest = run.write_picture("一辆 car", Image.new("RGB", (4, 4), "red"))
    assert path == tmp_path / "一辆-car.png"
    assert digest == sha256_of_file(path)
