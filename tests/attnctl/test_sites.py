"""Hook points: found from the structure, in the order in which they run."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from attnctl.errors import ModelError, SelectionError
from attnctl.families.unet import enumerate_sites
from attnctl.model import Model, check_supported
from attnctl.sites import Site, Where, describe_sites
from attnctl.testing import tiny_model, tiny_sd, tiny_sdxl


@pytest.fixture(scope="module")
def sd() -> Any:
    return tiny_sd()


@pytest.fixture(scope="module")
def sites(sd: Any) -> tuple[Site, ...]:
    return enumerate_sites(sd.unet)


def trace(model: Model, latent_size: tuple[int, int]) -> list[tuple[str, int, tuple[int, ...]]]:
    """Run the denoiser once; return (path, query tokens, feature shape) of every site in the order of execution."""
    seen: list[tuple[str, int, tuple[int, ...]]] = []
    handles = []
    for site in model.sites:
        module = model.unet.get_submodule(site.path)
        if site.kind == "feature":

            def feature(_m: Any, _i: Any, out: torch.Tensor, path: str = site.path) -> None:
                seen.append((path, out.shape[-1] * out.shape[-2], tuple(out.shape[-2:])))

            handles.append(module.conv2.register_forward_hook(feature))
        else:

            def query(_m: Any, _i: Any, out: torch.Tensor, path: str = site.path) -> None:
                seen.append((path, out.shape[1], ()))

            handles.append(module.to_q.register_forward_hook(query))
    try:
        model.predict(torch.randn(1, 4, *latent_size), 501, [model.encode_text("a cat")])
    finally:
        for handle in handles:
            handle.remove()
    return seen


@pytest.mark.parametrize("size", [(8, 8), (16, 24), (12, 8), (8, 20)])
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_sites_are_listed_in_the_order_and_with_the_grids_in_which_they_run(family: str, size: tuple[int, int]) -> None:
    if family == "sd":
        model = tiny_model()
    else:
        pipe = tiny_sdxl()
        model = Model(pipe, "tiny-sdxl", family=check_supported(pipe, "tiny-sdxl"))
    traced = trace(model, size)
    assert [path for path, _, _ in traced] == [s.path for s in model.sites]
    assert [tokens for _, tokens, _ in traced] == [s.tokens(size) for s in model.sites]
    for site, (_, _, shape) in zip(model.sites, traced, strict=True):
        assert site.kind != "feature" or shape == site.grid(size)


def test_every_attention_layer_is_a_site(sd: Any, sites: tuple[Site, ...]) -> None:
    """Against diffusers' own list, whose order is another one."""
    listed = [name.removesuffix(".processor") for name in sd.unet.attn_processors]
    ours = [s.path for s in sites if s.kind != "feature"]
    assert sorted(ours) == sorted(listed)
    assert ours != listed


def test_the_numbers_mean_what_the_papers_mean(sites: tuple[Site, ...]) -> None:
    """METHODS: 0-5 down, 6 mid, 7-15 up, with sides 64 64 32 32 16 16 8 16 16 16 32 32 32 64 64 64."""
    for kind, attr in (("self", "attn1"), ("cross", "attn2")):
        mine = [s for s in sites if s.kind == kind]
        assert [s.layer for s in mine] == list(range(16))
        assert [s.block for s in mine] == ["down"] * 6 + ["mid"] + ["up"] * 9
        assert [s.grid((64, 64))[0] for s in mine] == [64, 64, 32, 32, 16, 16, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64]
        assert {s.path.rpartition(".")[2] for s in mine} == {attr}
    assert [s.heads for s in sites if s.kind == "self"][:7] == [2, 2, 2, 2, 4, 4, 4]
    by_layer = {s.layer: s.path for s in sites if s.kind == "self"}
    assert by_layer[6].startswith("mid_block.attentions.0.")
    assert by_layer[7].startswith("up_blocks.1.attentions.0.")
    assert by_layer[15].startswith("up_blocks.3.attentions.2.")


def test_features_are_numbered_on_their_own(sites: tuple[Site, ...]) -> None:
    features = [s for s in sites if s.kind == "feature"]
    assert [s.layer for s in features] == list(range(22))  # 8 down, 2 mid, 12 up
    assert [s.block for s in features] == ["down"] * 8 + ["mid"] * 2 + ["up"] * 12
    assert features[8].path == "mid_block.resnets.0"
    assert {s.heads for s in features} == {0}


@pytest.mark.parametrize(
    ("side", "rule", "layers"),
    [
        (64, {"max_tokens": 1024}, range(2, 13)),
        (64, {"max_tokens": 256}, range(4, 10)),
        (64, {"min_downscale": 2}, range(2, 13)),
        (96, {"max_tokens": 1024}, range(4, 10)),
        (96, {"max_tokens": 256}, [6]),
        (96, {"min_downscale": 2}, range(2, 13)),
        (32, {"max_tokens": 1024}, range(16)),
        (32, {"min_downscale": 2}, range(2, 13)),
        (64, {"max_downscale": 1}, [0, 1, 13, 14, 15]),
        (64, {"min_downscale": 2, "max_downscale": 4, "block": "up"}, range(7, 13)),
        (64, {"block": ("down", "mid")}, range(7)),
        (64, {"layers": (3, 1, 3)}, [1, 3]),
    ],
)
def test_rules_select_what_they_say(
    sites: tuple[Site, ...], side: int, rule: dict[str, Any], layers: list[int]
) -> None:
    """The absolute rule moves with the picture's size, the relative one does not (figures of METHODS 0.1)."""
    found = Where(kind="self", **rule).select(sites, (side, side))
    assert [s.layer for s in found] == list(layers)


def test_the_absolute_rule_counts_both_sides(sites: tuple[Site, ...]) -> None:
    assert [s.layer for s in Where(kind="self", max_tokens=1024).select(sites, (32, 128))] == list(range(2, 13))
    assert [s.layer for s in Where(kind="self", max_tokens=1023).select(sites, (32, 128))] == list(range(4, 10))


def test_fields_are_anded(sites: tuple[Site, ...]) -> None:
    where = Where(kind="cross", block="up", layers=(6, 7, 12), max_downscale=2)
    assert [s.layer for s in where.select(sites, (64, 64))] == [12]
    path = sites[-2].path
    where = Where(kind=sites[-2].kind, paths=(path,))
    assert [s.path for s in where.select(sites, (64, 64))] == [path]


@pytest.mark.parametrize(
    ("where", "message", "hint"),
    [
        (Where(kind="self", layers=(16, 3, 40)), "layers 16, 40 do not exist", "0-15"),
        (Where(kind="feature", layers=(22,)), "feature layers 22", "0-21"),
        (Where(kind="self", paths=("mid_block",)), "no self site has the path 'mid_block'", "attnctl sites"),
        (Where(kind="cross", min_downscale=16), "cross downscale >= 16 selects no site", r"layers 0-1 \(64x48\)"),
        (Where(kind="self", max_tokens=3), "at latent size 64x48", "layers 6"),
        (Where(kind="self", layers=()), "selects no site", "layers"),
        (Where(kind="self", block="mid", layers=(0,)), "self in mid layers 0", "layers"),
        (Where(kind="joint"), "has no joint sites", r"self sites \(image->image\), cross sites \(image->text\)"),
        (Where(attends=("text", "image")), "it has no text->image sites", "feature sites"),
        (Where(attends=("image", "text"), layers=(16,)), "image->text layers 16 do not exist", "layers are 0-15"),
        (Where("self", attends=("image", "text")), "self image->text selects no site", "cross sites"),
    ],
)
def test_selecting_nothing_is_an_error_that_lists_what_exists(
    sites: tuple[Site, ...], where: Where, message: str, hint: str
) -> None:
    with pytest.raises(SelectionError, match=message) as caught:
        where.select(sites, (64, 48))
    assert re.search(hint, caught.value.hint)


@pytest.mark.parametrize("rule", [{}, {"block": "up"}, {"layers": (3, 4)}, {"min_downscale": 2}])
def test_in_a_unet_what_attends_is_a_kind(sites: tuple[Site, ...], rule: dict[str, Any]) -> None:
    for kind, pair in (("self", ("image", "image")), ("cross", ("image", "text"))):
        assert Where(attends=pair, **rule).select(sites, (32, 24)) == Where(kind, **rule).select(sites, (32, 24))


def test_in_a_transformer_what_attends_is_found_in_any_kind() -> None:
    joint = Site("blocks.0.attn", "joint", "double", 0, 2, 4, ("image", "text"))
    own = Site("blocks.0.attn2", "self", "double", 0, 2, 4)
    single = Site("single.0.attn", "joint", "single", 1, 2, 4, ("text", "image"))
    sites = (joint, own, single)
    assert Where(attends=("image", "image")).select(sites, (8, 8)) == sites
    assert Where(attends=("text", "image")).select(sites, (8, 8)) == (joint, single)
    assert Where("self", attends=("image", "image")).select(sites, (8, 8)) == (own,)
    assert Where("joint", block="single").select(sites, (8, 8)) == (single,)
    assert describe_sites(sites, (8, 12)) == "layers 0-1 (4x6)"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (Where, SelectionError, "neither the kind of site nor what attends"),
        (lambda: Where(block="up"), SelectionError, "neither the kind of site nor what attends"),
        (lambda: Where(attends=("image",)), SelectionError, "expected two segments"),
        (lambda: Where(attends="image"), SelectionError, "expected two segments"),
        (lambda: Where(attends=("image", "words")), SelectionError, "unknown segment 'words': known are"),
        (lambda: Site("a.attn", "joint", "double", 0, 2, 4), ModelError, "a.attn does not say which tokens"),
        (lambda: Site("a", "joint", "double", 0, 2, 4, ("image", "ref")), ModelError, "unknown segment 'ref'"),
    ],
)
def test_selectors_and_sites_that_say_too_little_are_refused(make: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        make()
    assert caught.value.hint


def test_segments_follow_from_the_kind_unless_they_must_be_said(sites: tuple[Site, ...]) -> None:
    expected = {"self": (("image",), ("image",)), "cross": (("image",), ("text",)), "feature": ((), ())}
    assert {s.kind: (s.queries, s.keys) for s in sites} == expected
    layout = Site("a", "joint", "single", 0, 2, 4, ("text", "image")).layout((5, 8), 7)
    assert layout.queries == layout.keys == {"text": slice(0, 7), "image": slice(7, 19)}
    assert (layout.query_count, layout.key_count) == (19, 19)


def test_selectors_can_be_read() -> None:
    assert str(Where(attends=("image", "text"), layers=(1, 2, 3))) == "image->text layers 1-3"
    assert str(Where("joint", block="single", attends=("text", "image"))) == "joint text->image in single"


def test_sites_are_summarised_by_resolution(sites: tuple[Site, ...]) -> None:
    mine = [s for s in sites if s.kind == "self" and s.block != "up"]
    assert describe_sites(mine, (16, 24)) == ("layers 0-1 (16x24), layers 2-3 (8x12), layers 4-5 (4x6), layers 6 (2x3)")
    assert describe_sites([], (8, 8)) == "none"


def test_models_that_are_no_unet_or_have_no_attention_are_refused(sd: Any) -> None:
    with pytest.raises(ModelError, match="AutoencoderKL has no down, mid and up blocks"):
        enumerate_sites(sd.vae)
    import diffusers

    plain = diffusers.UNet2DModel(
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        add_attention=False,
    )
    with pytest.raises(ModelError, match="no attention layers"):
        enumerate_sites(plain)
