"""`attnctl run --mask`: a picture that says where the source may change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attnctl.runs.manifest import Manifest

PAIR = ["--source-prompt", "a red car on a road", "--prompt", "a blue car on a road"]


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """White on the left, twice as large as the tiny model's pictures."""
    pixels = np.zeros((128, 128), np.uint8)
    pixels[:, :64] = 255
    Image.fromarray(pixels).save(tmp_path / "half.png")
    return tmp_path / "half.png"


def test_a_mask_reaches_the_methods_that_use_it(run, half: Path, tmp_path: Path) -> None:
    done = run(*PAIR, "--mask", half, "--out", "o", method="p2p,none")
    assert done.code == 0, done.err
    assert "none makes no use of the mask" in done.err
    record = Manifest.read(tmp_path / "o" / "manifest.json")
    assert record.mask is not None
    assert (record.mask.path, record.mask.original_size) == (str(half), (128, 128))
    assert any(row.controller == "local blend" and row.acted for row in record.coverage)
    assert "mask" in (tmp_path / "o" / "manifest.json").read_text()


@pytest.mark.parametrize(
    ("method", "name", "message"),
    [
        ("p2p", "nowhere.png", "nowhere.png"),
        ("none", "half.png", "but none can make no use of one"),
        ("p2p", "black.png", "the mask lets nothing change"),
        ("p2p", "text.png", "text.png"),
    ],
)
def test_bad_masks(run, half: Path, tmp_path: Path, method: str, name: str, message: str) -> None:
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "black.png")
    (tmp_path / "text.png").write_text("no picture")
    done = run(*PAIR, "--mask", name, "--out", "o", method=method)
    assert done.code == 2
    assert message in done.error
    assert not (tmp_path / "o").exists()
