"""Hooks on real transformers of many families: what came is passed on, what is replaced is all there is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from attnctl.attend import Attend
from attnctl.branches import Branches, Row
from attnctl.controller import Controller
from attnctl.engine.attach import Attachment, attached
from attnctl.engine.operation import Bound
from attnctl.engine.processor import ControlledProcessor
from attnctl.engine.resolving import resolve
from attnctl.errors import ModelError
from attnctl.sites import Layout, Site, Where
from attnctl.steps import Step
from attnctl.testing import tiny_flux, tiny_sd3
from attnctl.testing.conformance import distance
from attnctl.testing.explicit import ExplicitAttention

STEP = Step(0, 1, 500)
ROWS = (Row("source", "cond"), Row("edit", "cond"))
IMAGE = {"image": "source"}
Made = tuple[Any, dict[str, Any]]


@pytest.fixture(autouse=True)
def _weights_from_a_seed() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def told(t: float) -> Tensor:
    return torch.full((2,), t)


def sd3(*, dual: bool = True, dtype: torch.dtype = torch.float32) -> Made:
    model = tiny_sd3(dual=dual, t5=False).transformer.to(dtype)
    x, text, pooled = random(2, 16, 8, 12), random(2, 9, 80, seed=1), random(2, 64, seed=2)
    call = {"hidden_states": x, "encoder_hidden_states": text, "pooled_projections": pooled}
    return model, {name: value.to(dtype) for name, value in call.items()} | {"timestep": told(600.0)}


def flux(dtype: torch.dtype = torch.float32) -> Made:
    model = tiny_flux().transformer.to(dtype)
    at = torch.arange(24)
    call = {
        "hidden_states": random(2, 24, 64),
        "encoder_hidden_states": random(2, 9, 48, seed=1),
        "pooled_projections": random(2, 32, seed=2),
        "img_ids": torch.stack([at * 0, at // 6, at % 6], -1).float(),
        "txt_ids": torch.zeros(9, 3),
    }
    return model, {n: v.to(dtype) for n, v in call.items()} | {"timestep": told(0.6), "guidance": told(3.5)}


def qwen_image() -> Made:
    model = diffusers.QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=3,
        joint_attention_dim=24,
        axes_dims_rope=(8, 4, 4),
    )
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[0, 5:] = False
    call: dict[str, Any] = {"hidden_states": random(2, 12, 16), "encoder_hidden_states": random(2, 7, 24, seed=1)}
    return model, call | {"encoder_hidden_states_mask": mask, "timestep": told(0.7), "img_shapes": [[(1, 3, 4)]] * 2}


def z_image() -> Made:
    model = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=48,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=3,
        n_kv_heads=3,
        cap_feat_dim=24,
        axes_dims=[8, 4, 4],
        axes_lens=[64, 32, 32],
    )
    pictures = [random(4, 1, 6, 8, seed=i) for i in range(2)]
    return model, {"x": pictures, "t": told(0.7), "cap_feats": [random(7, 24), random(5, 24, seed=1)]}


def pixart() -> Made:
    model = diffusers.PixArtTransformer2DModel(
        num_attention_heads=3,
        attention_head_dim=8,
        num_layers=2,
        cross_attention_dim=24,
        sample_size=8,
        caption_channels=20,
        use_additional_conditions=False,
    )
    call: dict[str, Any] = {"hidden_states": random(2, 4, 8, 8), "encoder_hidden_states": random(2, 7, 20, seed=1)}
    mask = torch.tensor([[1.0] * 5 + [0.0] * 2, [1.0] * 7])
    none = {"resolution": None, "aspect_ratio": None}
    return model, call | {"timestep": told(5), "added_cond_kwargs": none, "encoder_attention_mask": mask}


def sana() -> Made:
    model = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=3,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=3,
        cross_attention_head_dim=8,
        cross_attention_dim=24,
        caption_channels=20,
        sample_size=8,
    )
    call = {"hidden_states": random(2, 4, 8, 8), "encoder_hidden_states": random(2, 7, 20, seed=1)}
    return model, call | {"timestep": told(5)}


def flux2() -> Made:
    model = diffusers.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=3,
        joint_attention_dim=24,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
    )
    call = {"hidden_states": random(2, 12, 16), "encoder_hidden_states": random(2, 7, 24, seed=1)}
    ids = {"img_ids": random(2, 12, 4).round(), "txt_ids": torch.zeros(2, 7, 4)}
    return model, call | ids | {"timestep": told(0.7), "guidance": told(3.0)}


def sd3_plain() -> Made:
    return sd3(dual=False)


def run(made: Made) -> Tensor:
    model, call = made
    with torch.no_grad():
        out = model.eval()(**call, return_dict=False)[0]
    return out if isinstance(out, Tensor) else torch.stack(list(out))


def layers(model: Any) -> list[str]:
    return [name for name, module in model.named_modules() if hasattr(module, "processor")]


def same(call: Any, q: Any, k: Any, v: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q["self"], k["self"], v["self"]


@contextmanager
def controlled(model: Any, paths: list[str] | None = None, **action: Any) -> Iterator[Attachment]:
    """Attach to every attention layer under a kind that asks nothing of its tokens; the operation is set."""
    sites = tuple(Site(path, "self", "double", 0, 2, 3) for path in paths or layers(model))
    controller = Controller("c", Where(kind="self"), **(action or {"on_qkv": same}))
    bound = Bound(controller, "edit", "source", sites, (0,), len(sites), differs=True)
    with attached(model, [bound]) as attachment:
        for site, processor in attachment.processors.items():
            processor.op = resolve(site, STEP, Branches(ROWS), [bound], (1, 1), 1, torch.device("cpu"))
        yield attachment


FAMILIES = [sd3, sd3_plain, flux, qwen_image, z_image, pixart, flux2]


@pytest.mark.parametrize("make", [*FAMILIES, sana])
def test_an_attached_model_that_edits_nothing_is_the_stock_model_to_the_bit(make: Callable[[], Made]) -> None:
    made = make()
    stock, before = run(made), [made[0].get_submodule(path).processor for path in layers(made[0])]
    with controlled(made[0]) as attachment:
        attachment.rest()
        assert all(isinstance(made[0].get_submodule(path).processor, ControlledProcessor) for path in layers(made[0]))
        assert torch.equal(run(made), stock)
    after = [made[0].get_submodule(path).processor for path in layers(made[0])]
    assert all(a is b for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("make", FAMILIES)
def test_an_operation_that_changes_nothing_is_the_stock_model_to_the_bit(make: Callable[[], Made]) -> None:
    made = make()
    stock = run(made)
    with controlled(made[0]) as attachment:
        assert torch.equal(run(made), stock)
        assert len(attachment.processors) == len(layers(made[0])) >= 2


@pytest.mark.parametrize("make", FAMILIES)
def test_values_of_the_source_in_every_layer_arrive(make: Callable[[], Made]) -> None:
    """The hook is real in each family: an edit moves its own row and no other."""
    made = make()
    stock = run(made)
    with controlled(made[0], attend=Attend(v="source")):
        edited = run(made)
    assert torch.equal(edited[0], stock[0])
    assert distance(edited[1], stock[1]) > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [sd3, flux])
def test_half_precision_keeps_its_bits(make: Callable[..., Made], dtype: torch.dtype) -> None:
    made = make(dtype=dtype)
    stock = run(made)
    with controlled(made[0]) as attachment:
        assert torch.equal(run(made), stock)
        attachment.rest()
        assert torch.equal(run(made), stock)


def test_dual_blocks_share_a_processor_and_get_it_back() -> None:
    model, _ = sd3()
    block = model.transformer_blocks[0]
    shared = block.attn.processor
    assert block.attn2.processor is shared
    with controlled(model, ["transformer_blocks.0.attn2"]) as attachment:
        assert block.attn.processor is shared, "a layer without a controller was touched"
        assert block.attn2.processor is not shared
    with controlled(model) as attachment:
        assert block.attn.processor is not block.attn2.processor
        assert len(attachment.processors) == 9
    assert block.attn.processor is shared
    assert block.attn2.processor is shared


class AttendingByHand(TorchFunctionMode):
    """Does every attention call in a way of its own; everything else as it is."""

    def attend(self, given: dict[str, Any]) -> Any:
        """Return what attention gives for ``query``, ``key``, ``value`` and further arguments."""
        raise NotImplementedError

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        return self.attend({**dict(zip(("query", "key", "value"), args, strict=False)), **kwargs})


class SwapImageRows(AttendingByHand):
    """Gives the second row the first one's image queries and keys, by hand, in every attention call."""

    def __init__(self, image: slice, tokens: int) -> None:
        super().__init__()
        self.image, self.tokens = image, tokens

    def attend(self, given: dict[str, Any]) -> Any:
        if given["query"].shape[2] == self.tokens:
            for part in ("query", "key"):
                given[part] = given[part].clone()
                given[part][1, :, self.image] = given[part][0, :, self.image]
        return F.scaled_dot_product_attention(**given)


@pytest.mark.parametrize(("make", "image"), [(sd3, slice(0, 24)), (sd3_plain, slice(0, 24)), (flux, slice(9, 33))])
def test_image_queries_and_keys_of_the_source_as_if_swapped_by_hand(
    make: Callable[[], Made], image: slice, joint: Any
) -> None:
    made = make()
    stock = run(made)
    with SwapImageRows(image, 33):
        by_hand = run(made)
    bound = joint.bind(made[0], Controller("c", Where(kind="joint"), attend=Attend(IMAGE, IMAGE)), "edit", 1, (8, 12))
    with attached(made[0], [bound]) as attachment:
        attachment.aim(STEP, Branches(ROWS), (8, 12), 9, torch.device("cpu"))
        for _ in range(2):  # first while it is not known whether the edit acts, then as it is
            edited = run(made)
            assert torch.equal(edited[0], stock[0])
            assert distance(edited[1], by_hand[1]) < 1e-6
    assert distance(edited[1], stock[1]) > 0.02
    assert bound.differs
    assert len(bound.acted) == len(bound.sites)


class ByDefinition(AttendingByHand):
    """Attends by explicit maps in float64: the second row under an expression, at calls with so many tokens."""

    def __init__(self, expression: Any, layout: Layout) -> None:
        super().__init__()
        self.expression, self.layout = expression, layout

    def attend(self, given: dict[str, Any]) -> Any:
        out = F.scaled_dot_product_attention(**given)
        if out.shape[2] != self.layout.query_count:
            return out
        lanes = [{"source": given[part][0], "self": given[part][1]} for part in ("query", "key", "value")]
        return torch.stack([out[0], ExplicitAttention(*lanes, self.layout).attend(self.expression).to(out.dtype)])


TO_IMAGE = Attend("source", "source", to="image")
WORDS = Attend(to="image", values="text")
EDITS = {
    "shared": Attend(k=IMAGE, v=IMAGE),
    "full": TO_IMAGE,
    "copy": Attend("source", "source", to="image", values="image") + WORDS,
    "mass": Attend("source", "source", to="image", keys="image", mass=True) + WORDS,
    "splice": Attend("source", "source", to="image", keys="image") | Attend(to="image", keys="text"),
    "values of words": Attend(v={"text": "source"}),
}


@pytest.mark.parametrize("grad", [False, True], ids=["merged", "folded"])
@pytest.mark.parametrize("make", [sd3, flux])
@pytest.mark.parametrize("name", EDITS)
def test_whole_models_under_an_edit_are_what_explicit_maps_give(
    make: Callable[[], Made], name: str, grad: bool, joint: Any
) -> None:
    made = make()
    stock = run(made)
    controller = Controller("c", Where(attends=("image", "text")), attend=EDITS[name])
    bound = joint.bind(made[0], controller, "edit", 1, (8, 12))
    with ByDefinition(EDITS[name], bound.sites[0].layout((8, 12), 9)):
        expected = run(made)
    with attached(made[0], [bound]) as attachment:
        attachment.aim(STEP, Branches(ROWS), (8, 12), 9, torch.device("cpu"))
        with torch.set_grad_enabled(grad):
            edited = made[0](**made[1], return_dict=False)[0].detach()
    assert torch.equal(edited[0], stock[0])
    assert distance(edited[1], expected[1]) < 5e-6
    assert distance(edited[1], stock[1]) > 1e-2
    assert bound.differs


def test_a_selector_by_segments_finds_the_pictures_own_attention_too(joint: Any) -> None:
    sites = joint.sites_of(sd3()[0])
    image, words = (Where(attends=("image", key)).select(sites, (8, 12)) for key in ("image", "text"))
    assert len(image) == 9
    assert len(words) == 6
    assert {s.kind for s in words} == {"joint"}


# -- what diffusers reads from a processor -----------------------------------------------------------------------------


@pytest.mark.parametrize("make", [*FAMILIES, sana])
def test_the_originals_signature_is_shown(make: Callable[[], Made]) -> None:
    """By it diffusers decides which arguments a processor is given."""
    model, _ = make()
    expected = [inspect.signature(model.get_submodule(path).processor.__call__) for path in layers(model)]
    with controlled(model):
        found = [inspect.signature(model.get_submodule(path).processor.__call__) for path in layers(model)]
        assert found == expected


def test_settings_of_the_backend_reach_the_original() -> None:
    model, _ = flux()
    original = model.transformer_blocks[0].attn.processor
    with controlled(model):
        model.set_attention_backend("native")
        wrapper = model.transformer_blocks[0].attn.processor
        assert wrapper._attention_backend == original._attention_backend is not None
        wrapper._parallel_config = "asked for"
        assert original._parallel_config == wrapper._parallel_config == "asked for"
    assert model.transformer_blocks[0].attn.processor is original
    with controlled(sd3()[0]) as attachment:  # whose processors know no backends
        assert not any(hasattr(p, "_attention_backend") for p in attachment.processors.values())


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_attention_without_a_softmax_is_an_error_not_a_silent_no_op() -> None:
    made = sana()
    with (
        controlled(made[0]),
        pytest.raises(ModelError, match=r"SanaLinearAttnProcessor2_0 at transformer_blocks.0.attn1 never") as caught,
    ):
        run(made)
    assert "attention_backend('native')" in caught.value.hint
    text = [path for path in layers(made[0]) if path.endswith("attn2")]
    with controlled(made[0], text, attend=Attend(v="source")):
        run(made)


class Twice:
    """A processor that attends twice, as guidance by perturbed attention does."""

    def __call__(self, attn: Any, hidden_states: Tensor, **_: Any) -> Tensor:
        q = hidden_states[:, None]
        return (F.scaled_dot_product_attention(q, q, q) + F.scaled_dot_product_attention(q, q, q))[:, 0]


def test_a_layer_that_attends_twice_is_refused() -> None:
    site = Site("there.attn", "self", "double", 0, 2, 1)
    processor = ControlledProcessor(Twice(), site)
    x = random(2, 4, 8)
    processor(torch.nn.Identity(), x)
    bound = Bound(Controller("c", Where(kind="self"), on_qkv=same), "edit", "source", (site,), (0,), 1, differs=True)
    processor.op = resolve(site, STEP, Branches(ROWS), [bound], (1, 4), 4, torch.device("cpu"))
    with pytest.raises(ModelError, match=r"Twice at there.attn called scaled dot-product attention 2 times"):
        processor(torch.nn.Identity(), x)


class Odd:
    """A processor that attends with a setting of its own."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def __call__(self, attn: Any, hidden_states: Tensor) -> Tensor:
        q = hidden_states[:, None]
        return F.scaled_dot_product_attention(q, q, q, **self.settings)[:, 0]


@pytest.mark.parametrize("settings", [{"scale": 1.0}, {"is_causal": True}])
def test_attention_of_another_kind_is_refused(settings: dict[str, Any]) -> None:
    site = Site("there.attn", "self", "double", 0, 2, 1)
    bound = Bound(Controller("c", Where(kind="self"), on_qkv=same), "edit", "source", (site,), (0,), 1, differs=True)
    for given, allowed in ((settings, False), ({"scale": 8**-0.5}, True)):
        processor = ControlledProcessor(Odd(**given), site)
        processor.op = resolve(site, STEP, Branches(ROWS), [bound], (1, 4), 4, torch.device("cpu"))
        if allowed:
            processor(torch.nn.Identity(), random(2, 4, 8))
            continue
        with pytest.raises(ModelError, match=r"there.attn attends with a causal mask"):
            processor(torch.nn.Identity(), random(2, 4, 8))


def test_tokens_that_nobody_knows_of_are_an_error(joint: Any) -> None:
    made = flux()
    bound = joint.bind(made[0], Controller("c", Where(kind="joint"), attend=Attend(IMAGE, IMAGE)), "edit", 1, (8, 12))
    with attached(made[0], [bound]) as attachment:
        attachment.aim(STEP, Branches(ROWS), (8, 12), 8, torch.device("cpu"))
        with pytest.raises(
            ModelError, match=r"transformer_blocks.0.attn attends with 33 queries to 33 keys.*32 and 32"
        ):
            run(made)


def test_fused_projections_that_leave_out_norms_are_refused() -> None:
    with_norms, _ = sd3()
    with_norms.fuse_qkv_projections()
    assert type(with_norms.transformer_blocks[4].attn.processor).__name__ == "FusedJointAttnProcessor2_0"
    with (
        pytest.raises(ModelError, match=r"transformer_blocks.4.attn uses FusedJoint.* leaves out this model's norms"),
        controlled(with_norms, ["transformer_blocks.4.attn"]),
    ):
        pass
    made = sd3(dual=False)
    made[0].fuse_qkv_projections()
    stock = run(made)
    with controlled(made[0]):
        assert torch.equal(run(made), stock)
