"""A torchvision that is missing, broken or working: `attnctl run` edits beside all three.

Each case runs in an interpreter of its own, because an import that failed leaves traces behind.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from attnctl import compat

BROKEN = """
from torchvision import extension
raise RuntimeError("operator torchvision::nms does not exist")
"""
# What loading a model imports, after the guard.
PIPELINE = """
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer
"""
GUARD = """
from attnctl.compat import guard_torchvision
print(guard_torchvision().state, guard_torchvision().error)
"""
FAIL = """
try:
    from diffusers import StableDiffusionPipeline
except RuntimeError:
    print("the import failed")
"""
# The path finder, the one that looks into site-packages, no longer sees torchvision.
HIDE = """
from importlib.machinery import PathFinder
find = PathFinder.find_spec
def find_others(cls, name, path=None, target=None):
    return None if name.partition(".")[0] == "torchvision" else find(name, path, target)
PathFinder.find_spec = classmethod(find_others)
"""
REQUIRE = """
from attnctl.compat import MissingPackageError, require
try:
    require("lpips", purpose="LPIPS")
except MissingPackageError as error:
    print(error, error.hint, sep="\\n")
"""


@pytest.fixture
def broken_torchvision(tmp_path: Path) -> Path:
    """A folder to put first on the path: its torchvision fails as one built for another torch does."""
    package = tmp_path / "fake" / "torchvision"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(BROKEN)
    (package / "extension.py").write_text("")
    return package.parent


def run(code: str, first_on_path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter."""
    environment = dict(os.environ)
    if first_on_path is not None:
        environment["PYTHONPATH"] = str(first_on_path)
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with random weights."""
    from attnctl.testing import tiny_sd

    folder = tmp_path_factory.mktemp("model")
    tiny_sd(folder)
    return folder


def edit(model: Path, out: Path) -> str:
    """Code that edits a picture with the command line and fails unless that succeeds."""
    words = ["run", "--model", str(model), "--method", "fpe", "--source-prompt", "a red cat", "--prompt", "a blue dog"]
    words += ["--steps", "2", "--out", str(out)]
    return f"from attnctl.cli import main\nassert main({words!r}) == 0\n"


def test_run_edits_beside_a_broken_torchvision(broken_torchvision: Path, model_folder: Path, tmp_path: Path) -> None:
    """And what does need torchvision says who is to blame."""
    done = run(edit(model_folder, tmp_path / "run") + GUARD + REQUIRE, broken_torchvision)
    assert done.returncode == 0, done.stderr
    assert "torchvision" not in done.stderr  # no advice to install what attnctl has no use for
    assert (tmp_path / "run" / "source.png").exists()
    state, message, hint = done.stdout.splitlines()[-3:]
    assert state == "broken operator torchvision::nms does not exist"
    assert message == (
        "LPIPS needs lpips, which needs torchvision, which cannot be imported: operator torchvision::nms does not exist"
    )
    assert hint.startswith("install a torch and a torchvision built for each other, in one command; found torch ")


def test_run_edits_without_torchvision(model_folder: Path, tmp_path: Path) -> None:
    done = run(HIDE + edit(model_folder, tmp_path / "run") + GUARD)
    assert done.returncode == 0, done.stderr
    assert "torchvision" not in done.stderr
    assert (tmp_path / "run" / "source.png").exists()
    assert done.stdout.splitlines()[-1] == "missing "


def test_the_guard_helps_after_the_import_has_failed(broken_torchvision: Path) -> None:
    """A program that embeds attnctl may have run into it first; it also shows what the guard is there for."""
    done = run(FAIL + GUARD + PIPELINE, broken_torchvision)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "the import failed"


def test_a_package_that_works_is_returned() -> None:
    assert compat.require("json", purpose="this test").dumps([1]) == "[1]"


def test_a_missing_package_is_named_with_its_extra() -> None:
    with pytest.raises(compat.MissingPackageError, match="the CLIP score needs no_such_package") as caught:
        compat.require("no_such_package", purpose="the CLIP score")
    assert caught.value.hint == "pip install 'attnctl[eval]'"
