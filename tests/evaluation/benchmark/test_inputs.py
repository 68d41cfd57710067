"""A finished folder is not answered from when what it measured is not what lies there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attnctl.cli import main
from attnctl.dataset import Case
from attnctl.errors import InputError
from attnctl.runs.manifest import model_files
from attnctl_evaluation.benchmark.compare import Options, compare
from attnctl_evaluation.benchmark.inputs import check_unchanged, inputs_of
from attnctl_evaluation.benchmark.resolve import resolve
from attnctl_evaluation.rows import Results, Row


def write(path: Path, value: int, side: int = 32) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(value)
    Image.fromarray(rng.integers(0, 255, (side, side, 3), dtype=np.uint8)).save(path)
    return path


class Scored:
    """A data set of two cases with masks and exact edits, two methods, and an `eval` of them."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root, self.capsys = root, capsys
        for n in (0, 1):
            write(root / f"data/c{n}.png", n)
            write(root / f"data/t{n}.png", 10 + n)
            self.mask(n, 16)
            for m in ("p2p", "fpe"):
                write(root / f"out/{m}/c{n}.png", n)  # equal to its source
        self.table("a blue car")

    def mask(self, n: int, edge: int) -> None:
        levels = np.zeros((32, 32), np.uint8)
        levels[:edge] = 255
        Image.fromarray(levels).save(self.root / f"data/m{n}.png")

    def table(self, prompt: str) -> None:
        rows = [f"c{n},c{n}.png,m{n}.png,t{n}.png,{prompt}" for n in (0, 1)]
        (self.root / "data/edits.csv").write_text("\n".join(["id,image,mask,truth,prompt", *rows]))

    def run(self) -> tuple[dict[tuple[str, str, int], Row], str]:
        words = ["eval", "--outputs", str(self.root / "out"), "--dataset", f"folder:{self.root / 'data'}", "--metrics"]
        assert main([*words, "psnr,mse", "--out", str(self.root / "run"), "--quiet", "--json"]) in (0, 1)
        said = self.capsys.readouterr()
        json.loads(said.out)
        return {row.key: row for row in Results.read(self.root / "run").records}, said.err

    def times(self) -> dict[tuple[str, str, int], float | None]:
        return {key: t.score_seconds for key, t in Results.read(self.root / "run").timings.items()}


@pytest.fixture
def scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Scored:
    return Scored(tmp_path, capsys)


def test_rows_hold_the_digests_of_what_was_measured(scored: Scored) -> None:
    rows, _ = scored.run()
    assert {key: sorted(row.inputs) for key, row in rows.items()} == {
        (f"c{n}", m, 0): ["case", "edit", "mask", "source", "truth"] for n in (0, 1) for m in ("p2p", "fpe")
    }
    before = scored.times()
    again, said = scored.run()
    assert (again, said) == (rows, "")
    assert scored.times() == before  # nothing was measured again


def test_a_method_run_anew_is_measured_anew_and_the_rest_is_not(scored: Scored) -> None:
    rows, _ = scored.run()
    before = scored.times()
    write(scored.root / "out/p2p/c0.png", 77)
    again, said = scored.run()
    assert rows["c0", "p2p", 0].scores["mse"].value == 0
    assert again["c0", "p2p", 0].scores["mse"].value > 0.01
    assert "1 of 4 rows do not fit" in said
    assert "changed: edit (1); first: c0, p2p" in said
    after = scored.times()
    assert {key for key in before if before[key] != after[key]} == {("c0", "p2p", 0)}
    kept = np.asarray(Image.open(scored.root / "run/p2p/c0.png"))
    assert np.array_equal(kept, np.asarray(Image.open(scored.root / "out/p2p/c0.png")))


@pytest.mark.parametrize("role", ["source", "mask", "truth", "case"])
def test_another_source_mask_exact_edit_or_prompt_is_noticed(scored: Scored, role: str) -> None:
    old, _ = scored.run()
    digest = Results.read(scored.root / "run").header.dataset.fingerprint
    match role:
        case "source":
            write(scored.root / "data/c1.png", 55)
        case "mask":
            scored.mask(1, 8)
        case "truth":
            write(scored.root / "data/t1.png", 56)
        case _:
            scored.table("a green car")
    new, said = scored.run()
    count = 4 if role == "case" else 2  # a prompt is that of both cases, a file that of one
    assert f"{count} of 4 rows do not fit what is there now and are measured anew; changed: {role} ({count})" in said
    assert Results.read(scored.root / "run").header.dataset.fingerprint != digest
    for m in ("p2p", "fpe"):
        assert new["c1", m, 0].inputs[role] != old["c1", m, 0].inputs[role]
    if role == "source":
        assert new["c1", "p2p", 0].scores["mse"].value > 0.01
    if role == "case":
        assert new["c1", "p2p", 0].prompt == "a green car"
    assert scored.run()[1] == ""


def test_pictures_and_methods_that_come_later_are_picked_up(scored: Scored) -> None:
    late = scored.root / "out/p2p/c1.png"
    data = late.read_bytes()
    late.unlink()
    rows, _ = scored.run()
    assert rows["c1", "p2p", 0].status == "missing"
    late.write_bytes(data)
    write(scored.root / "out/new/c0.png", 3)
    (scored.root / "out/fpe/c0.png").unlink()
    again, said = scored.run()
    assert again["c1", "p2p", 0].status == "ok"
    assert again["c0", "new", 0].status == "ok"
    assert again["c0", "fpe", 0].status == "missing"
    assert "2 of 4 rows" in said
    assert [m.label for m in Results.read(scored.root / "run").header.methods] == ["fpe", "new", "p2p"]


def test_a_source_that_comes_later_and_a_method_that_goes(scored: Scored) -> None:
    source = scored.root / "data/c0.png"
    data = source.read_bytes()
    source.unlink()
    rows, _ = scored.run()
    assert {row.status for key, row in rows.items() if key[0] == "c0"} == {"missing"}
    source.write_bytes(data)
    for n in (0, 1):
        (scored.root / f"out/fpe/c{n}.png").unlink()
    again, said = scored.run()
    assert {key: row.status for key, row in again.items()} == {("c0", "p2p", 0): "ok", ("c1", "p2p", 0): "ok"}
    assert "gone (2)" in said


def test_rows_of_before_without_digests_are_measured_anew(scored: Scored) -> None:
    rows, _ = scored.run()
    file = scored.root / "run/records.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps({k: v for k, v in line.items() if k != "inputs"}) + "\n" for line in lines))
    again, said = scored.run()
    assert again == rows
    assert "not recorded (4)" in said


def test_loaders_that_say_no_digest_are_told_apart_by_what_they_give() -> None:
    def case(value: int) -> Case:
        return Case(id="a", prompt="p", picture=lambda _: Image.new("RGB", (8, 8), (value, 0, 0)))

    assert inputs_of(case(1), None) == inputs_of(case(1), None)
    assert inputs_of(case(1), None)["source"] != inputs_of(case(2), None)["source"]


def test_a_finished_comparison_notices_another_picture_in_its_data_set(light, registry, tmp_path: Path) -> None:
    write(tmp_path / "data/a.png", 1)
    (tmp_path / "data/edits.csv").write_text("image,source_prompt,prompt\na.png,a red car,a blue car\n")
    spec = resolve(light.light_spec(dataset=f"folder:{tmp_path / 'data'}", limit=1), registry)

    def go() -> int:
        engine = light.LightEngine(light.LightBench(spec))
        return compare(spec, registry, Options(tmp_path / "run", quiet=True), engine).new

    assert go() > 0
    assert go() == 0
    write(tmp_path / "data/a.png", 2)
    with pytest.raises(InputError, match="changed since are the data set folder:"):
        go()


def test_a_finished_comparison_notices_an_overwritten_model(light, registry, tmp_path: Path) -> None:
    model = tmp_path / "model"
    (model / "unet").mkdir(parents=True)
    (model / "model_index.json").write_text("{}")
    (model / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"old weights")
    spec = resolve(light.light_spec(limit=1), registry)
    done = compare(spec, registry, Options(tmp_path / "run", quiet=True), light.LightEngine(light.LightBench(spec)))
    header = done.results.header.model_copy(update={"model": {"files": model_files(model)}})
    spec = spec.model_copy(update={"model": str(model)})
    dataset = registry.make_dataset(spec.dataset, spec.dataset_settings)
    cases = dataset.cases()[:1]
    check_unchanged(tmp_path, spec, dataset, cases, header)
    (model / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"new weights, of another length")
    with pytest.raises(InputError, match=r"changed since are the model .*unet/diffusion_pytorch_model\.safetensors"):
        check_unchanged(tmp_path, spec, dataset, cases, header)
