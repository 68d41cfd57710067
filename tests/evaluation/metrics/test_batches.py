"""No metric looks at more than one picture at a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from attnctl_evaluation.metrics.clip import ClipDirectional, ClipScore
from attnctl_evaluation.metrics.perceptual import LPIPS
from attnctl_evaluation.metrics.pixel import MSE, PSNR, SSIM
from attnctl_evaluation.metrics.structure import StructureDistance

from .conftest import make, sample

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def test_the_number_of_samples_in_a_call_never_changes_a_value(trunks: Path, clip_folder: Path, vit: Path) -> None:
    """Bit for bit, pictures of different sizes in one call."""
    samples = [
        sample(0),
        sample(1, 64, 48),
        sample(2),
        replace(sample(3), prompt="a red car on a road"),
        sample(4, 40, 96),
    ]
    metrics = [
        make(PSNR), make(MSE, region="inside"), make(SSIM, region="outside"),
        make(LPIPS, weights=str(trunks)), make(LPIPS, weights=str(trunks), region="outside"),
        make(ClipScore, model=str(clip_folder)), make(ClipDirectional, model=str(clip_folder)),
        make(StructureDistance, model="test_vit", weights=str(vit), size=160),
    ]  # fmt: skip
    for metric in metrics:
        alone = [metric.score([s])[0] for s in samples]
        assert metric.score(samples) == alone
        assert metric.score(samples[::-1]) == alone[::-1]
        assert len({s.value for s in alone}) == len(samples)
