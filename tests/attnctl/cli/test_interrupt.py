"""Ctrl-C: one line that says where it was, exit 130, and what was computed is kept."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from attnctl.terminal import one_line

PAIR = ["--source-prompt", "a red car", "--prompt", "a blue car"]
TROUBLE = str(Path(__file__).with_name("plugin_for_tests.py"))
LISTEN = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"


@pytest.fixture(autouse=True)
def _listen() -> Iterator[None]:
    """Hear Ctrl-C, also where the tests run in the background: shells have background jobs ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_in_the_middle_of_a_drawn_edit_nothing_is_left(run, tmp_path: Path) -> None:
    done = run(*PAIR, "--plugin", TROUBLE, "--set", "step=2", method="interrupt")
    assert done.code == 130
    assert done.err == "interrupted: while denoising, 2 of 4 done; nothing was written\n"
    assert done.out == ""
    assert list(tmp_path.iterdir()) == []


def test_after_an_inversion_its_reconstruction_is_kept(run, photo: Path, tmp_path: Path) -> None:
    words = ["--image", photo, "--prompt", "a blue car", "--steps", "3", "--out", "kept"]
    done = run(*words, "--plugin", TROUBLE, method="interrupt")
    assert done.code == 130
    line = done.err.splitlines()[-1]
    assert line == "interrupted: while denoising, 1 of 3 done; reconstruction.png kept in kept"
    assert [p.name for p in (tmp_path / "kept").iterdir()] == ["reconstruction.png"]


def test_an_earlier_run_in_that_folder_is_left_as_it_was(run, tmp_path: Path) -> None:
    assert run(*PAIR, "--steps", "1", "--out", "o").code == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "o").iterdir()}
    done = run(*PAIR, "--plugin", TROUBLE, "--out", "o", "--force", method="interrupt")
    assert done.code == 130
    assert {p.name: p.read_bytes() for p in (tmp_path / "o").iterdir()} == before


@pytest.mark.skipif(os.name != "posix", reason="sends signals to a process")
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_real_signal_at_any_time(model: str, tmp_path: Path, sent: signal.Signals, code: int) -> None:
    """Ctrl-C, or a batch system asking to end, while it loads or denoises: never a traceback, nor an empty folder."""
    words = ["run", "--method", "fpe", "--model", model, *PAIR, "--steps", "900", "--out", "o"]
    command = [
        sys.executable,
        "-c",
        LISTEN + "import sys, attnctl.cli; sys.exit(attnctl.cli.main(sys.argv[1:]))",
        *words,
    ]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + 300
            while not (tmp_path / "o").exists():  # made before the model is loaded
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            time.sleep(0.5)
            process.send_signal(sent)
            out, err = process.communicate(timeout=300)
        finally:
            process.kill()
    assert process.returncode == code, err
    assert out == ""
    assert re.fullmatch(r"interrupted: while [a-z, 0-9]+; nothing was written", one_line(err)), err
    assert list(tmp_path.iterdir()) == []
