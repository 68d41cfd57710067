"""The run folder: rows are added, never doubled or lost, wherever a file breaks off."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnctl.dataset import Case
from attnctl.errors import InputError
from attnctl_evaluation.benchmark.store import RunStore
from attnctl_evaluation.rows import DatasetEntry, Header, MethodEntry, Pictures, Results, Row, Timing

CASES = [Case(id=f"case-{n}", prompt="blau ä\u2028", edit_type="t", facts={"n": n}) for n in range(3)]
LABELS = ("none", "b")
ORDER = {(c.id, label, 0): i for i, (c, label) in enumerate((c, label) for c in CASES for label in LABELS)}
HEADER = Header(
    dataset=DatasetEntry(spec="d", name="d", fingerprint="0", cases=3, edit_types={"t": 3}),
    methods=[MethodEntry(label=label, folder=f"none+{label}", method=label) for label in LABELS],
    baseline="none",
    seeds=[0],
    columns=[],
    config={"dataset": "d", "methods": {"none": {}, "b": {}}},
)


def row(case: Case, label: str) -> Row:
    pictures = Pictures(edit=f"none+{label}/{case.id}.png", source=f"input/{case.id}.png")
    fields = {"edit_type": "t", "source_prompt": None, "prompt": case.prompt, "real": True, "warnings": ["zwölf 🐢\n"]}
    return Row(case=case.id, method=label, seed=0, status="ok", pictures=pictures, **fields)


def fill(folder: Path, cases=CASES) -> None:
    with RunStore(folder) as store:
        store.begin(HEADER, CASES)
        for case in cases:
            rows = [row(case, label) for label in LABELS]
            timings = [Timing(case=case.id, method=label, seed=0, seconds={"edit": 1.5}) for label in LABELS]
            names = {name for r in rows for name in (r.pictures.edit, r.pictures.source)}
            store.add(rows, timings, {name: name.encode() for name in names})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    fill(folder, CASES[::-1])
    return folder


@pytest.fixture(scope="module")
def finished(whole: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("finished") / "run"
    shutil.copytree(whole, folder)
    with RunStore(folder) as store:
        store.finish(ORDER)
    return files(folder)


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@settings(max_examples=25)
@given(data=st.data())
def test_rows_survive_a_cut_at_any_byte(whole: Path, finished: dict[str, bytes], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        shutil.copytree(whole, folder)
        kept = {}
        for name in ("records.jsonl", "timings.jsonl"):
            text = (folder / name).read_bytes()
            kept[name] = text[: data.draw(st.integers(0, len(text)), label=name)]
            (folder / name).write_bytes(kept[name])
        with RunStore(folder) as store:
            assert len(store.rows) == kept["records.jsonl"].count(b"\n")
            assert [*store.rows.values()] == [row(c, m) for c in CASES[::-1] for m in LABELS][: len(store.rows)]
        assert (folder / "records.jsonl").read_bytes() == kept["records.jsonl"][
            : kept["records.jsonl"].rfind(b"\n") + 1
        ]
        fill(folder, CASES)
        with RunStore(folder) as store:
            store.finish(ORDER)
        found = files(folder)
        del found["timings.jsonl"]
        assert found == {k: v for k, v in finished.items() if k != "timings.jsonl"}
        assert len(Results.read(folder).records) == 6


def test_rows_come_in_canonical_order_with_their_costs(whole: Path, finished: dict[str, bytes]) -> None:
    ordered = [r.key for r in (Row.model_validate_json(x) for x in finished["records.jsonl"].splitlines())]
    assert ordered == list(ORDER)
    assert finished["timings.jsonl"].count(b"\n") == 6
    assert [r.key for r in Results.read(whole).records] != list(ORDER)


def test_a_row_whose_picture_is_gone_is_made_again(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run/none+b/case-1.png").unlink()
    with RunStore(tmp_path / "run") as store:
        assert ("case-1", "b", 0) not in store.rows
        assert len(store.rows) == 5
    assert len(Results.read(tmp_path / "run").records) == 5


def test_a_doubled_row_counts_once(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    rows = tmp_path / "run/records.jsonl"
    rows.write_bytes(rows.read_bytes() * 2)
    with RunStore(tmp_path / "run") as store:
        assert len(store.rows) == 6
    assert rows.read_bytes() == (whole / "records.jsonl").read_bytes()


def test_half_written_files_go_and_others_stay(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    for name in (".attnctl-0123.tmp", "input/.attnctl-45.tmp", "report.html", "input/.hidden"):
        (tmp_path / "run" / name).write_bytes(b"x")
    with RunStore(tmp_path / "run"):
        pass
    there = files(tmp_path / "run")
    assert "report.html" in there
    assert "input/.hidden" in there
    assert not [name for name in there if name.endswith(".tmp")]


def test_a_run_stopped_before_its_header_begins_anew(tmp_path: Path) -> None:
    with RunStore(tmp_path) as store:
        store.begin(HEADER, CASES)
    (tmp_path / "run.json").unlink()
    fill(tmp_path)
    assert len(Results.read(tmp_path).records) == 6


def test_two_processes_cannot_write_one_folder(tmp_path: Path) -> None:
    with RunStore(tmp_path), pytest.raises(InputError, match="another process is writing"):
        RunStore(tmp_path)
    RunStore(tmp_path).close()


def test_a_process_that_is_killed_gives_the_folder_back(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from attnctl_evaluation.benchmark.store import RunStore; "
        "store = RunStore(Path(sys.argv[1])); print(flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        with pytest.raises(InputError, match="another process is writing"):
            RunStore(tmp_path)
        process.kill()
    RunStore(tmp_path).close()
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_is_written_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with RunStore(tmp_path):
        pass
    assert not [*tmp_path.iterdir()]


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    for force in (False, True):
        with pytest.raises(InputError, match=r"no run .*thesis\.tex"):
            RunStore(tmp_path, force=force)
    assert (tmp_path / "thesis.tex").read_text() == "x"


def test_a_folder_that_was_made_for_nothing_goes(tmp_path: Path) -> None:
    with RunStore(tmp_path / "a/b"):
        assert (tmp_path / "a/b").is_dir()
    assert not (tmp_path / "a").exists()
    with RunStore(tmp_path):
        pass
    assert tmp_path.is_dir()


def test_another_question_or_another_making_is_refused_with_what_differs(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    with RunStore(tmp_path / "run") as store:
        store.check_config(HEADER.config)
        with pytest.raises(InputError, match='asked for something else: dataset: "d", now "e"') as caught:
            store.check_config({**HEADER.config, "dataset": "e"})
        assert "--force" in caught.value.hint
        other = HEADER.model_copy(update={"device": {"threads": 2}})
        with pytest.raises(InputError, match=r"made in another way: device\.threads: not set, now 2"):
            store.begin(other, CASES)


def test_starting_over_removes_the_run_and_nothing_else(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run/report.html").write_text("x")
    (tmp_path / "beside").mkdir()
    text = (tmp_path / "run/run.json").read_text().replace("none+b", "../beside")
    (tmp_path / "run/run.json").write_text(text)
    with RunStore(tmp_path / "run", force=True) as store:
        assert store.header is None
        assert not store.rows
    assert (tmp_path / "run/report.html").exists()
    assert (tmp_path / "beside").is_dir()  # a header from elsewhere names no folder outside
    assert not (tmp_path / "run/records.jsonl").exists()
    assert not (tmp_path / "run/input").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_said(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    with RunStore(tmp_path / "run") as store:
        store.forget([*store.rows][:2])
        (tmp_path / "run/records.jsonl").unlink()
        (tmp_path / "run/records.jsonl").symlink_to("/dev/full")
        with pytest.raises(InputError, match=r"cannot write .*space"):
            store.add([row(CASES[2], "none")], [], {})
