"""PSNR, MSE and SSIM, against torchmetrics (whose float32 leaves SSIM 5e-6 off float64 here) and by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from attnctl.metric import Metric, Sample, Score
from attnctl_evaluation.metrics.pixel import MSE, PSNR, SSIM

from .conftest import sample


def score(kind: type[Metric], given: Sample, **settings: object) -> Score:
    return kind(kind.Config(**settings)).score([given])[0]


def black(given: Sample, region: str = "outside") -> tuple[torch.Tensor, torch.Tensor]:
    keep = (~given.mask if region == "outside" else given.mask).float()
    return given.edited * keep, given.source * keep


def test_whole_pictures_agree_with_torchmetrics() -> None:
    given = sample()
    pair = given.edited[None], given.source[None]
    assert score(PSNR, given).value == pytest.approx(float(peak_signal_noise_ratio(*pair, data_range=1.0)), abs=1e-4)
    assert score(SSIM, given).value == pytest.approx(
        float(structural_similarity_index_measure(*pair, data_range=1.0)), abs=2e-5
    )
    assert score(MSE, given, scale=1e4).value == pytest.approx(
        1e4 * float((pair[0] - pair[1]).square().mean()), rel=1e-5
    )


@pytest.mark.parametrize("region", ["inside", "outside"])
def test_black_masking_agrees_with_torchmetrics_on_masked_pictures(region: str) -> None:
    given = sample()
    first, second = black(given, region)
    settings = {"region": region, "masking": "black"}
    expected = float(peak_signal_noise_ratio(first[None], second[None], data_range=1.0))
    assert score(PSNR, given, **settings).value == pytest.approx(expected, abs=1e-4)
    expected = float(structural_similarity_index_measure(first[None], second[None], data_range=1.0))
    assert score(SSIM, given, **settings).value == pytest.approx(expected, abs=2e-5)


def test_a_part_is_averaged_over_its_own_pixels() -> None:
    given = sample()
    inside = (given.edited - given.source)[:, given.mask].square().mean()
    outside = (given.edited - given.source)[:, ~given.mask].square().mean()
    assert score(MSE, given, region="inside").value == pytest.approx(float(inside), rel=1e-5)
    assert score(MSE, given, region="outside").value == pytest.approx(float(outside), rel=1e-5)
    assert score(PSNR, given, region="outside").value == pytest.approx(-10 * math.log10(float(outside)), rel=1e-5)
    filled = torch.where(given.mask, given.edited, given.source)
    _, full = structural_similarity_index_measure(
        filled[None], given.source[None], data_range=1.0, return_full_image=True
    )
    assert score(SSIM, given, region="inside").value == pytest.approx(float(full[0][:, given.mask].mean()), abs=2e-5)


def test_an_exact_edit_is_perfect_outside_its_mask_and_equal_drawings_are_equal() -> None:
    """Windows see across the border, and float32 cannot tell flat areas from noise: neither may show."""
    given = sample()
    exact = replace(given, edited=torch.where(given.mask, 1 - given.source, given.source))
    assert score(SSIM, exact, region="outside").value == pytest.approx(1.0, abs=1e-12)
    flat = torch.full((3, 48, 48), 0.93)
    assert score(SSIM, replace(given, edited=flat, source=flat)).value == pytest.approx(1.0, abs=1e-9)


def test_what_is_outside_a_part_does_not_count() -> None:
    given = sample()
    other = replace(given, edited=torch.where(given.mask, 0.3, given.edited))
    for masking in ("pixels", "black"):
        settings = {"region": "outside", "masking": masking}
        for kind in (MSE, SSIM):
            assert score(kind, given, **settings) == score(kind, other, **settings)
    assert score(MSE, given) != score(MSE, other)


def test_degenerate_cases_have_the_outcome_that_the_card_says() -> None:
    same = replace(sample(), edited=sample().source)
    assert score(PSNR, same) == Score(100.0, "identical pictures")
    assert score(PSNR, same, cap=None) == Score(None, "identical pictures")
    assert score(MSE, same) == Score(0.0)
    assert score(SSIM, same).value == pytest.approx(1.0)
    empty = replace(sample(), mask=torch.zeros(48, 48, dtype=torch.bool))
    full = replace(sample(), mask=torch.ones(48, 48, dtype=torch.bool))
    for kind in (PSNR, MSE, SSIM):
        assert score(kind, empty, region="inside") == Score(None, "empty mask")
        assert score(kind, full, region="outside") == Score(None, "nothing outside the mask")
        assert score(kind, replace(full, mask=None), region="outside") == Score(None, "no mask")
        assert score(kind, replace(full, source=None)) == Score(None, "no source")
        assert score(kind, replace(full, truth=None), against="truth") == Score(None, "no truth")
        broken = replace(full, edited=torch.full((3, 48, 48), float("nan")))
        assert score(kind, broken).value is None
    assert "pixels" in score(SSIM, sample(0, 5, 20)).reason
    assert score(SSIM, sample(0, 6, 20)).value is not None


def test_against_the_truth() -> None:
    given = sample()
    expected = float((given.edited - given.truth).square().mean())
    assert score(MSE, given, against="truth").value == pytest.approx(expected, rel=1e-5)
    assert MSE(MSE.Config(against="truth", region="inside")).column == "mse.truth.inside"


def test_cards_tell_settings_apart() -> None:
    cards = [
        kind(kind.Config(**settings)).card()
        for kind in (PSNR, MSE, SSIM)
        for settings in ({}, {"region": "outside"}, {"region": "outside", "masking": "black"}, {"scale": 10.0})
    ]
    assert len({card.id for card in cards}) == len(cards)
    assert all(card.preprocessing and card.source and card.degenerate for card in cards)
    assert PSNR().card().id == PSNR().card().id
