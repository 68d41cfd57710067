"""Protocols by name, and panels of columns."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from attnctl.errors import InputError, PluginError
from attnctl.method import MethodConfig
from attnctl.metric import Metric, MetricCard, Sample, Score
from attnctl.registry import Registry
from attnctl_evaluation.datasets.pie_bench import decode_mask
from attnctl_evaluation.metrics.pixel import MSE
from attnctl_evaluation.metrics.protocols import PROTOCOLS, build_panel, through_jpeg

from .conftest import by_trunk, sample

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load()


def test_every_column_of_every_protocol_is_a_metric_with_valid_settings(registry: Registry) -> None:
    for protocol in PROTOCOLS.values():
        labels = [column.label for column in protocol.columns]
        assert len(set(labels)) == len(labels)
        for column in protocol.columns:
            assert registry.make_metric(column.metric, column.settings).name == column.metric


def test_the_official_protocol_follows_the_published_evaluation(registry: Registry, trunks: Path) -> None:
    """Step by step as PnPInversion does it: JPEG, framed mask, zeroed parts over the whole frame, scales."""
    given = sample(0, 512, 512)
    panel = build_panel(["pie-bench/v1-official"], registry, settings={"lpips": {"weights": str(trunks)}})
    found = panel.score(given)
    buffer = BytesIO()
    levels = (given.edited * 255 + 0.5).clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(levels).save(buffer, "JPEG", quality=75)
    result = torch.from_numpy(np.asarray(Image.open(buffer), dtype=np.float32).copy()).permute(2, 0, 1) / 255
    mask = given.mask.clone()
    mask[0], mask[-1], mask[:, 0], mask[:, -1] = True, True, True, True
    keep = 1 - mask.float()
    pair = (result * keep)[None], (given.source * keep)[None]
    assert found["psnr unedited"].value == pytest.approx(
        float(peak_signal_noise_ratio(*pair, data_range=1.0)), abs=1e-4
    )
    expected = 1e2 * float(structural_similarity_index_measure(*pair, data_range=1.0))
    assert found["ssim x1e2 unedited"].value == pytest.approx(expected, abs=1e-3)
    assert found["mse x1e4 unedited"].value == pytest.approx(1e4 * float((pair[0] - pair[1]).square().mean()), rel=1e-5)
    with torch.no_grad():
        expected = 1e3 * float(by_trunk("squeeze")(pair[0] * 2 - 1, pair[1] * 2 - 1))
    assert found["lpips-squeeze x1e3 unedited"].value == pytest.approx(expected, rel=1e-5)
    assert set(panel.absent) == {"structure-distance x1e3", "clip whole", "clip edited", "clip source"}
    assert all("not on this machine" in why for why in panel.absent.values())
    assert "JPEG quality 75; outermost ring" in panel.cards["psnr unedited"].preprocessing


@pytest.fixture(autouse=True)
def no_weights_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def test_the_frame_is_that_of_the_benchmarks_masks() -> None:
    given = replace(sample(0, 512, 512), mask=torch.from_numpy(decode_mask([600, 50], frame=False)))
    framed = PROTOCOLS["pie-bench/v1-official"].prepare(given).mask
    assert torch.equal(framed, torch.from_numpy(decode_mask([600, 50])))
    assert not given.mask[0].any()


def test_jpeg_loses_a_little_and_keeps_range_and_shape() -> None:
    picture = sample(0, 40, 56).edited
    found = through_jpeg(picture, 75)
    assert found.shape == picture.shape
    assert 0 <= found.min() <= found.max() <= 1
    assert 0 < (found - picture).abs().mean() < 0.05


def test_single_metrics_and_their_variants(registry: Registry, trunks: Path) -> None:
    names = ["psnr", "psnr.outside", "mse.truth", "lpips.inside"]
    panel = build_panel(names, registry, settings={"lpips": {"weights": str(trunks)}})
    found = panel.score(sample(0, 64, 64))
    assert list(found) == names
    assert all(score.value is not None for score in found.values())
    assert panel.cards["psnr.outside"].column == "psnr.outside"
    assert panel.score(replace(sample(0, 64, 64), mask=None))["psnr.outside"] == Score(None, "no mask")


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (["psrn"], "unknown metric or protocol 'psrn'.*psnr"),
        (["psnr.left"], "unknown variant of psnr 'left'"),
        (["psnr", "psnr"], "asked for twice"),
        (["pie-bench/v2"], "unknown metric or protocol"),
    ],
)
def test_what_does_not_exist_is_refused(names: list[str], why: str, registry: Registry) -> None:
    with pytest.raises(InputError, match=why):
        build_panel(names, registry)


def test_two_protocols_keep_their_columns_apart(registry: Registry) -> None:
    panel = build_panel(["attnctl/v1", "pie-bench/v1-official"], registry)
    assert {"attnctl/v1: psnr.outside", "pie-bench/v1-official: psnr unedited"} <= set(panel.metrics)
    given = sample(0, 64, 64)
    found = panel.score(given)
    plain = build_panel(["psnr.outside"], registry).score(given)
    assert found["attnctl/v1: psnr.outside"] == plain["psnr.outside"]
    ids = [card.id for card in panel.cards.values()]
    assert len(set(ids)) == len(ids)


def test_a_changed_protocol_says_so_on_its_card(registry: Registry, trunks: Path, clip_folder: Path) -> None:
    settings = {"lpips": {"weights": str(trunks), "net": "alex"}, "clip-score": {"model": str(clip_folder)}}
    changed = build_panel(["fpe/v1"], registry, settings=settings).cards["CS"]
    assert f"NOT as fpe/v1 has it: model={clip_folder}" in changed.source
    lpips = build_panel(["pie-bench/v1-official"], registry, settings={"lpips": settings["lpips"]})
    assert "NOT as pie-bench/v1-official has it: net=alex" in lpips.cards["lpips-squeeze x1e3 unedited"].source
    same = build_panel(["pie-bench/v1-official"], registry, settings={"lpips": {"weights": str(trunks)}})
    assert "NOT" not in same.cards["lpips-squeeze x1e3 unedited"].source


class Fragile(Metric):
    name = "fragile"

    class Config(MethodConfig):
        at: str = "measure"

    def card(self) -> MetricCard:
        if self.config.at == "card":
            raise KeyError("lost\nmore")
        return MetricCard(self.name, self.column, "", "neither", None, None, "none", "a test")

    def measure(self, sample: Sample) -> Score:
        raise RuntimeError("boom")


def test_a_broken_metric_costs_no_other_column() -> None:
    own = Registry()
    own.classes["metric"] |= {"fragile": Fragile, "mse": MSE}
    panel = build_panel(["fragile", "mse"], own)
    found = panel.score(sample(0, 32, 32))
    assert found["fragile"] == Score(None, "failed: RuntimeError: boom")
    assert found["mse"].value > 0
    absent = build_panel(["fragile", "mse"], own, settings={"fragile": {"at": "card"}}).absent
    assert absent == {"fragile": "the metric fragile is broken: KeyError: 'lost\\nmore'"}
    with pytest.raises(PluginError, match="must have shape"):
        panel.score(Sample(torch.zeros(4, 4), "x"))
