"""Whatever ends a command, and whatever its streams are: the right exit code, one line, no traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from attnctl.cli import app, ending
from attnctl.errors import InputError

posix = pytest.mark.skipif(os.name != "posix", reason="needs a shell's redirections")
COMMANDS = ["methods", "methods --json", "--help", "tokens 'a cat'", "run --help"]
REDIRECTIONS = {
    ">&-": 2, "2>&-": 0, ">/dev/full": 2, "2>/dev/full": 0, ">&- 2>&-": 2, "<&-": 0, "<&- >&- 2>&-": 2,
    ">/dev/full 2>&1": 2,
    "2>&- <&-": 0,
}  # fmt: skip


def sh(line: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a line of shell in which `attnctl` is this checkout's."""
    start = f'attnctl() {{ "{sys.executable}" -m attnctl "$@"; }}\n'
    return subprocess.run(
        ["bash", "-c", start + line], capture_output=True, timeout=120, env={**os.environ, **environment}, check=False
    )


@posix
@pytest.mark.parametrize("words", COMMANDS)
def test_streams_that_are_closed_or_full(words: str) -> None:
    """Losing the result is a failure that the user can mend; losing messages is none."""
    line = "\n".join(f"attnctl {words} {how}; echo rc=$? >&9" for how in REDIRECTIONS)
    done = sh(f"exec 9>&1\n{line}")
    found = [int(word[3:]) for word in done.stdout.decode().split() if word.startswith("rc=")]
    assert dict(zip(REDIRECTIONS, found, strict=True)) == REDIRECTIONS
    assert b"internal" not in done.stderr
    assert b"Traceback" not in done.stderr


@posix
def test_an_error_keeps_its_code_on_closed_streams(tmp_path: Path) -> None:
    done = sh("for how in '2>&-' '>&-' '2>/dev/full'; do eval attnctl nonsense $how; echo $?; done")
    assert done.stdout.split() == [b"2"] * 3
    assert done.stderr.count(b"error: ") == 1


@posix
def test_the_first_file_does_not_become_stdout(tmp_path: Path) -> None:
    """Where the number 1 is free, the next file that is opened gets it, and takes what is printed."""
    lines = [
        "import os",
        "os.open('kept.txt', os.O_RDWR | os.O_CREAT)",
        "print('!' * 9000)",
        "from attnctl.hookspecs import hookimpl",
        "@hookimpl",
        "def attnctl_methods():",
        "    return []",
    ]
    (tmp_path / "plugin.py").write_text("\n".join(lines))
    sh(f"cd {tmp_path}; attnctl run --plugin plugin.py --method none --steps 1 >&- 2>&-")
    assert (tmp_path / "kept.txt").read_bytes() == b""


@posix
def test_a_reader_that_goes_away(tmp_path: Path) -> None:
    done = sh("attnctl methods --json | true; echo ${PIPESTATUS[0]}")
    assert done.stdout.split() == [b"141"]
    assert done.stderr == b""


@posix
@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C"},
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "C", "PYTHONIOENCODING": "ascii:strict", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_any_letters_under_any_encoding(environment: dict[str, str], tmp_path: Path) -> None:
    prompt = "ein Fl\u00e4schchen und eine \u732b"
    line = f"cd {tmp_path}; attnctl tokens '{prompt}' --json"
    line += f" && attnctl explain none --prompt '{prompt}' --steps 2"
    done = sh(line, **environment)
    assert done.returncode == 0, done.stderr.decode()
    out = done.stdout.decode("utf-8")
    assert prompt in out or prompt.encode("ascii", "backslashreplace").decode() in out


@posix
@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("SIGHUP", 129), ("SIGTERM", 143), ("SIGINT", 130)])
def test_signals_end_a_run_alike(name: str, code: int, tmp_path: Path) -> None:
    words = ["run", "--method", "none", "--steps", "900", "--out", "out"]
    run = subprocess.Popen(
        [sys.executable, "-m", "attnctl", *words],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(8)
    run.send_signal(getattr(signal, name))
    _, said = run.communicate(timeout=60)
    assert run.returncode == code, said
    assert said.splitlines()[-1].startswith("interrupted: ")
    assert not list(tmp_path.iterdir())


@posix
def test_a_hangup_that_is_to_be_ignored_is_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ending.hearing_signals([]):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


REFUSED = "the operating system refused something"


class MuteError(Exception):
    """Cannot even say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no")


class Odd(BaseException):
    """No `Exception`, as strangers' frameworks have some."""


@pytest.mark.parametrize(
    ("thrown", "code", "said"),
    [
        (InputError("x\ny", hint="z"), 2, "error: x y\nhint: z\n"),
        (OSError(28, "No space left on device", "/a/b"), 2, f"error: {REFUSED} for '/a/b': no space left on device\n"),
        (PermissionError(13, "Permission denied"), 2, f"error: {REFUSED}: permission denied\n"),
        (MemoryError(), 2, "error: there is not enough memory\n"),
        (SystemExit(0), 1, "error: internal: something called sys.exit(0)\n"),
        (OSError("no number"), 1, "error: internal: OSError: no number\n"),
        (MuteError(), 1, "error: internal: MuteError: (it cannot say what)\n"),
        (Odd("q"), 1, "error: internal: Odd: q\n"),
        (RecursionError("deep"), 1, "error: internal: RecursionError: deep\n"),
        (KeyboardInterrupt(), 130, "interrupted: before anything was done\n"),
        (BrokenPipeError(32, "Broken pipe"), 141, ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)  # fmt: skip
def test_whatever_is_thrown(
    thrown: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(words: list[str]) -> int:
        raise thrown

    dropped: list[int] = []
    monkeypatch.setattr(app, "_run", run)
    monkeypatch.setattr(ending, "drop_stdout", lambda: dropped.append(1))
    assert app.main(["methods"]) == code
    shown = capsys.readouterr()
    assert shown.err.startswith(said)
    assert not shown.out
    assert len(shown.err.splitlines()) <= 2


def test_streams_of_others_are_left_in_place(call: Callable[..., object]) -> None:
    before = sys.stdout, sys.stderr
    call("methods")
    assert (sys.stdout, sys.stderr) == before
