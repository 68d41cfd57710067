"""Bars on a terminal, silence elsewhere, and where a run is in words."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stderr

import pytest

from attnctl.cli.progress import RunProgress, inversion_line
from attnctl.events import Inverted, Progress, Warned
from attnctl.result import InversionReport
from attnctl.terminal import say


class Terminal(io.StringIO):
    """A stream that says it is a terminal, and keeps what is written to it."""

    def isatty(self) -> bool:
        return True

    @property
    def text(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.getvalue())


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal for `redirect_stderr`: pytest sets sys.stderr anew after fixtures."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Terminal()


def events() -> list[Progress | Inverted | Warned]:
    report = InversionReport("source", "ddim", "a cat", 12.34, 30.0)
    return [
        Progress("inversion", 1, 1),
        Inverted(report),
        Warned("careful"),
        *(Progress("edit", n, 3) for n in (1, 2, 3)),
    ]


def test_bars_for_every_stage_and_messages_between_them(terminal: Terminal) -> None:
    with redirect_stderr(terminal), RunProgress() as progress:
        progress.doing("loading the model")
        for event in events():
            progress(event)
    assert "loading the model" in terminal.text
    assert re.search(r"inverting the picture .*1/1", terminal.text)
    assert re.search(r"denoising .*3/3", terminal.text)
    assert "note: inversion ddim under 'a cat' reconstructs the picture at 12.3 dB PSNR" in terminal.text
    assert "warning: careful" in terminal.text
    assert terminal.text.index("note: inversion") < terminal.text.index("denoising")


def test_silence_elsewhere_but_for_messages(capsys: pytest.CaptureFixture[str]) -> None:
    with RunProgress() as progress:
        progress.doing("loading the model")
        for event in events():
            progress(event)
    assert [line.partition(":")[0] for line in capsys.readouterr().err.splitlines()] == ["note", "warning"]


def test_where_a_run_is() -> None:
    progress = RunProgress()
    assert progress.where == "starting"
    progress.doing("loading the model")
    assert progress.where == "loading the model"
    progress(Progress("edit", 3, 30))
    assert progress.where == "denoising, 3 of 30 done"


def test_an_inversion_in_one_line() -> None:
    line = inversion_line(InversionReport("source", "ddim", "", None, None))
    assert line == "inversion ddim without a prompt; its reconstruction was not measured"
    line = inversion_line(InversionReport("source", "ddim", "a cat", 25.0, 31.26))
    assert line.endswith("reconstructs the picture at 25.0 dB PSNR (the autoencoder alone: 31.3 dB)")


def test_colours_are_for_terminals_that_want_them(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    with redirect_stderr(terminal):
        say("error", "red")
    assert terminal.getvalue() == "\x1b[1;31merror:\x1b[0m red\n"
    monkeypatch.setenv("NO_COLOR", "1")
    with redirect_stderr(terminal):
        say("error", "plain")
    assert terminal.getvalue().endswith("error: plain\n")
    assert "\x1b" not in terminal.getvalue().splitlines()[-1]
