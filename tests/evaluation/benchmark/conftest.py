"""Workers without a model, a registry that is loaded once, and ways to compare folders."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType

import pytest

from attnctl.registry import Registry


@pytest.fixture(scope="session")
def registry() -> Registry:
    """All installed plugins."""
    return Registry.load()


@pytest.fixture
def light(fixtures_dir: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module tests/fixtures/light_bench.py, importable in processes that tests start, too."""
    monkeypatch.syspath_prepend(str(fixtures_dir))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(fixtures_dir), os.environ.get("PYTHONPATH", "")]))
    return importlib.import_module("light_bench")


def content(folder: Path) -> dict[str, bytes]:
    """All files of a run but its costs, which differ from run to run."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "timings.jsonl")
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


@pytest.fixture(name="content")
def content_fixture():
    """The function `content`."""
    return content
