"""Joint attention as the executor runs it, against explicit maps, in both orders of tokens and on odd grids."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from attnctl.attend import Attend, AttendJoint, AttendSum, AttentionCall
from attnctl.branches import Branches, Row
from attnctl.controller import Controller, Observation
from attnctl.engine import kernels
from attnctl.engine.fused import Projections, execute
from attnctl.engine.operation import Bound, Operation, Piece, RowJoint, RowTerm
from attnctl.engine.resolving import resolve
from attnctl.errors import PluginError, SelectionError
from attnctl.sites import Site, Where
from attnctl.steps import Step
from attnctl.testing.explicit import ExplicitAttention

ROWS = (Row("source", "cond"), Row("edit[0]", "cond"), Row("edit[1]", "cond"))
STEP = Step(1, 4, 501)
IMAGE_FIRST = Site("a.attn", "joint", "double", 3, 2, 2, ("image", "text"))
TEXT_FIRST = Site("b.attn", "joint", "single", 3, 2, 2, ("text", "image"))
ORDERS = pytest.mark.parametrize("site", [IMAGE_FIRST, TEXT_FIRST], ids=["image-text", "text-image"])
GRID, TEXT = (3, 5), 7
IMAGE = {"image": "source"}

FULL = Attend("source", "source", "self", to="image")
COPY = Attend("source", "source", to="image", values="image") + Attend(to="image", values="text")
MASS = Attend("source", "source", to="image", keys="image", mass=True) + Attend(to="image", values="text")
SPLICE = Attend("source", "source", to="image", keys="image") | Attend(to="image", keys="text")
FORMS: dict[str, Any] = {
    "whole": Attend("source", "source", "self"),
    "image queries and keys": Attend(IMAGE, IMAGE),
    "image keys and values": Attend(k=IMAGE, v=IMAGE),
    "image keys and values for the picture": Attend(k=IMAGE, v=IMAGE, to="image"),
    "values of all": Attend(v="source"),
    "full": FULL,
    "copy": COPY,
    "mass": MASS,
    "splice": SPLICE,
    "weighted": 0.25 * SPLICE + 0.75 * FULL,
    "shared": Attend(k=("self", "source"), v=("self", "source"), keys="image", to="image"),
    "both streams": FULL + Attend(k="source", v="source", to="text"),
    "everywhere and the picture again": Attend() + Attend("source", "source", "source", -0.5, to="image"),
}


def call_of(site: Site, grid: tuple[int, int] = GRID, text: int = TEXT, lane: str = "edit[0]") -> AttentionCall:
    keys = site.layout((grid[0] * 2, grid[1] * 2), text).key_count
    return AttentionCall(site, STEP, Branches(ROWS), grid, keys, lane, "cond")


def operation(
    site: Site, action: Any, grid: tuple[int, int] = GRID, text: int = TEXT, *, proven: bool = True, **fields: Any
) -> tuple[Operation, Bound]:
    fields = fields or {"attend": action}
    bound = Bound(Controller("c", Where(attends=("image", "image")), **fields), "edit[0]", "source", (site,), (1,), 1)
    bound.differs = proven
    keys = call_of(site, grid, text).keys
    op = resolve(site, STEP, Branches(ROWS), [bound], grid, keys, torch.device("cpu"))
    assert op is not None
    return op, bound


def project(tokens: int, width: int = 8, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(len(ROWS), 2, tokens, width, generator=g, dtype=torch.float64).to(dtype) for _ in "qkv")


def fused(op: Operation, qkv: tuple[Tensor, ...], mask: Tensor | None = None) -> Tensor:
    """Give the executor only what the operation says that it uses."""
    used = [op.used(part) for part in "qkv"]
    parts = [x[list(rows)] for x, rows in zip(qkv, used, strict=True)]
    return execute(op, Projections(*parts, *used, mask))  # type: ignore[arg-type]


def explicit(expression: Any, qkv: tuple[Tensor, ...], call: AttentionCall) -> Tensor:
    def lanes(x: Tensor) -> dict[str, Tensor]:
        return {"source": x[0], "self": x[1], "edit[0]": x[1], "edit[1]": x[2]}

    return ExplicitAttention(*map(lanes, qkv), call.segments, call).attend(expression)


def distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@ORDERS
@pytest.mark.parametrize("grad", [False, True], ids=["merged", "folded"])
@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_what_explicit_maps_give(site: Site, name: str, grad: bool) -> None:
    call = call_of(site)
    op, _ = operation(site, FORMS[name])
    for dtype, near in {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}.items():
        qkv = project(call.keys, dtype=dtype)
        with torch.set_grad_enabled(grad):
            out = fused(op, qkv)
        assert out.dtype == dtype
        assert distance(out[1], explicit(FORMS[name], qkv, call)) < near, dtype
        plain = F.scaled_dot_product_attention(*qkv)
        assert torch.equal(out[[0, 2]], plain[[0, 2]]), "a row that nobody edits moved"
        assert distance(out[1], plain[1]) > 0.1, "the edit is too faint to test anything"


@ORDERS
@pytest.mark.parametrize("name", ["whole", "full", "copy", "mass", "splice", "image queries and keys"])
@pytest.mark.parametrize("grad", [False, True], ids=["merged", "folded"])
def test_a_source_like_the_edit_gives_plain_attention(site: Site, name: str, grad: bool) -> None:
    call = call_of(site)
    qkv = project(call.keys)
    for x in qkv:
        x[0] = x[1]
    op, bound = operation(site, FORMS[name], proven=False)
    with torch.set_grad_enabled(grad):
        assert distance(fused(op, qkv)[1], F.scaled_dot_product_attention(*qkv)[1]) < 1e-14
        assert not bound.differs
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            fused(op, tuple(x.to(dtype) for x in qkv))  # type: ignore[arg-type]
            assert not bound.differs, f"rounding in {dtype} was taken for an edit"
        fused(op, tuple(x.float() for x in project(call.keys)))  # type: ignore[arg-type]
    assert bound.differs
    assert bound.acted == {(site.path, 1, "cond")}


@ORDERS
@pytest.mark.parametrize("name", ["copy", "mass", "splice", "image queries and keys", "shared"])
def test_gradients_flow_through_every_form(site: Site, name: str) -> None:
    call = call_of(site, (2, 3), 4)
    op, _ = operation(site, FORMS[name], (2, 3), 4)
    weights = torch.randn(2, call.keys, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    grads = []
    for run in (lambda qkv: fused(op, qkv)[1], lambda qkv: explicit(FORMS[name], qkv, call)):
        qkv = tuple(x.requires_grad_() for x in project(call.keys, 4))
        grads.append(torch.autograd.grad((run(qkv) * weights).sum(), qkv))
    for part, ours, by_definition in zip("qkv", *grads, strict=True):
        assert distance(ours, by_definition) < 1e-13, part


@st.composite
def expressions(draw: st.DrawFn) -> tuple[Site, tuple[int, int], int, AttendSum]:
    """A random expression over segments, for a random order, grid and length of the text."""
    site = draw(st.sampled_from([IMAGE_FIRST, TEXT_FIRST]))
    grid, text = draw(st.tuples(st.integers(1, 4), st.integers(1, 4))), draw(st.integers(1, 5))
    call = call_of(site, grid, text)
    names = st.sampled_from(["self", "source", "edit[1]"])
    segment = st.sampled_from(["image", "text"])
    lane = st.one_of(names, st.dictionaries(segment, names))
    g = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    terms: list[Attend | AttendJoint] = []
    for _ in range(draw(st.integers(1, 3))):
        to, joined = draw(st.none() | segment), draw(st.integers(1, 2))
        if draw(st.integers(0, 3)) == 0:
            parts = (Attend(draw(lane), draw(lane), draw(lane), to=to, keys=name) for name in ("text", "image"))
            terms.append(AttendJoint(tuple(parts), draw(st.sampled_from([1.0, -0.5]))))
            continue
        kept = draw(st.sampled_from([{}, {"keys": "image"}, {"keys": "text", "mass": True}, {"values": "text"}]))
        read = kept.get("keys", kept.get("values"))
        size = call.keys if read is None or draw(st.booleans()) else len(range(call.keys)[call.segments.keys[read]])
        shape = draw(st.sampled_from([None, (size * joined,), (size * joined, size * joined)]))
        value_map = None if shape is None else torch.randn(shape, generator=g, dtype=torch.float64)
        mask = None
        if draw(st.booleans()):
            mask = torch.rand((call.queries, call.keys * joined), generator=g) < 0.6
            for at in call.segments.keys.values():
                mask[:, at.start] = True  # a query that may see nothing has no attention
        lanes = [tuple(draw(lane) for _ in range(joined)) for _ in "kv"]
        weight = draw(st.sampled_from([1.0, 0.5, -2.0]))
        terms.append(Attend(draw(lane), *lanes, weight, value_map, mask, to, **kept))  # type: ignore[arg-type]
    return site, grid, text, AttendSum(tuple(terms))


@hypothesis_settings(max_examples=150, deadline=None)
@given(made=expressions(), width=st.integers(1, 6), grad=st.booleans())
def test_any_expression_over_segments_is_what_its_definition_says(made: Any, width: int, grad: bool) -> None:
    site, grid, text, expression = made
    call = call_of(site, grid, text)
    qkv = project(call.keys, width)
    with torch.set_grad_enabled(grad):
        out = fused(operation(site, expression, grid, text)[0], qkv)[1]
    torch.testing.assert_close(out, explicit(expression, qkv, call), rtol=1e-11, atol=1e-12)


UNET_SELF = Site("u.attn1", "self", "up", 3, 2, 2)
UNET_CROSS = Site("u.attn2", "cross", "up", 3, 2, 2)


def said(site: Site, expression: Any) -> list[tuple[Any, ...]]:
    """What the edited row does, as plain data."""
    terms = operation(site, expression)[0].terms[1]
    return [(t.q, t.k, t.v, t.weight, t.to, t.mass) if isinstance(t, RowTerm) else t.parts for t in terms]


@pytest.mark.parametrize(
    ("expression", "alike"),
    [
        (Attend(IMAGE, IMAGE), Attend("source", "source")),
        (Attend(IMAGE, {"image": "source", "text": "edit[1]"}, to="image"), Attend("source", "source")),
        (FULL, Attend("source", "source")),
        (COPY, Attend("source", "source")),
        (MASS, Attend("source", "source")),
        (SPLICE, Attend("source", "source")),
        (SPLICE * 0.5 + COPY * 0.5, 0.5 * Attend("source", "source") + 0.5 * Attend("source", "source")),
    ],
    ids=str,
)
def test_on_a_unets_self_attention_segments_are_the_lanes_to_the_bit(expression: Any, alike: Any) -> None:
    assert said(UNET_SELF, expression) == said(UNET_SELF, alike)
    qkv = project(15, dtype=torch.float32)
    ours, plain = (fused(operation(UNET_SELF, e)[0], qkv) for e in (expression, alike))
    assert torch.equal(ours, plain)


def test_on_cross_attention_keys_are_the_texts() -> None:
    assert said(UNET_CROSS, Attend(k={"text": "source"}, v=IMAGE)) == said(UNET_CROSS, Attend(k="source"))
    assert said(UNET_CROSS, Attend(k="source", values="text")) == said(UNET_CROSS, Attend(k="source"))


def test_mappings_that_cover_a_joint_site_are_the_lane() -> None:
    both = {"text": "source", "image": "source"}
    op, _ = operation(TEXT_FIRST, Attend(both, both, "self"))
    assert isinstance(op.terms[1][0], RowTerm)
    assert op.terms[1][0].plain
    assert said(TEXT_FIRST, Attend(both, both)) == said(TEXT_FIRST, Attend("source", "source"))


def test_one_softmax_over_the_same_queries_is_one_attention() -> None:
    joint = Attend(k="source", keys="image") | Attend(k="edit[1]", keys="text")
    (term,) = operation(TEXT_FIRST, joint)[0].terms[1]
    assert isinstance(term, RowTerm)
    assert term.k == (Piece(2, 0, TEXT), Piece(0, TEXT, TEXT + 15))
    assert isinstance(operation(TEXT_FIRST, SPLICE)[0].terms[1][-1], RowJoint)


@pytest.mark.parametrize("expression", [Attend(to="text"), Attend(keys="text", mass=True), AttendSum(())], ids=str)
def test_an_expression_that_says_nothing_at_a_site_is_an_error(expression: Any) -> None:
    with pytest.raises(PluginError, match=r"no term that says anything at u.attn1 \(self attention, step 1\)"):
        operation(UNET_SELF, expression)


@ORDERS
def test_only_rows_that_are_read_are_asked_for(site: Site) -> None:
    op, _ = operation(site, MASS)
    op.terms = [op.terms[1]]  # the edited row alone
    assert op.used("q") == (0, 1)
    assert op.used("k") == (0, 1)
    assert op.used("v") == (1,)
    op.terms = [(RowTerm.own(2), operation(site, SPLICE)[0].terms[1][-1])]
    assert 2 in op.used("q")


@ORDERS
@pytest.mark.parametrize("name", ["copy", "mass", "splice", "image queries and keys", "shared"])
@pytest.mark.parametrize("columns", [1, 3])
def test_observers_read_edited_maps_over_all_keys(site: Site, name: str, columns: int) -> None:
    call = call_of(site)
    wanted = torch.eye(call.keys)[:, [call.segments.keys["text"].start + i for i in range(columns)]]
    seen: list[Tensor] = []
    read = Controller(
        "r", Where(attends=("image", "text")), observe=Observation(wanted, lambda _, out: seen.append(out))
    )
    edit = Bound(Controller("c", Where(kind="joint"), attend=FORMS[name]), "edit[0]", "source", (site,), (1,), 1)
    edit.differs = True
    reader = Bound(read, "edit[0]", "source", (site,), (1,), 1)
    op = resolve(site, STEP, Branches(ROWS), [edit, reader], GRID, call.keys, torch.device("cpu"))
    assert op is not None
    q, k, v = project(call.keys)
    fused(op, (q, k, v))
    indicator = torch.zeros(len(ROWS), 2, call.keys, columns, dtype=torch.float64) + wanted.double()
    torch.testing.assert_close(seen[0], explicit(FORMS[name], (q, k, indicator), call), rtol=1e-12, atol=1e-13)


def test_callbacks_get_all_tokens_of_a_joint_site() -> None:
    seen: dict[str, tuple[int, ...]] = {}

    def on_qkv(call: AttentionCall, q: Any, k: Any, v: Any) -> tuple[Tensor, Tensor, Tensor]:
        at = call.segments.queries["image"]
        seen["q"] = tuple(q["self"].shape)
        mixed = q["self"].clone()
        mixed[:, at] = q["source"][:, at]
        keys = k["self"].clone()
        keys[:, at] = k["source"][:, at]
        return mixed, keys, v["self"]

    def on_probs(call: AttentionCall, probs: Any) -> Tensor:
        a = probs["self"].clone()
        seen["a"] = tuple(a.shape)
        at = call.segments.queries["image"]
        a[:, at] = probs["source"][:, at]
        return a

    call = call_of(TEXT_FIRST)
    qkv = project(call.keys)
    swapped = fused(operation(TEXT_FIRST, None, on_qkv=on_qkv)[0], qkv)
    torch.testing.assert_close(swapped[1], explicit(FORMS["image queries and keys"], qkv, call))
    full = fused(operation(TEXT_FIRST, None, on_probs=on_probs)[0], qkv)
    torch.testing.assert_close(full[1], explicit(FULL, qkv, call))
    assert seen == {"q": (2, 22, 8), "a": (2, 22, 22)}


@ORDERS
@pytest.mark.parametrize("kind", ["bool", "added"])
@pytest.mark.parametrize("grad", [False, True], ids=["merged", "folded"])
def test_the_models_own_mask_stays_under_every_form(site: Site, kind: str, grad: bool) -> None:
    """Padded text: no query sees it, in no part; a part of which a query sees nothing weighs nothing."""
    call = call_of(site)
    may = torch.ones(len(ROWS), 1, 1, call.keys, dtype=torch.bool)
    text = call.segments.keys["text"]
    may[0, :, :, text.stop - 3 : text.stop] = False
    may[1, :, :, text] = False  # the edited lane has no text at all
    mask = may if kind == "bool" else torch.zeros(may.shape, dtype=torch.float64).masked_fill(~may, float("-inf"))
    qkv = project(call.keys)
    op, _ = operation(site, SPLICE)
    with torch.set_grad_enabled(grad):
        out = fused(op, qkv, mask)
    q, k, v = (x[:, :, call.segments.keys["image"]] for x in qkv)
    alone = F.scaled_dot_product_attention(q[:1], k[:1], v[1:2])
    torch.testing.assert_close(out[1:2, :, call.segments.queries["image"]], alone)


def test_without_a_kernel_that_gives_sums_parts_are_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    call = call_of(IMAGE_FIRST)
    qkv = project(call.keys, dtype=torch.float32)
    op, _ = operation(IMAGE_FIRST, SPLICE)
    with torch.no_grad():
        merged = fused(op, qkv)
        assert kernels.gives_sums("cpu", torch.float32, 8)
        monkeypatch.setattr(kernels, "gives_sums", lambda *_: False)
        folded = fused(op, qkv)
    assert not torch.equal(merged, folded), "both took the same way"
    assert distance(folded[1], merged[1]) < 1e-6


def test_a_kernel_that_gives_wrong_sums_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = kernels._with_sums

    def wrong(*args: Any) -> tuple[Tensor, Tensor]:
        out, sums = right(*args)
        return out, sums * 1.01

    monkeypatch.setattr(kernels, "_with_sums", wrong)
    assert not kernels.gives_sums.__wrapped__("cpu", torch.float32, 8)
    monkeypatch.setattr(kernels, "_with_sums", right)
    assert kernels.gives_sums.__wrapped__("cpu", torch.float32, 8)
    assert not kernels.gives_sums.__wrapped__("meta", torch.float32, 8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_this_torch_gives_sums_on_the_cpu(dtype: torch.dtype) -> None:
    """Otherwise the cheap way is never taken, and nobody would know."""
    assert kernels.gives_sums("cpu", dtype, 64)


def test_wrong_sizes_say_what_was_expected() -> None:
    for expression, message in (
        (Attend(value_map=torch.ones(15)), r"shape \(15,\).*expected \(22, 22\) or \(22,\)$"),
        (Attend(value_map=torch.ones(3), values="text"), r"\(22, 22\) or \(22,\) or \(7, 7\) or \(7,\)"),
    ):
        with pytest.raises(PluginError, match=message):
            operation(IMAGE_FIRST, expression)
    with pytest.raises(PluginError, match=r"mask of shape \(15, 22\).*expected \(22, 22\)"):
        fused(operation(IMAGE_FIRST, Attend(mask=torch.ones(15, 22, dtype=torch.bool)))[0], project(22))
    blind = torch.ones(22, 22, dtype=torch.bool)
    blind[2, 15:] = False
    with pytest.raises(PluginError, match="1 of 15 queries see no key"):
        fused(operation(IMAGE_FIRST, Attend(mask=blind, keys="text", to="image"))[0], project(22))


def test_unknown_lanes_are_named() -> None:
    with pytest.raises(SelectionError, match="edit\\[7\\]"):
        operation(IMAGE_FIRST, Attend({"text": "edit[7]"}))
    fused(operation(UNET_SELF, Attend({"text": "edit[7]"}))[0], project(15))  # it has no such queries


def test_pieces_of_rows_merge_into_rows() -> None:
    joint = RowJoint((RowTerm.own(1), replace(RowTerm.own(2), q=(Piece(0),))))
    assert joint.rows("q") == {1, 0}
    assert not joint.plain


@ORDERS
def test_values_can_be_mixed_token_by_token(site: Site) -> None:
    call = call_of(site)
    m = torch.linspace(0, 1, call.keys, dtype=torch.float64)
    q, k, v = project(call.keys)
    expression = Attend(IMAGE, IMAGE, "source", value_map=m) + Attend(IMAGE, IMAGE, value_map=1 - m)
    mixed = v.clone()
    mixed[1] = m[:, None] * v[0] + (1 - m)[:, None] * v[1]
    expected = explicit(Attend(IMAGE, IMAGE), (q, k, mixed), call)
    torch.testing.assert_close(fused(operation(site, expression)[0], (q, k, v))[1], expected)
