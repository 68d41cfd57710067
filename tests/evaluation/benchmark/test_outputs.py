"""Pictures of other codes are found, measured and counted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attnctl.cli import main
from attnctl.dataset import Case
from attnctl.errors import InputError
from attnctl_evaluation.benchmark.outputs import OutputsSpec, find_outputs, read_output
from attnctl_evaluation.rows import Results


def write(path: Path, value: int = 90, size: tuple[int, int] = (32, 32)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(value)
    Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(path)
    return path


def spec(root: Path, **more) -> OutputsSpec:
    return OutputsSpec(root, "d", [Case(id=f"c{n}", prompt="p") for n in range(3)], **more)


def test_folders_are_methods_and_what_lies_between_does_not_matter(tmp_path: Path) -> None:
    for name in ("fpe/c0.png", "fpe/annotation_images/1_x/c1.jpg", "b/c0.webp", "b/other.png", "input/c0.png"):
        write(tmp_path / name)
    write(tmp_path / "fpe/deep/c0.png")
    found = find_outputs(spec(tmp_path))
    assert {m: sorted(p.relative_to(tmp_path).as_posix() for p in c.values()) for m, c in found.items()} == {
        "b": ["b/c0.webp"],
        "fpe": ["fpe/annotation_images/1_x/c1.jpg", "fpe/c0.png"],
    }
    assert [*find_outputs(spec(tmp_path, methods=["b"]))] == ["b"]


def test_pictures_right_in_the_folder_are_one_method(tmp_path: Path) -> None:
    write(tmp_path / "mine/c0.png")
    write(tmp_path / "mine/sub/other.png")
    assert {m: [*c] for m, c in find_outputs(spec(tmp_path / "mine")).items()} == {"mine": ["c0"]}


def test_a_stray_picture_does_not_shadow_the_methods_beside_it(tmp_path: Path) -> None:
    for name in ("out/c0.png", "out/p2p/c0.png", "out/fpe/c0.png", "out/fpe/.ipynb_checkpoints/c1.png"):
        write(tmp_path / name)
    notes: list[str] = []
    found = find_outputs(spec(tmp_path / "out"), notes)
    assert {m: [*c] for m, c in found.items()} == {"fpe": ["c0"], "p2p": ["c0"]}
    assert len(notes) == 1
    assert "(c0.png) belong to no method's folder" in notes[0]
    with pytest.raises(InputError, match="unknown method's folder 'nosuch': known are out, fpe, p2p"):
        find_outputs(spec(tmp_path / "out", methods=["nosuch"]))
    assert [*find_outputs(spec(tmp_path / "out", methods=["out"]))] == ["out"]  # they can be asked for by name


def test_names_that_differ_in_capitals_are_taken_and_said(tmp_path: Path) -> None:
    for name in ("m/C0.PNG", "m/c1.png", "m/C1.jpg", "m/c2.jpg", "m/x/c2.jpg", "odd/x.png"):
        write(tmp_path / name.lower()).rename((tmp_path / name).parent / Path(name).name)
    notes: list[str] = []
    (found,) = find_outputs(spec(tmp_path), notes).values()
    assert {case: path.name for case, path in found.items()} == {"c0": "C0.PNG", "c1": "c1.png", "c2": "c2.jpg"}
    assert "1 pictures are named after their case but for capitals" in notes[0]
    assert "2 cases have several pictures" in notes[1]
    assert "named after no case are left out: odd" in notes[2]


def test_what_cannot_be_found_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        find_outputs(spec(tmp_path / "x"))
    write(tmp_path / "fpe/other.png")
    with pytest.raises(InputError, match="no picture that is named after a case of d") as caught:
        find_outputs(spec(tmp_path))
    assert "METHOD/c0.png" in caught.value.hint
    write(tmp_path / "fpe/c0.png")
    with pytest.raises(InputError, match="unknown method's folder 'fpee': known are fpe"):
        find_outputs(spec(tmp_path, methods=["fpee"]))


def test_the_rightmost_square_of_a_strip_is_the_edit(tmp_path: Path) -> None:
    whole = np.asarray(Image.open(write(tmp_path / "strip.png", size=(128, 32))))
    assert np.array_equal(np.asarray(read_output(tmp_path / "strip.png", strip=True)), whole[:, -32:])
    assert read_output(tmp_path / "strip.png").size == (128, 32)
    assert read_output(write(tmp_path / "square.png"), strip=True).size == (32, 32)


@pytest.fixture
def own_data(tmp_path: Path) -> str:
    lines = ["id,image,prompt,edit_type,source_prompt"]
    for n in range(4):
        write(tmp_path / f"data/c{n}.png", n)
        lines.append(f"c{n},c{n}.png,a blue car,colour,a red car")
    (tmp_path / "data/c3.png").unlink()
    (tmp_path / "data/edits.csv").write_text("\n".join(lines))
    return f"folder:{tmp_path / 'data'}"


def test_a_folder_is_scored_counted_and_reported_like_a_run(
    own_data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "out/none/c0.png", 0)  # equal to its source
    write(tmp_path / "out/none/c1.png", 7)
    write(tmp_path / "out/b/c0.png", 8, (48, 48))
    (tmp_path / "out/b/c1.png").write_bytes(b"no picture")
    words = ["eval", "--outputs", str(tmp_path / "out"), "--dataset", own_data, "--metrics", "psnr,mse"]
    words += ["--out", str(tmp_path / "run"), "--quiet", "--json"]
    assert main(words) == 1
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert (found["rows"]["ok"], found["rows"]["failed"], found["rows"]["missing"]) == (3, 1, 4)
    assert "1 of 8 rows failed (b: 1 InputError)" in said.err
    results = Results.read(tmp_path / "run")
    rows = {row.key: row for row in results.records}
    assert results.header.baseline == "none"
    assert [m.method for m in results.header.methods] == ["", ""]
    assert rows["c0", "none", 0].scores["mse"].value == 0
    assert rows["c0", "b", 0].scores["psnr"].value < 20
    assert rows["c0", "b", 0].pictures.source == "input/c0-48x48.png"  # of another size than that of none
    assert rows["c1", "none", 0].pictures.source == "input/c1.png"
    assert rows["c2", "b", 0].failure.message == "there is no picture of this case"
    assert "there is no picture" in rows["c3", "none", 0].failure.message
    for row in results.records:
        for name in filter(None, row.pictures.model_dump().values()):
            assert (tmp_path / "run" / name).is_file()
    before = (tmp_path / "run/records.jsonl").read_bytes()
    assert main(words) == 1  # again: nothing changes
    assert (tmp_path / "run/records.jsonl").read_bytes() == before
    capsys.readouterr()
    assert main([*words, "--strip"]) == 2
    assert "made in another way: config.eval.strip: false, now true" in capsys.readouterr().err


def test_generated_sources_are_taken_from_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = "0-random-generated-000"
    write(tmp_path / "out" / f"{case}.png", 1)
    write(tmp_path / "sources" / f"{case}.png", 1)
    words = ["eval", "--outputs", str(tmp_path / "out"), "--dataset", "microbench", "--metrics", "psnr", "--quiet"]
    assert main([*words, "--out", str(tmp_path / "a")]) == 0
    assert Results.read(tmp_path / "a").records[1].scores["psnr"].reason == "no source"
    assert main([*words, "--out", str(tmp_path / "b"), "--source-folder", str(tmp_path / "sources")]) == 0
    assert Results.read(tmp_path / "b").records[1].scores["psnr"].reason == "identical pictures"
    assert "cases without their picture were counted" in capsys.readouterr().err
    assert main([*words, "--source-folder", str(tmp_path / "x")]) == 2


def test_bad_owners_of_settings_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["eval", "--outputs", str(tmp_path), "--dataset", "microbench", "--set", "psnrr.cap=3"]
    assert main(words) == 2
    assert "unknown owner of a setting 'psnrr': known are psnr" in capsys.readouterr().err
