"""Words that are not understood: one line, the nearest that would be, and nothing heavy imported for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import attnctl
from attnctl.arguments import picture_size
from attnctl.terminal import one_line, shorten, show_json

HEAVY = {"accelerate", "diffusers", "peft", "torch", "torchvision", "transformers"}


@pytest.mark.parametrize(
    ("words", "error", "hint"),
    [
        (["rnu"], "unknown command 'rnu': known are run", "did you mean 'run'?"),
        (["run", "--stpes", "3"], 'attnctl run has no option "--stpes"', "did you mean --steps?"),
        (["run", "--guidence=3"], 'attnctl run has no option "--guidence"', "did you mean --guidance?"),
        (["explain", "none", "--modle", "x"], 'attnctl explain has no option "--modle"', "did you mean --model?"),
        (["--vresion"], 'attnctl has no option "--vresion"', "did you mean --version?"),
        (["run", "--steps"], "--steps: expected one argument", "`attnctl run --help`"),
        (["run", "--steps", "many"], '--steps: expected a whole number, found "many"', "`attnctl run --help`"),
        (["run", "--guidance", "7,5"], '--guidance: expected a number, found "7,5"', "`attnctl run --help`"),
        (["run", "--size", "big"], "--size: expected HEIGHTxWIDTH in pixels such as 512x768", "`attnctl run --help`"),
        (["run", "--size", "0x64"], "--size: expected HEIGHTxWIDTH", "`attnctl run --help`"),
        (["run", "--method", "a,,b"], "--method: expected names separated by commas", "`attnctl run --help`"),
        (["run", "blue", "car"], 'attnctl run does not expect "blue"', "put quotes around text with spaces"),
        (["run", "--json=yes"], "--json: ignored explicit argument 'yes'", "`attnctl run --help`"),
        (["explain"], "the following arguments are required: METHOD", "`attnctl explain --help`"),
        (["run", "--st", "3"], 'attnctl run has no option "--st"', "did you mean --s"),
    ],
)
def test_a_word_that_is_not_understood(call, words: list[str], error: str, hint: str) -> None:
    done = call(*words)
    assert done.code == 2
    assert error in done.error
    assert hint in done.hint
    assert done.out == ""


def test_without_a_command_there_is_help(call) -> None:
    done = call()
    assert done.code == 0
    assert done.out.startswith("usage: attnctl")
    assert done.err == ""


@pytest.mark.parametrize("command", ["run", "methods", "inversions", "explain", "sites", "plugins", "doctor"])
def test_every_command_has_help_that_says_what_it_does(call, command: str) -> None:
    assert command in call("--help").out
    done = call(command, "--help")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"usage: attnctl {command}")


def test_version(call) -> None:
    assert call("--version").out == f"attnctl {attnctl.__version__}\n"


def test_a_size_is_height_then_width_and_one_number_is_a_square() -> None:
    assert picture_size("512x768") == (512, 768)
    assert picture_size("64X32") == (64, 32)
    assert picture_size("128") == (128, 128)


def modules_after(words: list[str], folder: Path) -> tuple[int, set[str], str]:
    """Run a command in a fresh interpreter; return its code, the modules that it imported, and its stderr."""
    code = (
        "import sys, attnctl.cli\n"
        f"code = attnctl.cli.main({words!r})\n"
        "open('modules', 'w').write('\\n'.join(sys.modules))\n"
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, cwd=folder, capture_output=True, text=True, timeout=300
    )
    return done.returncode, set((folder / "modules").read_text().splitlines()), done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["methods"], 0),
        (["methods", "fpe"], 0),
        (["plugins"], 0),
        (["inversions"], 0),
        (["methods", "no-such-method"], 2),
        (["run", "--method", "no-such-method", "--source-prompt", "a", "--prompt", "b", "--model", "m"], 2),
        (["run", "--method", "fpe", "--image", "missing.png", "--prompt", "b", "--model", "m"], 2),
        (["run", "--method", "fpe", "--set", "no=1", "--source-prompt", "a", "--prompt", "b", "--model", "m"], 2),
        (["run", "--method", "fpe", "--guidance", "0", "--source-prompt", "a", "--prompt", "b", "--model", "m"], 2),
        (["sites", "--kind", "slef", "--model", "m"], 2),
    ],
)
def test_lists_and_early_faults_import_nothing_heavy(words: list[str], expected: int, tmp_path: Path) -> None:
    """`m` passes for a model folder as far as can be told without its weights."""
    for part in ("unet", "vae", "text_encoder"):
        (tmp_path / "m" / part).mkdir(parents=True)
        (tmp_path / "m" / part / "config.json").write_text("{}")
        (tmp_path / "m" / part / "model.safetensors").write_bytes(b"")
    (tmp_path / "m" / "tokenizer").mkdir()
    (tmp_path / "m" / "tokenizer/vocab.json").write_text("{}")
    (tmp_path / "m" / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    code, modules, err = modules_after(words, tmp_path)
    assert code == expected, err
    assert "vocabulary" not in err  # the fault is the one that was meant
    assert not modules & HEAVY


def test_python_dash_m_is_the_same_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "attnctl", "--version"],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout) == (0, f"attnctl {attnctl.__version__}\n")


def test_a_reader_that_goes_away_is_no_fault(tmp_path: Path) -> None:
    """As in `attnctl methods | head -0`: no traceback, no error line."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "attnctl", "methods"],
            check=False, cwd=tmp_path, stdout=closed, stderr=subprocess.PIPE, text=True, timeout=300,
        )  # fmt: skip
    assert done.stderr == ""
    assert done.returncode == 141


def test_letters_that_the_terminal_lacks_are_written_as_escapes(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "attnctl", "methods", "Straße"],
        check=False, cwd=tmp_path, env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 2
    assert rb"unknown method 'Stra\xdfe'" in done.stderr


def test_messages_stay_on_one_line() -> None:
    assert one_line("a\nb\x1b[2Jc\u2028d\te") == "a b [2Jc d e"
    assert shorten("x" * 70) == "x" * 57 + "..."


def test_json_has_no_numbers_that_json_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    show_json({"a": [float("inf"), -float("inf"), float("nan"), 1.5]})
    assert json.loads(capsys.readouterr().out) == {"a": ["Infinity", "-Infinity", "NaN", 1.5]}
