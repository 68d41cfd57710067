"""Parts become a whole of the same bytes, or are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from attnctl.cli import main
from attnctl.errors import InputError
from attnctl_evaluation.benchmark.compare import Options, compare
from attnctl_evaluation.benchmark.merge import merge
from attnctl_evaluation.benchmark.plan import Shard
from attnctl_evaluation.benchmark.resolve import resolve


@pytest.fixture
def parts(light, registry, tmp_path: Path) -> dict[str, Path]:
    """A whole run, and its two shards."""
    spec = resolve(light.light_spec(limit=5, seeds=[0, 1]), registry)
    found = {}
    for name, shard in (("whole", None), ("a", Shard(1, 2)), ("b", Shard(2, 2))):
        engine = light.LightEngine(light.LightBench(spec))
        compare(spec, registry, Options(tmp_path / name, shard=shard, quiet=True), engine)
        found[name] = tmp_path / name
    return found


def test_shards_become_the_undivided_run_in_any_order(parts, content, tmp_path: Path) -> None:
    assert merge([parts["b"], parts["a"]], tmp_path / "merged").missing == 0
    assert content(tmp_path / "merged") == content(parts["whole"])


def test_parts_may_overlap_and_lack_rows(parts, content, tmp_path: Path) -> None:
    rows = parts["a"] / "records.jsonl"
    rows.write_bytes(b"".join(rows.read_bytes().splitlines(keepends=True)[:3]))
    done = merge([parts["a"], parts["a"], parts["b"]], tmp_path / "merged")
    assert done.missing == 9
    merge([tmp_path / "merged", parts["whole"]], tmp_path / "full")
    assert content(tmp_path / "full") == content(parts["whole"])


def test_the_command_says_what_it_did(parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["merge", str(parts["a"]), "-o", str(tmp_path / "out"), "--json"]
    assert main(words) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == {"folder": str(tmp_path / "out"), "rows": 12, "missing": 8}
    assert "warning: 8 rows are in no part; `attnctl compare" in said.err
    assert main(words) == 0  # the same again is no fault
    assert main(["merge", str(tmp_path), "-o", str(tmp_path / "x")]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_parts_of_different_comparisons_are_refused(parts, tmp_path: Path) -> None:
    header = parts["b"] / "run.json"
    data = json.loads(header.read_text())
    data["settings"]["steps"] = 9
    header.write_text(json.dumps(data))
    with pytest.raises(InputError, match=r"are not parts of one comparison: settings\.steps: 1, now 9$"):
        merge([parts["a"], parts["b"]], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_parts_that_contradict_each_other_are_refused(parts, tmp_path: Path) -> None:
    shutil.copytree(parts["a"], tmp_path / "c")
    rows = tmp_path / "c/records.jsonl"
    lines = rows.read_text().splitlines(keepends=True)
    rows.write_text(lines[0].replace('"shade":{"value":0', '"shade":{"value":1') + "".join(lines[1:]))
    case = json.loads(lines[0])["case"]
    with pytest.raises(InputError, match=rf"say different things of {case}, none, seed 0$"):
        merge([parts["a"], tmp_path / "c"], tmp_path / "merged")
    rows.write_text("".join(lines))
    picture = tmp_path / "c" / json.loads(lines[0])["pictures"]["edit"]
    picture.write_bytes(picture.read_bytes()[:-1])
    with pytest.raises(InputError, match="say different things"):
        merge([parts["a"], tmp_path / "c"], tmp_path / "merged")


def test_a_part_without_its_picture_is_refused(parts, tmp_path: Path) -> None:
    row = json.loads((parts["a"] / "records.jsonl").read_text().splitlines()[0])
    (parts["a"] / row["pictures"]["edit"]).unlink()
    with pytest.raises(InputError, match="cannot read .*no such file"):  # noqa: RUF043
        merge([parts["a"], parts["b"]], tmp_path / "merged")


def test_a_part_cannot_reach_outside_of_itself(parts, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"x")
    rows = parts["a"] / "records.jsonl"
    name = json.loads(rows.read_text().splitlines()[0])["pictures"]["edit"]
    rows.write_text(rows.read_text().replace(name, "../secret.png"))
    with pytest.raises(InputError, match="leads out of the folder"):
        merge([parts["a"], parts["b"]], tmp_path / "merged")


def test_a_part_cannot_be_the_whole(parts) -> None:
    with pytest.raises(InputError, match="is one of the parts"):
        merge([parts["a"], parts["b"]], parts["a"])
