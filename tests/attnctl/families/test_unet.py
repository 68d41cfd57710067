"""UNets that are refused before the first step, and what is told of the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch

from attnctl.errors import ModelError
from attnctl.model import Model, check_supported
from attnctl.request import Edit, EditRequest
from attnctl.result import NoOpError
from attnctl.session import EditSession
from attnctl.testing import tiny_sd, tiny_sdxl


def unet(**fields: Any) -> Any:
    given = {"block_out_channels": (16, 16, 32, 32), "attention_head_dim": (2, 2, 4, 4), "cross_attention_dim": 32}
    return diffusers.UNet2DConditionModel(sample_size=8, norm_num_groups=8, **{**given, **fields}).eval()


def nested(pipe: Any) -> None:
    for i, block in enumerate(pipe.unet.down_blocks):
        pipe.unet.down_blocks[i] = torch.compile(block, backend="eager")


def compiled_attention(pipe: Any) -> None:
    attention = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1
    attention.forward = torch.compile(attention.forward, backend="eager")


CASES: dict[str, tuple[Callable[[Any], object], str]] = {
    "class embeddings": (lambda p: setattr(p, "unet", unet(class_embed_type="timestep")), "class embeddings"),
    "classes": (lambda p: setattr(p, "unet", unet(num_class_embeds=10)), "class embeddings"),
    "output channels": (lambda p: setattr(p, "unet", unet(out_channels=8)), "8 output channels"),
    "text width": (lambda p: setattr(p, "unet", unet(cross_attention_dim=48)), "texts of 48 numbers a token"),
    "size conditioning": (
        lambda p: setattr(
            p,
            "unet",
            unet(addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=80),
        ),
        "addition_embed_type='text_time'",
    ),
    "image projection": (
        lambda p: setattr(p, "unet", unet(encoder_hid_dim=16, encoder_hid_dim_type="image_proj")),
        "wants image embeddings",
    ),
    "compiled forward": (
        lambda p: setattr(p.unet, "forward", torch.compile(p.unet.forward, backend="eager")),
        "is compiled",
    ),
    "compiled blocks": (nested, "is compiled at down_blocks.0"),
    "compiled in place": (lambda p: p.unet.mid_block.compile(backend="eager"), "is compiled at mid_block"),
    "compiled attention": (compiled_attention, "is compiled at mid_block.attentions.0"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_cannot_be_run_is_refused_before_the_first_step(name: str) -> None:
    pipe = tiny_sd()
    change, message = CASES[name]
    change(pipe)
    with pytest.raises(ModelError, match=message):
        check_supported(pipe, "x")


def test_a_unet_that_is_compiled_after_loading_is_refused_when_it_is_run() -> None:
    pipe = tiny_sd()
    model = Model(pipe, "x", family=check_supported(pipe, "x"))
    assert model.sites
    nested(pipe)
    request = EditRequest((Edit("a blue cat", "fpe"),), source_prompt="a red cat", steps=1)
    with pytest.raises(ModelError, match="is compiled"):
        EditSession(model).run(request)


def test_a_text_projection_is_no_image_adapter() -> None:
    """Its own layer projects the text; the numbers are diffusers' own."""
    pipe = tiny_sd()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        pipe.unet = unet(encoder_hid_dim=32, encoder_hid_dim_type="text_proj", cross_attention_dim=48)
    model = Model(pipe, "x", family=check_supported(pipe, "x"))
    text = model.encode_text("a cat")
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model.predict(x, 5, [text]), pipe.unet(x, 5, text.embeds).sample)
    assert model.encode_text("a cat").images == ()


def test_first_attentions_that_read_the_text_are_cross_attention() -> None:
    plain = Model(tiny_sd(), "x").sites
    pipe = tiny_sd()
    pipe.unet = unet(only_cross_attention=(True, False, False, False))
    sites = Model(pipe, "x").sites
    assert [s.path for s in sites] == [s.path for s in plain]
    assert [s.layer for s in sites] == [s.layer for s in plain]
    changed = {a.path for a, b in zip(sites, plain, strict=True) if a.kind != b.kind}
    assert changed
    for site in sites:
        if site.kind != "feature":
            reads_text = pipe.unet.get_submodule(site.path).is_cross_attention
            assert site.kind == ("cross" if reads_text else "self")
    assert all(path.endswith("attn1") for path in changed)


@pytest.mark.parametrize("forgotten", ["tokenizer", "tokenizer_2"])
def test_a_tokenizer_that_does_not_say_its_length_has_its_encoders(forgotten: str) -> None:
    pipe = tiny_sdxl()
    expected = Model(tiny_sdxl(), "x", family="sdxl").encode_text("a red cat")
    getattr(pipe, forgotten).model_max_length = 10**30
    model = Model(pipe, "x", family=check_supported(pipe, "x"))
    assert model.text_length == 77
    assert model.encode_text("a red cat").same_as(expected)
    assert model.cut_text(" ".join(["cat"] * 76)) == "cat"


def test_texts_that_differ_only_in_what_the_model_does_not_see_are_said() -> None:
    session = EditSession(Model(tiny_sd(), "x"))
    given = {"source_prompt": "a red cat", "steps": 2, "negative_prompt": "red " * 90}
    with pytest.raises(NoOpError, match="its prompt equals the source's"):
        session.run(EditRequest((Edit("A RED  cat", "p2p"),), **given))
    said = session.run(EditRequest((Edit("A RED  cat", "p2p"),), allow_no_op=True, **given)).warnings
    assert any("'A RED  cat' is the same text as 'a red cat'" in text for text in said)
    assert any(text.startswith("the negative prompt is longer than 77 tokens") for text in said)
