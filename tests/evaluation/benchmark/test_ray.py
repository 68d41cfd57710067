"""A Ray cluster of two actors on this machine; in a process of its own, since Ray leaves warnings of its own behind."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (extra: ray)"),
]


def test_an_actor_that_is_killed_loses_nothing(fixtures_dir: Path, tmp_path: Path, content) -> None:
    done = subprocess.run(
        [sys.executable, fixtures_dir / "ray_compare.py", tmp_path],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(fixtures_dir), os.environ.get("PYTHONPATH", "")]),
            "RAY_USAGE_STATS_ENABLED": "0",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "done"
    assert "it is tried again" in done.stderr
    assert "no sign of life" in done.stderr
    assert content(tmp_path / "hung") == content(tmp_path / "one")
    assert content(tmp_path / "ray") == content(tmp_path / "one")
