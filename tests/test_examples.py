"""The example plugin works as a stranger's distribution does: found by its entry point, lawful by the shipped laws."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "attnctl-blend-maps"


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """An environment in which the example is installed: its module, and the metadata that an installer would write."""
    info = tmp_path / "attnctl_blend_maps-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: attnctl-blend-maps\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[attnctl]\nblend-maps = attnctl_blend_maps\n")
    (tmp_path / "attnctl_blend_maps.py").write_text((EXAMPLE / "attnctl_blend_maps.py").read_text())
    return {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}


def test_entry_point_in_the_example_is_the_one_that_is_tested() -> None:
    assert 'blend-maps = "attnctl_blend_maps"' in (EXAMPLE / "pyproject.toml").read_text()


def test_an_installed_stranger_is_listed_with_its_distribution(installed: dict[str, str]) -> None:
    command = [sys.executable, "-m", "attnctl", "plugins", "--json"]
    out = subprocess.run(command, env=installed, capture_output=True, text=True, check=True).stdout
    listed = json.dumps(json.loads(out))
    assert "attnctl-blend-maps" in listed
    assert "method blend-maps" in listed


def test_the_example_obeys_the_laws(installed: dict[str, str]) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(EXAMPLE / "tests")]
    done = subprocess.run(command, env=installed, capture_output=True, text=True, cwd=EXAMPLE, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout
