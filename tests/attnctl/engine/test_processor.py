"""The one file that speaks diffusers' protocol: what it leaves alone, what it replaces, what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from attnctl.attend import Attend
from attnctl.branches import Branches, Row
from attnctl.controller import Controller
from attnctl.engine.kernels import explicit_map
from attnctl.engine.operation import Bound, Operation
from attnctl.engine.processor import ControlledProcessor
from attnctl.engine.resolving import resolve
from attnctl.errors import ModelError
from attnctl.model import Model
from attnctl.sites import Site, Where
from attnctl.steps import Step
from attnctl.testing.conformance import distance

ROWS = (Row("source", "uncond"), Row("edit", "uncond"), Row("source", "cond"), Row("edit", "cond"))
STEP = Step(0, 1, 501)
SIZE = (16, 16)


def operation(site: Site, controller: Controller | None, text_length: int = 77) -> Operation:
    if controller is None:
        controller = Controller(
            "none", where=Where(kind="self"), on_qkv=lambda c, q, k, v: (q["self"], k["self"], v["self"])
        )
    n = site.tokens(SIZE)
    keys = text_length if site.kind == "cross" else n
    bound = Bound(controller, "edit", "source", (site,), (0,), 1, differs=True)
    op = resolve(site, STEP, Branches(ROWS), [bound], site.grid(SIZE), keys, torch.device("cpu"))
    assert op is not None
    return op


def inputs(model: Model, site: Site) -> tuple[Any, Tensor, Tensor | None]:
    attn = model.unet.get_submodule(site.path)
    g = torch.Generator().manual_seed(site.layer)
    x = torch.randn(4, site.tokens(SIZE), attn.query_dim, generator=g)
    text = torch.randn(4, 77, attn.cross_attention_dim, generator=g) if site.kind == "cross" else None
    return attn, x, text


def attention_sites(model: Model) -> list[Site]:
    return [s for s in model.sites if s.kind != "feature"]


def fpe() -> Controller:
    return Controller("maps", where=Where(kind="self"), attend=Attend(q="source", k="source"))


def test_without_an_operation_the_original_runs(shared_tiny_model: Model) -> None:
    for site in attention_sites(shared_tiny_model):
        attn, x, text = inputs(shared_tiny_model, site)
        stock = attn.processor(attn, x, text)
        assert torch.equal(ControlledProcessor(attn.processor, site)(attn, x, text), stock)


@pytest.mark.parametrize("four_dimensional", [False, True])
def test_the_native_path_is_the_stock_processor_to_the_bit(shared_tiny_model: Model, four_dimensional: bool) -> None:
    for site in attention_sites(shared_tiny_model):
        attn, x, text = inputs(shared_tiny_model, site)
        if four_dimensional:
            x = x.transpose(1, 2).reshape(4, -1, *site.grid(SIZE))
        stock = attn.processor(attn, x, text)
        processor = ControlledProcessor(attn.processor, site)
        processor.op = operation(site, None)
        assert torch.equal(processor(attn, x, text), stock), site.path


def test_attention_with_norms_masks_and_residuals_is_the_stock_processor(shared_tiny_model: Model) -> None:
    """Features of diffusers' layers that Stable Diffusion's denoiser does not use, but its relatives do."""
    from diffusers.models.attention_processor import Attention, AttnProcessor2_0

    site = attention_sites(shared_tiny_model)[0]
    torch.manual_seed(0)
    for options in (
        {"residual_connection": True, "rescale_output_factor": 2.0, "norm_num_groups": 4},
        {"qk_norm": "layer_norm"},
        {"cross_attention_norm": "layer_norm", "cross_attention_dim": 16},
    ):
        attn = Attention(16, heads=2, dim_head=8, processor=AttnProcessor2_0(), **options).eval()
        n = site.tokens(SIZE)
        x = torch.randn(4, n, 16)
        text = torch.randn(4, n, 16) if "cross_attention_dim" in options else None
        mask = torch.where(torch.rand(4, 1, n) < 0.3, -10000.0, 0.0)
        processor = ControlledProcessor(attn.processor, site)
        processor.op = operation(site, None)
        with torch.no_grad():
            for given in (None, mask):
                assert torch.equal(processor(attn, x, text, given), attn.processor(attn, x, text, given)), options


def by_hand(attn: Any, x: Tensor, text: Tensor | None) -> Tensor:
    """The edited row of the published edit, every map explicit."""
    context = x if text is None else text
    q, k, v = (
        y.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        for y in (attn.to_q(x), attn.to_k(context), attn.to_v(context))
    )
    out = explicit_map(q, k) @ v
    out[3] = explicit_map(q[2], k[2]) @ v[3]
    return attn.to_out[0](out.transpose(1, 2).flatten(2))


def test_an_edit_is_what_the_explicit_map_gives(shared_tiny_model: Model) -> None:
    for site in attention_sites(shared_tiny_model):
        attn, x, text = inputs(shared_tiny_model, site)
        processor = ControlledProcessor(attn.processor, site)
        processor.op = operation(site, fpe())
        assert distance(processor(attn, x, text), by_hand(attn, x, text)) < 1e-6


def test_projections_that_nobody_reads_are_not_computed(shared_tiny_model: Model) -> None:
    """Rows that pass through each projection of an edited layer: the edit's own query and key are never made."""
    site = next(s for s in shared_tiny_model.sites if s.kind == "self" and s.layer == 2)
    attn, x, text = inputs(shared_tiny_model, site)
    rows: dict[str, int] = {}
    hooks = [
        getattr(attn, name).register_forward_hook(lambda m, i, out, name=name: rows.__setitem__(name, out.shape[0]))
        for name in ("to_q", "to_k", "to_v")
    ]
    try:
        for expression, expected in (
            (Attend(q="source", k="source"), {"to_q": 3, "to_k": 3, "to_v": 4}),
            (Attend(k="source", v="source"), {"to_q": 4, "to_k": 3, "to_v": 3}),
            (Attend(), {"to_q": 4, "to_k": 4, "to_v": 4}),
        ):
            processor = ControlledProcessor(attn.processor, site)
            processor.op = operation(site, Controller("c", where=Where(kind="self"), attend=expression))
            processor(attn, x, text)
            assert rows == expected, str(expression)
    finally:
        for hook in hooks:
            hook.remove()


# -- processors that are not the stock one -----------------------------------------------------------------------------


def test_fused_projections_keep_working(shared_tiny_model: Model, own_tiny_model: Model) -> None:
    plain_attn, x, _ = inputs(shared_tiny_model, attention_sites(shared_tiny_model)[0])
    site = attention_sites(own_tiny_model)[0]
    own_tiny_model.unet.fuse_qkv_projections()
    attn = own_tiny_model.unet.get_submodule(site.path)
    assert type(attn.processor).__name__ == "FusedAttnProcessor2_0"
    processor = ControlledProcessor(attn.processor, site)
    processor.op = operation(site, fpe())
    assert distance(processor(attn, x).detach(), by_hand(plain_attn, x, None)) < 1e-6


def ip_adapter(model: Model) -> Any:
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0

    site = next(s for s in attention_sites(model) if s.kind == "cross" and s.layer == 2)
    attn = model.unet.get_submodule(site.path)
    torch.manual_seed(1)
    processor = IPAdapterAttnProcessor2_0(attn.inner_dim, attn.cross_attention_dim, num_tokens=(4,), scale=0.7)
    for weight in processor.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    attn.set_processor(processor.requires_grad_(False))
    return site


def test_ip_adapter_keeps_acting_and_only_the_text_attention_is_edited(own_tiny_model: Model) -> None:
    site = ip_adapter(own_tiny_model)
    attn, x, text = inputs(own_tiny_model, site)
    g = torch.Generator().manual_seed(9)
    images = [torch.randn(4, 1, 4, attn.cross_attention_dim, generator=g)]
    stock = attn.processor(attn, x, (text, images))
    without = attn.processor(attn, x, (text, [images[0] * 0]))
    assert distance(stock, without) > 0.1  # the adapter acts at all

    processor = ControlledProcessor(attn.processor, site)
    assert torch.equal(processor(attn, x, (text, images)), stock)
    processor.op = operation(site, None)
    assert torch.equal(processor(attn, x, (text, images)), stock)

    processor.op = operation(site, fpe())
    edited = processor(attn, x, (text, images))
    assert torch.equal(edited[:3], stock[:3])
    picture_part = stock - _text_part(attn, x, text, edit=False)
    assert distance(edited[3], (_text_part(attn, x, text, edit=True) + picture_part)[3]) < 1e-5
    assert distance(edited[3], stock[3]) > 1e-2


def _text_part(attn: Any, x: Tensor, text: Tensor | None, *, edit: bool) -> Tensor:
    q, k, v = (
        y.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for y in (attn.to_q(x), attn.to_k(text), attn.to_v(text))
    )
    out = explicit_map(q, k) @ v
    if edit:
        out[3] = explicit_map(q[2], k[2]) @ v[3]
    return attn.to_out[0](out.transpose(1, 2).flatten(2))


class Strange:
    """A stranger's processor that computes its maps by hand."""

    def __call__(self, attn: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_states


def test_a_processor_that_never_calls_fused_attention_is_an_error_not_a_silent_no_op(
    shared_tiny_model: Model,
) -> None:
    site = attention_sites(shared_tiny_model)[0]
    attn, x, _ = inputs(shared_tiny_model, site)
    processor = ControlledProcessor(Strange(), site)
    assert torch.equal(processor(attn, x), x)
    processor.op = operation(site, fpe())
    with pytest.raises(ModelError, match=rf"Strange at {site.path} never called"):
        processor(attn, x)


def sliced() -> Any:
    from diffusers.models.attention_processor import SlicedAttnProcessor

    return SlicedAttnProcessor(1)


def explicit() -> Any:
    from diffusers.models.attention_processor import AttnProcessor

    return AttnProcessor()


@pytest.mark.parametrize("make", [sliced, explicit])
def test_processors_whose_attention_cannot_be_hooked_are_refused(
    make: Callable[[], Any], own_tiny_model: Model, run_with: Callable[..., Any]
) -> None:
    """And whatever was installed before the refusal is put back."""
    last = attention_sites(own_tiny_model)[-2]
    own_tiny_model.unet.get_submodule(last.path).set_processor(make())
    before = dict(own_tiny_model.unet.attn_processors)
    with pytest.raises(ModelError, match=rf"{last.path} uses {type(make()).__name__}") as caught:
        run_with([fpe()], model=own_tiny_model)
    assert "set_attn_processor" in caught.value.hint
    assert own_tiny_model.unet.attn_processors == before
