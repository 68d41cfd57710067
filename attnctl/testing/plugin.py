"""Fixtures for pytest: put ``pytest_plugins = ["attnctl.testing.plugin"]`` into a ``conftest.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from attnctl.model import Model
from attnctl.session import EditSession
from attnctl.testing.tiny import tiny_model, tiny_sd


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model saved in diffusers' layout, for code that loads models; do not write into it."""
    folder = tmp_path_factory.mktemp("models") / "tiny-sd"
    tiny_sd(folder)
    return folder


@pytest.fixture(scope="session")
def shared_tiny_model() -> Model:
    """One tiny model for tests that leave it as it was."""
    return tiny_model()


@pytest.fixture
def own_tiny_model() -> Model:
    """A fresh tiny model for a test that changes it."""
    return tiny_model()


@pytest.fixture
def tiny_session(shared_tiny_model: Model) -> EditSession:
    """A session on the shared tiny model, with the installed plugins."""
    return EditSession(shared_tiny_model)
