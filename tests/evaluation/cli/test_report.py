"""`attnctl report`, from the words to the exit code."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from attnctl.cli import main

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run folder."""
    spec = importlib.util.spec_from_file_location("synthetic_run", ROOT / "tools" / "synthetic_run.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: Path = module.make_run(tmp_path_factory.mktemp("cli") / "run", cases=8, size=16, columns=("psnr.outside",))
    return made


def test_a_report_is_written_where_it_is_asked_for(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(run), "--title", "My title"]) == 0
    assert capsys.readouterr().out == "report.html\n"
    assert "<title>My title</title>" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert main(["report", str(run), "-o", "table.tex"]) == 0
    assert r"\begin{table}" in (tmp_path / "table.tex").read_text(encoding="utf-8")
    assert main(["report", str(run), "--format", "csv"]) == 0
    assert (tmp_path / "report.csv").read_text(encoding="utf-8").startswith("case,seed,method")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.csv", "report.html", "table.tex"]


def test_pictures_go_beside_the_file_when_asked(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run), "-o", str(tmp_path / "a.html"), "--pictures", "folder"]) == 0
    assert list((tmp_path / "a_files").glob("*.png"))
    assert main(["report", str(run), "-o", str(tmp_path / "a.html"), "--embed-limit", "1"]) == 0
    assert not (tmp_path / "a_files").exists()
    capsys.readouterr()


def test_a_report_can_go_to_a_pipe(run: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["report", str(run), "-o", "-", "--format", "md"]) == 0
    assert capfdbinary.readouterr().out.startswith(b"# Synthetic comparison")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["report"], "RUN"),
        (["report", "{run}", "-o", "report.pdf"], "does not say which format"),
        (["report", "{run}", "-o", "{run}"], "does not say which format"),
        (["report", "{run}", "-o", "gone/report.html"], "does not exist"),
        (["report", "{run}", "--format", "pdf"], "known are"),
        (["report", "nothing-here"], "holds no run"),
        (["report", "{run}", "{run}"], "named twice"),
        (["report", "{run}", "--thumbnail", "2"], "16 to 4096 pixels"),
        (["report", "{run}", "--embed-limit", "much"], "expected a number"),
    ],
)
def test_bad_words_are_one_error_and_one_hint(
    run: Path,
    words: list[str],
    why: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([word.format(run=run) for word in words]) == 2
    captured = capsys.readouterr()
    assert why in captured.err
    assert captured.out == ""
    assert [line.partition(":")[0] for line in captured.err.splitlines()] in (["error", "hint"], ["error"])
    assert list(tmp_path.iterdir()) == []


def test_pictures_that_cannot_be_shown_are_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    damaged = tmp_path / "damaged"
    shutil.copytree(run, damaged)
    for picture in sorted((damaged / "input").iterdir())[:5]:
        picture.unlink()
    assert main(["report", str(damaged), "-o", str(tmp_path / "a.html")]) == 0
    err = capsys.readouterr().err
    assert err.count("warning: a picture cannot be shown") == 3
    assert "so do 2 others" in err


def test_neither_help_nor_a_report_loads_torch(run: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from attnctl.cli import main; "
        f"assert main(['report', {str(run)!r}, '-o', {str(tmp_path / 'a.html')!r}]) == 0; "
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=300)
