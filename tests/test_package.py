"""What the wheel holds and what it says about itself."""

from __future__ import annotations

import email.parser
import re
import subprocess
import sys
import tomllib
import zipfile
from email.message import Message
from pathlib import Path

import pytest

PACKAGES = {"attnctl", "attnctl_plugins", "attnctl_evaluation"}
# PyPI takes files of at most 100 MB.
LARGEST_WHEEL = 100e6


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from the checkout by the build backend itself."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    return email.parser.Parser().parsestr(wheel.read(name).decode())


def test_the_wheel_holds_three_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = {name.partition("/")[0] for name in wheel.namelist()}
    assert {n for n in names if not re.fullmatch(r"attnctl-[0-9.]+\.dist-info", n)} == PACKAGES


def test_the_wheel_holds_every_file_of_the_packages(
    wheel: zipfile.ZipFile, packages: dict[str, Path], root: Path
) -> None:
    """Modules, py.typed marks, and the embedded model's weights and tokenizer: all that git keeps there."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout: nothing says which files belong to the packages")
    files = [root / name for name in listed.stdout.split("\0") if name]
    expected = {
        f"{package}/{file.relative_to(folder).as_posix()}"
        for package, folder in packages.items()
        for file in files
        if file.is_relative_to(folder) and file.exists()
    }
    assert {f"{package}/py.typed" for package in PACKAGES} <= expected
    assert expected <= set(wheel.namelist())


def test_the_wheel_is_small_enough_to_upload(wheel: zipfile.ZipFile) -> None:
    assert Path(wheel.filename or "").stat().st_size < LARGEST_WHEEL


def test_the_wheel_holds_no_byte_code_and_no_tests(wheel: zipfile.ZipFile) -> None:
    assert not [n for n in wheel.namelist() if "__pycache__" in n or n.endswith(".pyc") or "/tests/" in n]


def test_the_core_dependencies_are_bounded_and_without_torchvision(metadata: Message) -> None:
    requirements = [r for r in metadata.get_all("Requires-Dist", []) if "extra ==" not in r]
    assert {"torch", "diffusers", "transformers"} <= {re.match(r"[a-z-]+", r)[0] for r in requirements}
    assert not [r for r in requirements if r.startswith("torchvision")]
    assert [r for r in requirements if not re.fullmatch(r"[a-z0-9-]+<\d+(\.\d+)?,>=\d+(\.\d+)*", r)] == []


def test_the_metadata_says_what_a_user_must_know(metadata: Message, root: Path) -> None:
    assert metadata["Name"] == "attnctl"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE"]
    assert metadata.get_payload().startswith("# attnctl\n")


def test_versions_agree(metadata: Message, root: Path) -> None:
    citation = re.search(r"^version: (.+)$", (root / "CITATION.cff").read_text(), re.MULTILINE)
    assert citation is not None
    assert citation[1] == metadata["Version"]
    changelog = (root / "CHANGELOG.md").read_text()
    assert f"## [{metadata['Version']}]" in changelog or "## [Unreleased]" in changelog


def test_entry_points_name_modules_of_the_wheel(wheel: zipfile.ZipFile, root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    groups = [project["scripts"], *project["entry-points"].values()]
    targets = [target for group in groups for target in group.values()]
    names = set(wheel.namelist())
    for target in targets:
        module = target.partition(":")[0].replace(".", "/")
        assert {f"{module}.py", f"{module}/__init__.py"} & names, target
