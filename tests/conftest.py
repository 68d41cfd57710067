"""What every test runs under: no network and one torch thread."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path

# Before anything imports torch or huggingface_hub: both read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

# The same examples every time, however busy the machine is.
settings.register_profile("attnctl", deadline=None, derandomize=True, database=None)
settings.load_profile("attnctl")

pytest_plugins = ["attnctl.testing.plugin"]

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "attnctl": ROOT / "attnctl",
    "attnctl_plugins": ROOT / "plugins" / "attnctl_plugins",
    "attnctl_evaluation": ROOT / "evaluation" / "attnctl_evaluation",
}


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Inversions that tests make are kept apart from the user's, also by processes that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTNCTL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def packages() -> dict[str, Path]:
    """Import name -> folder of the three packages in the checkout."""
    return PACKAGES


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The folder of reference numbers beside the checkout; skips where there is none."""
    folder = ROOT.parent / "shared"
    if not (folder / "golden").is_dir():
        pytest.skip("no ../shared/golden beside this checkout: nothing to compare with")
    return folder


@pytest.fixture
def fixtures_dir() -> Path:
    """Small files that tests read: tests/fixtures."""
    return ROOT / "tests" / "fixtures"


class Golden:
    """Reference numbers of published codes, and the tiny model that they were made with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @functools.cached_property
    def session(self):
        """A session on the reference model in float32."""
        from attnctl.loading import load_model
        from attnctl.session import EditSession

        return EditSession(load_model(str(self.folder / "model"), dtype="float32", device="cpu"))

    def case(self, name: str) -> tuple[dict, dict]:
        """What a case says, and its tensors by name; skips where the case is not there."""
        from safetensors.torch import load_file

        folder = self.folder / "cases" / name
        if not folder.is_dir():
            pytest.skip(f"no case {name} in {self.folder}: nothing to compare with")
        inputs = json.loads((folder / "inputs.json").read_text(encoding="utf-8"))
        return inputs, load_file(folder / "io.safetensors")


@pytest.fixture(scope="session")
def golden(shared_folder: Path) -> Golden:
    """Reference numbers of published codes; skips where there are none."""
    return Golden(shared_folder / "golden")
