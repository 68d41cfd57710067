"""LPIPS, on random trunks, and on real ones where they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from attnctl.metric import Score, UnavailableError
from attnctl_evaluation.metrics.perceptual import LPIPS

from .conftest import by_trunk, make, sample, score

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


class TestLPIPS:
    @pytest.mark.parametrize("net", ["alex", "squeeze"])
    def test_it_is_the_packages_number_on_the_given_trunk(self, net: str, trunks: Path) -> None:
        given, reference = sample(0, 64, 72), by_trunk(net)
        pair = given.edited[None], given.source[None]
        with torch.no_grad():
            expected = float(reference(*pair, normalize=True))
            dark = [p * (~given.mask).float() * 2 - 1 for p in pair]
            masked = float(reference(*dark))
            reference.spatial = True
            filled = torch.where(~given.mask, *pair)
            outside = float(reference(filled, pair[1], normalize=True)[0, 0][~given.mask].mean())
        assert score(make(LPIPS, net=net, weights=str(trunks)), given).value == pytest.approx(expected, rel=1e-6)
        settings = {"net": net, "weights": str(trunks), "region": "outside"}
        assert score(make(LPIPS, **settings), given).value == pytest.approx(outside, rel=1e-5)
        official = make(LPIPS, **settings, masking="black", scale=1e3)
        assert score(official, given).value == pytest.approx(1e3 * masked, rel=1e-6)
        assert make(LPIPS, net=net, weights=str(trunks)).column == ("lpips" if net == "alex" else "lpips-squeeze")

    def test_an_exact_edit_is_perfect_outside_its_mask(self, trunks: Path) -> None:
        """Though the network sees across the border."""
        given = sample(0, 64, 64)
        exact = replace(given, edited=torch.where(given.mask, 1 - given.source, given.source))
        metric = make(LPIPS, weights=str(trunks), region="outside")
        assert score(metric, exact) == Score(0.0)
        assert score(metric, given).value > 0

    def test_real_trunks_give_zero_for_equal_and_more_for_more_different_pictures(self, root: Path) -> None:
        folder = root.parent / "shared" / "weights"
        if not folder.is_dir():
            pytest.skip("no ../shared/weights beside this checkout: there are no real trunks to test with")
        given = sample(0, 64, 64)
        for net in ("alex", "squeeze"):
            metric = make(LPIPS, net=net, weights=str(folder))
            assert score(metric, replace(given, edited=given.source)) == Score(0.0)
            near = score(metric, replace(given, edited=given.source * 0.9 + 0.1 * given.edited)).value
            assert 0 < near < score(metric, given).value

    def test_without_weights_a_sentence_says_what_to_do(self, tmp_path: Path, trunks: Path) -> None:
        for settings, why in (
            ({}, "AlexNet weights, which are not on this machine"),
            ({"net": "vgg"}, "VGG16 weights"),
            ({"weights": str(tmp_path / "no")}, "there is no file"),
            ({"net": "vgg", "weights": str(trunks)}, "has vgg16 in its name"),
            ({"net": "squeeze", "weights": str(trunks / "alexnet.safetensors")}, "so it is no SqueezeNet"),
        ):
            with pytest.raises(UnavailableError, match=why):
                make(LPIPS, **settings).card()
        (tmp_path / "alexnet.pth").write_bytes(b"not a checkpoint")
        with pytest.raises(UnavailableError, match="cannot be read"):
            make(LPIPS, weights=str(tmp_path)).card()

    def test_torchvisions_cache_is_found(self, tmp_path: Path, trunks: Path) -> None:
        cache = tmp_path / "torch" / "hub" / "checkpoints"
        cache.mkdir(parents=True)
        torch.save(load_file(trunks / "alexnet.safetensors"), cache / "alexnet-owt-7be5be79.pth")
        card, other = make(LPIPS).card(), make(LPIPS, weights=str(trunks)).card()
        assert card.weights == "torchvision alexnet-owt-7be5be79.pth"
        assert card.weights_sha256 == other.weights_sha256
        assert card.id == other.id

    def test_a_tiny_picture_has_no_value(self, trunks: Path) -> None:
        assert "32 pixels" in score(make(LPIPS, weights=str(trunks)), sample(0, 31, 64)).reason
