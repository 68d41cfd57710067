"""Parts of the embedded model's training that could go wrong without a sign; the training itself is run by hand."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from attnctl.loading import load_model
from attnctl_evaluation.world import Scene, Thing, caption, random_scene

TOOLS = Path(__file__).parents[1] / "tools" / "train_micro"


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(TOOLS))
    import words

    return words


@pytest.fixture
def train_vae(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(TOOLS))
    import train_vae

    return train_vae


def test_words_belong_to_the_object_that_they_describe(words: Any) -> None:
    scene = Scene("road", (Thing("car", "red", "striped"), Thing("fish", "blue")))
    text = "a photo of a red automobile with stripes and a blue fish on a road"
    expected = {"red": 1, "automobile": 1, "stripes": 1, "blue": 4, "fish": 4}
    assert words.owners(scene, text.split()) == [expected.get(w, 0) for w in text.split()]


def test_a_word_that_describes_both_objects_belongs_to_none(words: Any) -> None:
    scene = Scene("sea", (Thing("car", "red"), Thing("boat", "red")))
    assert words.owners(scene, ["red", "car", "red", "ship"]) == [0, 1, 0, 5]


def test_every_caption_names_its_objects(words: Any) -> None:
    rng = random.Random(0)
    for _ in range(200):
        scene = random_scene(rng)
        found = set(words.owners(scene, caption(scene, rng).split())) - {0}
        assert found == {words.NUMBER[thing.object] for thing in scene.things}


def test_word_maps_leave_the_model_as_it_is(words: Any) -> None:
    unet = load_model("micro", device="cpu").pipe.unet
    generator = torch.Generator().manual_seed(0)
    x, text = (torch.randn(shape, generator=generator) for shape in ((2, 8, 16, 16), (2, 77, 128)))
    with torch.no_grad():
        plain = unet.eval()(x, 300, text).sample
        maps = words.WordMaps(unet)
        assert torch.equal(unet(x, 300, text).sample, plain)
        assert not maps._maps
        torch.testing.assert_close(unet.train()(x, 300, text).sample, plain, atol=1e-4, rtol=1e-4)
    assert [tuple(m.shape) for m in maps._maps] == [(2, 64, 77)] * 3 + [(2, 256, 77)] * 3


def test_the_words_loss_is_nothing_where_each_object_reads_its_own_words(words: Any) -> None:
    labels = torch.zeros(1, 16, 16, dtype=torch.long)
    labels[0, 2:8, 1:7], labels[0, 2:8, 9:15] = 1, 4
    owner = torch.zeros(1, 77, dtype=torch.long)
    owner[0, 2], owner[0, 5] = 1, 4

    def loss(first: int, second: int) -> float:
        found = torch.zeros(1, 256, 77)
        cells = labels.flatten()
        found[0, cells == 1, first] = 1.0
        found[0, cells == 4, second] = 1.0
        found[0, cells == 0, 0] = 1.0
        maps = words.WordMaps.__new__(words.WordMaps)
        maps._maps = [found]
        return float(maps.loss(owner, labels, torch.ones(1)))

    assert loss(2, 5) == pytest.approx(0.0, abs=1e-5)
    assert loss(5, 2) > 5  # the words of the other
    assert loss(0, 0) > 5  # no word


def test_a_widened_autoencoder_gives_the_same_latents_and_pictures(
    train_vae: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = train_vae.build((4, 8, 8, 16), 4)
    for module in old.modules():
        if isinstance(module, nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    x = torch.randn((1, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)  # copies that do not differ
    new = train_vae.widened(old, (8, 16, 16, 32))
    with torch.no_grad():
        z, wide = old.encode(x).latent_dist.mode(), new.encode(x).latent_dist.mode()
        torch.testing.assert_close(wide, z, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(new.decode(z).sample, old.decode(z).sample, atol=1e-4, rtol=1e-4)


def test_the_copies_of_a_widened_decoder_differ(train_vae: Any) -> None:
    new = train_vae.widened(train_vae.build((4, 8, 8, 16), 4), (8, 16, 16, 32))
    weight = new.decoder.conv_in.weight
    assert not torch.equal(weight[:16], weight[16:])
    assert torch.equal(new.encoder.conv_in.weight[:4], new.encoder.conv_in.weight[4:])


def test_an_autoencoder_cannot_be_widened_by_a_fraction(train_vae: Any) -> None:
    with pytest.raises(ValueError, match="6 channels are not a multiple of 4"):
        train_vae.widened(train_vae.build((4, 8, 8, 16), 4), (6, 8, 8, 16))
