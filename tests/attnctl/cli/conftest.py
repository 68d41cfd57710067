"""The command line as users call it: `main(argv)`, in an empty folder, with a tiny real model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PAIR = ["--source-prompt", "a red car on a road", "--prompt", "a blue car on a road"]


@dataclass(frozen=True)
class Done:
    """What one command did."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The error line; fails unless there is exactly one, with at most one hint after it, and no traceback."""
        lines = [line for line in self.err.splitlines() if not line.startswith(("note:", "warning:"))]
        assert self.code != 0, self.out
        assert lines, "no error on stderr"
        assert lines[0].startswith("error: "), self.err
        assert len(lines) <= 2, self.err
        assert all(line.startswith("hint: ") for line in lines[1:]), self.err
        return lines[0]

    @property
    def hint(self) -> str:
        return next(line for line in self.err.splitlines() if line.startswith("hint: "))

    @property
    def data(self):
        return json.loads(self.out)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model with the topology of Stable Diffusion 1.x, saved as people save theirs: 64x64 pictures."""
    from attnctl.testing.tiny import tiny_sd

    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_sd(folder)
    return str(folder)


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run `attnctl WORDS` in this process, in an empty folder."""
    from attnctl.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ATTNCTL_DEBUG", raising=False)

    def run(*words: object) -> Done:
        capsys.readouterr()
        code = main([str(word) for word in words])
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture
def run(call: Callable[..., Done], model: str) -> Callable[..., Done]:
    """`attnctl run` with the tiny model and four steps, unless told otherwise."""

    def edit(*words: object, method: str = "fpe") -> Done:
        given = [str(word) for word in words]
        steps = [] if "--steps" in given else ["--steps", "4"]
        return call("run", "--method", method, "--model", model, *steps, *given)

    return edit


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smooth picture, 90 high and 120 wide."""
    y, x = np.mgrid[0:90, 0:120]
    pixels = np.stack([2 * x, 2 * y, x + y], axis=-1).astype(np.uint8)
    path = tmp_path_factory.mktemp("pictures") / "photo.png"
    Image.fromarray(pixels).save(path)
    return path
