"""What tests of several commands need."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attnctl.cli import main


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    from attnctl.testing.tiny import tiny_sd

    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_sd(folder)
    return str(folder)


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run a command in a folder of its own; returns its code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def words(*given: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in given])
        found = capsys.readouterr()
        return code, found.out, found.err

    return words
