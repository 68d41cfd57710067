"""`attnctl compare`, from the words to the folder and the exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from attnctl.cli import main
from attnctl_evaluation.benchmark.progress import CompareProgress, duration
from attnctl_evaluation.rows import Results

WORDS = ("compare", "--dataset", "microbench/tiny", "--methods", "none,fpe")


@pytest.fixture
def quick(tiny_model_folder: Path) -> list[str]:
    """Options that make a comparison quick."""
    size = ["--model", str(tiny_model_folder), "--size", "64", "--steps", "2", "--threads", "1"]
    return [*size, "--metrics", "psnr,psnr.truth,mse.outside", "--quiet"]


def bad(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 2
    said = capsys.readouterr()
    assert not said.out
    assert "Traceback" not in said.err
    lines = said.err.splitlines()
    assert len(lines) == 2, said.err
    assert lines[1].startswith("hint: ")
    return lines[0].removeprefix("error: ")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("compare",), "the command line names no data set"),
        (("compare", "--dataset", "microbench"), "the command line names no methods"),
        (
            ("compare", "--dataset", "microbanch", "--methods", "none"),
            "unknown dataset 'microbanch': known are microben",
        ),
        ((*WORDS[:4], "none,fpe,fpe"), "the method fpe is named twice"),
        ((*WORDS[:4], "nope"), "unknown method 'nope': known are none"),
        ((*WORDS[:4], "source"), "a method cannot be labelled 'source'"),
        ((*WORDS, "--seeds", "0"), "--seeds: expected 1 to 10000 seeds"),
        ((*WORDS, "--seeds", "a"), "--seeds: expected a number of seeds"),
        ((*WORDS, "--seeds", "1,1"), "the command line: seeds: a seed is named twice"),
        ((*WORDS, "--set", "fpe.self_replac=1"), "unknown setting of fpe 'self_replac': known are self_replace"),
        ((*WORDS, "--set", "selfreplace=1"), "unknown setting of none, fpe 'selfreplace': known are self_replace"),
        ((*WORDS, "--set", "p2p.mode=auto"), "unknown owner of a setting 'p2p'"),
        ((*WORDS, "--set", "direct.offsets=1"), "--set direct: the inversion direct is no part of this"),
        ((*WORDS, "--set", "proximal.quantile=1"), "--set proximal: the modifier proximal is no part of this"),
        ((*WORDS, "--set", "lpips.nett=vgg"), "unknown setting of lpips 'nett': known are net"),
        ((*WORDS, "--metrics", "psnr.outsid"), "unknown variant of psnr 'outsid': known are outside"),
        ((*WORDS, "--preset", "fpe.papr"), "unknown preset of fpe 'papr': known are paper"),
        ((*WORDS, "--preset", "papr"), "unknown preset of these methods 'papr': known are paper"),
        ((*WORDS, "--modifier", "proximel"), "unknown modifier 'proximel': known are proximal"),
        ((*WORDS, "--baseline", "p2p"), "the command line: the baseline 'p2p' is none of the methods none, fpe"),
        ((*WORDS, "--edit-type", "colour"), "unknown edit type 'colour': known are change-colour"),
        ((*WORDS, "--shard", "3/2"), "--shard takes i/n"),
        ((*WORDS, "--limit", "0"), "the command line: limit: input should be greater than or equal to 1"),
        ((*WORDS, "--workers", "0"), "--workers must be at least 1, found 0"),
        (("compare", "no-such.toml"), "cannot read 'no-such.toml'"),
    ],
)
def test_bad_input_is_one_line_and_a_hint(
    words: tuple[str, ...],
    why: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert bad(capsys, *words).startswith(why)
    assert not [*tmp_path.iterdir()]


def test_a_file_and_options_say_the_same(
    quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the run folder's own file, and the folder itself, continue it; the table says who won."""
    monkeypatch.chdir(tmp_path)
    more = ["--limit", "2", "--seeds", "0,3", "--set", "fpe.self_replace=0.5", "--set", "microbench.sources=rendered"]
    assert main([*WORDS, *quick, *more, "--out", "a"]) == 0
    said = capsys.readouterr()
    assert "psnr.truth ↑" in said.out
    assert "Share of cases won against none" in said.out
    assert "written to a" in said.out
    results = Results.read(tmp_path / "a")
    assert [m.label for m in results.header.methods] == ["none", "fpe"]
    assert results.header.methods[1].settings["self_replace"] == 0.5
    assert len(results.records) == 8
    assert all(row.status == "ok" and row.real for row in results.records)
    assert main(["compare", "a/compare.toml", "--quiet", "--out", "b"]) == 0
    for name in ("records.jsonl", "run.json", "compare.toml", "cases.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    capsys.readouterr()
    rows = (tmp_path / "b/records.jsonl").read_bytes()
    (tmp_path / "b/records.jsonl").write_bytes(rows[:-9])
    assert main(["compare", "b", "--quiet", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == {"wanted": 8, "new": 1, "ok": 8, "failed": 0, "missing": 0}
    assert (tmp_path / "b/records.jsonl").read_bytes() == rows
    assert found["methods"]["fpe"]["columns"]["psnr"]["count"] == 8 // 2
    assert bad(capsys, "compare", "b", "--steps", "3").startswith("the run in 'b' was asked for something else: steps")


def test_rows_that_fail_make_the_exit_code_1(
    quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", "--dataset", "microbench/tiny", "--methods", "none,sdedit", "--limit", "1", *quick]
    words += ["--set", "microbench.sources=generated", "--out", str(tmp_path / "run")]
    assert main(words) == 1
    said = capsys.readouterr()
    assert "warning: 1 of 2 rows failed (sdedit: 1 InputError)" in said.err
    assert "warning: first: 0-random-generated-000, sdedit, seed 0: sdedit edits a given picture" in said.err
    assert "Traceback" not in said.err


def test_pictures_of_a_run_are_scored_the_same_again(quick: list[str], tmp_path: Path) -> None:
    """Metrics see what is on the disk, so `attnctl eval` finds the numbers of `attnctl compare`."""
    run, again = tmp_path / "run", tmp_path / "again"
    assert main([*WORDS, *quick, "--limit", "2", "--out", str(run)]) == 0
    words = ["eval", "--outputs", str(run), "--dataset", "microbench/tiny", "--source-folder", str(run / "input")]
    words += ["--metrics", "psnr,psnr.truth,mse.outside", "--quiet", "--out", str(again)]
    assert main(words) == 0
    first = {r.pictures.edit: r for r in Results.read(run).records}
    found = {r.pictures.edit.replace("ddim-", "ddim+"): r for r in Results.read(again).records if r.status == "ok"}
    assert len(found) == len(first) == 4
    for name, row in found.items():
        assert row.scores == first[name].scores
        assert row.cards == first[name].cards


def test_ray_that_is_not_installed_is_said(
    quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    said = bad(capsys, *WORDS, *quick, "--engine", "ray", "--out", str(tmp_path / "run"))
    assert said == "--engine ray needs the package ray, which is not installed"


@pytest.mark.slow
def test_two_processes_give_the_bytes_of_one(quick: list[str], tmp_path: Path) -> None:
    words = [*WORDS, *quick, "--limit", "4"]
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    assert main([*words, "--out", str(tmp_path / "two"), "--workers", "2"]) == 0
    names = {p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file()}
    assert names == {p.relative_to(tmp_path / "two") for p in (tmp_path / "two").rglob("*") if p.is_file()}
    for name in names - {Path("timings.jsonl")}:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


@pytest.mark.slow
def test_a_killed_command_continues_to_the_same_bytes(quick: list[str], tmp_path: Path) -> None:
    """The command itself, killed when its first rows are there, and once before."""
    words = [*WORDS, *quick, "--limit", "3", "--out"]
    command = [sys.executable, "-m", "attnctl", *words, str(tmp_path / "killed")]
    for rows in (0, 2, 4):
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while running.poll() is None:
            try:
                there = (tmp_path / "killed/records.jsonl").read_bytes().count(b"\n")
            except OSError:
                there = 0
            if there >= rows and (tmp_path / "killed").is_dir():
                running.kill()
                break
        running.wait()
    assert main([*words, str(tmp_path / "killed")]) == 0
    assert main([*words, str(tmp_path / "whole")]) == 0
    for path in (p for p in (tmp_path / "whole").rglob("*") if p.is_file() and p.name != "timings.jsonl"):
        assert (tmp_path / "killed" / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes(), path


def test_an_estimate_is_made_from_this_processs_own_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first job, which is slow, and rows of an earlier process do not count."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    progress = CompareProgress(100, 40, quiet=True)
    assert progress.state() == "40 of 100 rows"
    now[0] = 500.0
    progress.advance(4, 0, "a")
    assert progress.state() == "44 of 100 rows"
    now[0] = 504.0
    progress.advance(4, 1, "b")
    assert progress.state() == "48 of 100 rows, 60.0 a minute, about 52 s left, 1 failed"


def test_without_a_terminal_a_plain_line_comes_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with CompareProgress(10, 0) as progress:
        for _ in range(10):
            now[0] += 25
            progress.advance(1, 0, "a")
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(",")[0] for line in said] == [f"note: {n} of 10 rows" for n in (3, 6, 9)]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (89, "89 s"), (95, "2 min"), (5000, "83 min"), (9000, "2 h 30 min")]
)
def test_spans_of_time_are_told_shortly(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_command_imports_nothing_heavy_before_its_input_is_checked(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom attnctl.cli import main\n"
        f"main({[*WORDS, '--set', 'fpe.self_replace=9']!r})\n"
        "print(sorted({'torch', 'diffusers', 'open_clip', 'lpips'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert "self_replace=9 is not allowed" in done.stderr
    assert done.stdout == "[]\n"
