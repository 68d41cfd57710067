"""Structure distance, on timm's smallest vision transformer."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from attnctl.metric import Score, UnavailableError
from attnctl_evaluation.metrics.structure import StructureDistance

from .conftest import make, sample, score

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


class TestStructure:
    @torch.no_grad()
    def test_it_is_the_distance_of_key_similarities(self, vit: Path) -> None:
        """By hand, key by key, from the layer's own weights."""
        import timm

        given = sample(0, 64, 64)
        net = timm.create_model("test_vit", pretrained=False, num_classes=0).eval()
        net.load_state_dict(load_file(vit))
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        found = []
        for picture in (given.edited, given.source):
            pixels = torch.nn.functional.interpolate(picture[None], (160, 160), mode="bilinear", antialias=True)
            pixels = (pixels - mean[:, None, None]) / std[:, None, None]
            entering = []
            hook = net.blocks[-1].attn.register_forward_pre_hook(
                lambda _m, inputs, kept=entering: kept.append(inputs[0])
            )
            net.forward_features(pixels)
            hook.remove()
            layer = net.blocks[-1].attn.qkv
            width = layer.out_features // 3
            keys = (entering[0] @ layer.weight[width : 2 * width].T + layer.bias[width : 2 * width])[0]
            found.append(torch.nn.functional.cosine_similarity(keys[:, None], keys[None], dim=-1))
        expected = float((found[0] - found[1]).square().mean())
        metric = make(StructureDistance, model="test_vit", weights=str(vit), size=160)
        assert expected > 1e-4
        assert score(metric, given).value == pytest.approx(expected, rel=1e-4)

    def test_settings_change_the_number_and_the_card(self, vit: Path) -> None:
        own = {"model": "test_vit", "weights": str(vit), "size": 160}
        metrics = [make(StructureDistance, **own, **s) for s in ({}, {"levels": "0-255"}, {"antialias": False})]
        given = sample(0, 400, 320)
        assert len({score(m, given).value for m in metrics}) == 3
        assert len({m.card().id for m in metrics}) == 3
        assert score(metrics[0], replace(given, edited=given.source)) == Score(0.0)
        scaled = make(StructureDistance, **own, scale=1e3)
        assert score(scaled, given).value == pytest.approx(1e3 * score(metrics[0], given).value)

    @pytest.mark.parametrize("size", [(60, 200), (200, 60), (30, 90), (161, 163)])
    def test_pictures_of_any_shape(self, size: tuple[int, int], vit: Path) -> None:
        metric = make(StructureDistance, model="test_vit", weights=str(vit), size=160)
        assert score(metric, sample(0, *size)).value > 0

    def test_without_weights_a_sentence_says_what_to_do(self, vit: Path, tmp_path: Path) -> None:
        for settings, why in (
            ({}, "vit_base_patch8_224.dino, which are not on this machine"),
            ({"model": "no_such_model"}, "timm knows no model"),
            ({"model": "vit_tiny_patch16_224", "weights": str(vit)}, "is not vit_tiny_patch16_224"),
            ({"weights": str(tmp_path / "x")}, "there is no file"),
        ):
            with pytest.raises(UnavailableError, match=why):
                make(StructureDistance, **settings).card()

    def test_the_hubs_cache_is_found(self, vit: Path, tmp_path: Path) -> None:
        snapshot = tmp_path / "hub" / "models--timm--test_vit" / "snapshots" / ("a" * 40)
        snapshot.mkdir(parents=True)
        (snapshot.parents[1] / "refs").mkdir()
        (snapshot.parents[1] / "refs" / "main").write_text("a" * 40)
        shutil.copy(vit, snapshot / "model.safetensors")
        card = make(StructureDistance, model="test_vit", size=160).card()
        assert card.weights == f"hub timm/test_vit at {'a' * 40}"
