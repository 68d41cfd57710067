"""The attention algebra as the executor runs it, against explicit attention maps in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from attnctl.attend import Attend, AttendSum, AttentionCall
from attnctl.branches import Branches, Row
from attnctl.controller import Controller, Observation
from attnctl.engine.fused import Projections, execute
from attnctl.engine.kernels import explicit_map
from attnctl.engine.operation import Bound, Operation
from attnctl.engine.resolving import resolve
from attnctl.errors import PluginError, SelectionError
from attnctl.sites import Site, Where
from attnctl.steps import Step, When

LANES = ("source", "edit[0]", "edit[1]")
ROWS = tuple(Row(lane, half) for half in ("uncond", "cond") for lane in LANES)
SELF = Site("a.attn1", "self", "down", 3, 2, 2)
CROSS = Site("a.attn2", "cross", "down", 3, 2, 2)
STEP = Step(1, 4, 501)
GRID = (2, 3)


def bound(controller: Controller, lane: str = "edit[0]", site: Site = SELF, *, proven: bool = True) -> Bound:
    return Bound(controller, lane, "source", (site,), (0, 1), 2, differs=proven)


def attend(expression: Any, **fields: Any) -> Controller:
    return Controller("c", where=Where(kind="self"), attend=expression, **fields)


def project(
    rows: int, heads: int = 2, n: int = 6, m: int | None = None, width: int = 5, seed: int = 0
) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    m = n if m is None else m
    sizes = ((rows, heads, n, width), (rows, heads, m, width), (rows, heads, m, width))
    return tuple(torch.randn(s, generator=g, dtype=torch.float64) for s in sizes)


def make(
    *bounds: Bound, branches: Branches | None = None, grid: tuple[int, int] = GRID, keys: int | None = None
) -> Operation | None:
    keys = grid[0] * grid[1] if keys is None else keys
    return resolve(SELF, STEP, branches or Branches(ROWS), bounds, grid, keys, torch.device("cpu"))


def run(op: Operation, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Give the executor only what the operation says that it uses."""
    used = [op.used(part) for part in "qkv"]
    return execute(op, Projections(q[list(used[0])], k[list(used[1])], v[list(used[2])], *used, mask))


def by_hand(expression: Attend | AttendSum, row: Row, q: Tensor, k: Tensor, v: Tensor, bound: Bound) -> Tensor:
    """The definition: w softmax(q [k; k']^T / sqrt(D)) T [v; v'] added up, every map materialised."""

    def pick(x: Tensor, name: str) -> Tensor:
        return x[ROWS.index(Row(bound.lane_of(name), row.half))]

    total = torch.zeros_like(q[0])
    for term in expression.terms:
        keys = torch.cat([pick(k, name) for name in term.key_lanes], 1)
        values = torch.cat([pick(v, name) for name in term.value_lanes], 1)
        logits = pick(q, term.q) @ keys.transpose(-1, -2) / q.shape[-1] ** 0.5
        if term.mask is not None:
            logits = logits.masked_fill(~term.mask, float("-inf"))
        full = torch.diag(term.value_map) if term.value_map is not None and term.value_map.ndim == 1 else term.value_map
        a = logits.softmax(-1)
        total = total + term.weight * (a if full is None else a @ full) @ values
    return total


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v


names = st.sampled_from(["self", "source", "edit[0]", "edit[1]"])


@st.composite
def expressions(draw: st.DrawFn) -> tuple[tuple[int, int], Attend | AttendSum]:
    """A random expression of one to three terms for a random token grid."""
    grid = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    n = grid[0] * grid[1]
    g = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    terms = []
    for _ in range(draw(st.integers(1, 3))):
        joined = draw(st.integers(1, 3))
        shape = draw(st.sampled_from([None, (n * joined,), (n * joined, n * joined)]))
        mask = None
        if draw(st.booleans()):
            mask = torch.rand((n, n * joined), generator=g) < 0.6
            mask[:, 0] = True  # a query that may see nothing has no attention
        terms.append(
            Attend(
                draw(names),
                tuple(draw(names) for _ in range(joined)),
                tuple(draw(names) for _ in range(joined)),
                draw(st.sampled_from([1.0, 0.5, -2.0])),
                None if shape is None else torch.randn(shape, generator=g, dtype=torch.float64),
                mask,
            )
        )
    return grid, terms[0] if len(terms) == 1 else AttendSum(tuple(terms))


@hypothesis_settings(max_examples=60)
@given(made=expressions(), heads=st.integers(1, 3), width=st.integers(1, 6), passes=st.sampled_from([0, 1, 2]))
def test_any_expression_is_what_its_definition_says(
    made: tuple[tuple[int, int], Any], heads: int, width: int, passes: int
) -> None:
    grid, expression = made
    halves = (("cond",), ("uncond",), ("uncond", "cond"))[passes]
    one = bound(attend(expression, passes=halves))
    q, k, v = project(len(ROWS), heads, grid[0] * grid[1], width=width, seed=heads)
    op = make(one, grid=grid)
    assert op is not None
    out = run(op, q, k, v)
    for i, row in enumerate(ROWS):
        edited = row.lane == "edit[0]" and row.half in halves
        expected = by_hand(expression, row, q, k, v, one) if edited else plain(q[i], k[i], v[i])
        torch.testing.assert_close(out[i], expected, atol=1e-10, rtol=1e-10)


PUBLISHED = {
    "fpe and pnp": Attend(q="source", k="source"),
    "masactrl": Attend(k="source", v="source"),
    "style aligned": Attend(k=("source", "self"), v=("source", "self")),
    "p2p replace": Attend(q="source", k="source", value_map=torch.rand(6, 6, dtype=torch.float64)),
    "p2p refine": Attend(q="source", k="source", value_map=torch.rand(6, 6, dtype=torch.float64))
    + Attend(value_map=torch.rand(6, dtype=torch.float64)),
    "reweight": Attend(value_map=torch.rand(6, dtype=torch.float64)),
    "mixture": 0.3 * Attend(q="source", k="source") + 0.7 * Attend(),
    "masked": Attend(k="source", v="source", mask=torch.eye(6, dtype=torch.bool)),
}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
@pytest.mark.parametrize("proven", [True, False])
def test_published_edits(name: str, proven: bool) -> None:
    """Also while the executor still compares with uncontrolled attention to see whether anything changes."""
    one = bound(attend(PUBLISHED[name]), proven=proven)
    q, k, v = project(len(ROWS))
    op = make(one)
    assert op is not None
    out = run(op, q, k, v)
    torch.testing.assert_close(out[4], by_hand(PUBLISHED[name], ROWS[4], q, k, v, one), atol=1e-12, rtol=1e-12)
    assert one.differs
    assert one.acted == {("a.attn1", 1, "cond")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision_stays_near(dtype: torch.dtype) -> None:
    expression = PUBLISHED["p2p refine"]
    one = bound(attend(expression))
    q, k, v = project(len(ROWS))
    op = make(one)
    assert op is not None
    out = run(op, q.to(dtype), k.to(dtype), v.to(dtype))
    assert out.dtype == dtype
    expected = by_hand(expression, ROWS[4], q, k, v, one)
    assert (out[4].double() - expected).norm() / expected.norm() < 20 * torch.finfo(dtype).eps


def test_untouched_rows_keep_their_bits() -> None:
    q, k, v = (x.float() for x in project(len(ROWS), width=8))
    stock = F.scaled_dot_product_attention(q, k, v)
    for controller in (attend(PUBLISHED["fpe and pnp"]), attend(PUBLISHED["p2p refine"])):
        op = make(bound(controller), bound(controller, "edit[1]"))
        assert op is not None
        out = run(op, q, k, v)
        for i in (0, 1, 2, 3):
            assert torch.equal(out[i], stock[i]), i


def test_edits_that_share_a_map_are_what_they_are_alone() -> None:
    q, k, v = project(len(ROWS))
    fpe = attend(PUBLISHED["fpe and pnp"])
    both = make(bound(fpe), bound(fpe, "edit[1]"))
    assert both is not None
    out = run(both, q, k, v)
    for lane in ("edit[0]", "edit[1]"):
        one = make(bound(fpe, lane))
        assert one is not None
        i = ROWS.index(Row(lane, "cond"))
        torch.testing.assert_close(out[i], run(one, q, k, v)[i], atol=1e-12, rtol=1e-12)


def test_maps_and_masks_may_be_made_for_the_call() -> None:
    seen: list[AttentionCall] = []

    def diagonal(call: AttentionCall) -> Tensor:
        seen.append(call)
        return torch.arange(call.keys, dtype=torch.float64)

    def mask(call: AttentionCall) -> Tensor:
        seen.append(call)
        return torch.ones(call.grid[0] * call.grid[1], call.keys).tril().bool()

    one = bound(attend(Attend(value_map=diagonal, mask=mask)))
    q, k, v = project(len(ROWS))
    op = make(one)
    assert op is not None
    fixed = Attend(value_map=torch.arange(6, dtype=torch.float64), mask=torch.ones(6, 6).tril().bool())
    torch.testing.assert_close(run(op, q, k, v)[4], by_hand(fixed, ROWS[4], q, k, v, one))
    assert len(seen) == 2
    assert {(c.lane, c.half, c.grid, c.keys, c.step) for c in seen} == {("edit[0]", "cond", GRID, 6, STEP)}


def test_the_models_own_mask_is_kept() -> None:
    q, k, v = project(len(ROWS))
    mask = torch.zeros(len(ROWS), 1, 6, 6, dtype=torch.float64)
    mask[:, :, :, 4:] = float("-inf")
    op = make(bound(attend(Attend(q="source", k=("source", "self"), v=("source", "self")))))
    assert op is not None
    out = run(op, q, k, v, mask)
    torch.testing.assert_close(out[1], plain(q[1], k[1, :, :4], v[1, :, :4]))
    keys = torch.cat([k[3, :, :4], k[4, :, :4]], 1)
    values = torch.cat([v[3, :, :4], v[4, :, :4]], 1)
    torch.testing.assert_close(out[4], plain(q[3], keys, values))


# -- what is not used is not computed ----------------------------------------------------------------------------------


def test_projections_that_nobody_reads_are_not_asked_for() -> None:
    branches = Branches(ROWS)
    edit, source = branches.index("edit[0]", "cond"), branches.index("source", "cond")
    every = set(range(6))
    cases: list[tuple[Attend, set[int], set[int], set[int]]] = [
        (Attend(q="source", k="source"), every - {edit}, every - {edit}, every),
        (Attend(k="source", v="source"), every, every - {edit}, every - {edit}),
        (Attend(q="source", k="source", v="source"), every - {edit}, every - {edit}, every - {edit}),
        (Attend(k=("source", "self"), v=("source", "self")), every, every, every),
    ]
    for expression, q, k, v in cases:
        op = make(bound(attend(expression)))
        assert op is not None
        assert [set(op.used(part)) for part in "qkv"] == [q, k, v], str(expression)
    assert source in every


def test_everything_is_asked_for_while_it_is_not_known_whether_the_edit_acts() -> None:
    op = make(bound(attend(Attend(q="source", k="source")), proven=False))
    assert op is not None
    assert op.used("q") == tuple(range(6))


# -- coverage ----------------------------------------------------------------------------------------------------------


def test_an_expression_that_changes_nothing_is_never_taken_for_an_edit() -> None:
    one = bound(attend(0.5 * Attend() + 0.5 * Attend()), proven=False)
    op = make(one)
    assert op is not None
    run(op, *(x.float() for x in project(len(ROWS))))
    assert one.acted
    assert not one.differs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_mild_edits_are_told_from_rounding_in_any_precision(dtype: torch.dtype) -> None:
    q, k, v = (x.to(dtype) for x in project(len(ROWS), width=8))
    for expression, acts in ((1.05 * Attend(), True), (0.5 * Attend() + 0.5 * Attend(), False), (Attend(), False)):
        one = bound(attend(expression), proven=False)
        op = make(one)
        assert op is not None
        run(op, q, k, v)
        assert one.differs == acts, str(expression)


def test_nothing_happens_outside_the_window_or_where_the_rows_are_not() -> None:
    fpe = attend(Attend(q="source", k="source"))
    late = Bound(fpe, "edit[0]", "source", (SELF,), (3,), 1)
    assert make(late) is None
    assert make(bound(fpe), branches=Branches((Row("source", "cond"), Row("edit[1]", "cond")))) is None
    never = attend(lambda step: None)
    assert make(bound(never)) is None


def test_a_lane_that_starts_late_owes_no_earlier_step() -> None:
    one = Bound(attend(Attend()), "edit[0]", "source", (SELF, CROSS), (0, 1, 2), 12)
    one.begin(2)
    assert (one.steps, one.expected) == ((2,), 4)
    one.begin(3)
    assert (one.steps, one.expected) == ((), 0)


def test_a_served_row_is_read_where_it_is() -> None:
    """A source whose two halves have one text runs once and serves controllers in both halves."""
    rows = (Row("edit[0]", "uncond"), Row("source", "cond"), Row("edit[0]", "cond"))
    branches = Branches(rows, {Row("source", "uncond"): Row("source", "cond")})
    op = make(bound(attend(Attend(q="source", k="source"), passes=("uncond", "cond"))), branches=branches)
    assert op is not None
    q, k, v = project(3)
    out = run(op, q, k, v)
    torch.testing.assert_close(out[0], plain(q[1], k[1], v[0]))
    torch.testing.assert_close(out[2], plain(q[1], k[1], v[2]))
    assert op.used("q") == (1,)


# -- escape hatches ----------------------------------------------------------------------------------------------------


def hatch(**fields: Any) -> Controller:
    return Controller("hatch", where=Where(kind="self"), **fields)


def test_on_qkv_that_changes_nothing_keeps_every_bit() -> None:
    q, k, v = (x.float() for x in project(len(ROWS), width=8))
    one = bound(hatch(on_qkv=lambda call, q, k, v: (q["self"], k["self"], v["self"])), proven=False)
    op = make(one)
    assert op is not None
    assert torch.equal(run(op, q, k, v), F.scaled_dot_product_attention(q, k, v))
    assert not one.differs


def test_on_qkv_sees_all_lanes_unedited_and_replaces_its_own() -> None:
    q, k, v = project(len(ROWS))
    swap = hatch(on_qkv=lambda call, q, k, v: (q["edit[0]"], k["edit[1]"], v["source"] * 2))
    op = make(bound(swap), bound(swap, "edit[1]"))
    assert op is not None
    out = run(op, q, k, v)
    for i in (4, 5):  # both see the projections of before
        torch.testing.assert_close(out[i], plain(q[4], k[5], v[3] * 2))
    torch.testing.assert_close(out[3], plain(q[3], k[3], v[3]))


def test_on_probs_that_changes_nothing_is_within_rounding() -> None:
    q, k, v = (x.float() for x in project(len(ROWS), width=8))
    one = bound(hatch(on_probs=lambda call, probs: probs["self"]), proven=False)
    op = make(one)
    assert op is not None
    torch.testing.assert_close(run(op, q, k, v), F.scaled_dot_product_attention(q, k, v), atol=1e-5, rtol=0)


def test_on_probs_replaces_the_map() -> None:
    q, k, v = project(len(ROWS))
    op = make(bound(hatch(on_probs=lambda call, probs: probs["source"].flip(-1))))
    assert op is not None
    a = explicit_map(q[3], k[3])
    torch.testing.assert_close(a.sum(-1), torch.ones(2, 6, dtype=torch.float64))
    torch.testing.assert_close(run(op, q, k, v)[4], a.flip(-1) @ v[4])


def test_explicit_maps_do_not_overflow_in_half_precision() -> None:
    q = torch.full((1, 2, 64), 100.0, dtype=torch.float16)
    assert torch.isfinite(explicit_map(q, q)).all()
    assert explicit_map(q, q).dtype == torch.float32


@pytest.mark.parametrize(
    ("controller", "found", "expected"),
    [
        (hatch(on_qkv=lambda call, q, k, v: (q["self"][:, :5], k["self"], v["self"])), "(2, 5, 5)", "(2, 6, 5)"),
        (hatch(on_probs=lambda call, probs: probs["self"][..., :4]), "(2, 6, 4)", "(2, 6, 6)"),
        (attend(Attend(value_map=torch.ones(5))), "(5,)", "(6, 6) or (6,)"),
        (attend(Attend(value_map=torch.ones(6, 5))), "(6, 5)", "(6, 6) or (6,)"),
        (attend(Attend(mask=torch.ones(6, 5, dtype=torch.bool))), "(6, 5)", "(6, 6)"),
        (attend(Attend(k=("self", "source"), v=("self", "source"), value_map=torch.ones(6))), "(6,)", "(12,)"),
    ],
)
def test_wrong_shapes_name_controller_site_step_and_both_shapes(
    controller: Controller, found: str, expected: str
) -> None:
    def act() -> None:
        op = make(bound(controller))
        assert op is not None
        run(op, *project(len(ROWS)))

    with pytest.raises(PluginError) as caught:
        act()
    for part in (f"edit[0]: {controller.name}", "a.attn1", "step 1", found, expected):
        assert part in str(caught.value), part


def test_two_controllers_must_not_set_one_row() -> None:
    writers = [attend(Attend(q="source", k="source")), attend(Attend()), hatch(on_probs=lambda call, p: p["self"])]
    for first in writers:
        for second in writers:
            with pytest.raises(PluginError, match=r"both set the attention of edit\[0\]/cond at a.attn1 in step 1"):
                make(bound(first), bound(second))
    other_half = attend(Attend(), passes=("uncond",))
    assert make(bound(writers[0]), bound(other_half), bound(writers[1], "edit[1]")) is not None


def test_a_lane_that_is_not_there_is_named() -> None:
    with pytest.raises(SelectionError, match=r"edit\[9\]/cond"):
        make(bound(attend(Attend(q="edit[9]"))))


# -- reading maps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [1, 3, 7])
@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_observers_read_the_edited_map_without_storing_it(name: str, columns: int) -> None:
    """A U for fewer columns than the head is wide, and for more."""
    u = torch.randn(6, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(columns))
    seen: list[tuple[AttentionCall, Tensor]] = []
    reader = hatch(observe=Observation(u, lambda call, maps: seen.append((call, maps))))
    one = bound(attend(PUBLISHED[name]))
    op = make(one, bound(reader))
    assert op is not None
    q, k, v = project(len(ROWS))
    run(op, q, k, v)
    ((call, maps),) = seen
    assert (call.lane, call.half) == ("edit[0]", "cond")
    assert maps.shape == (2, 6, columns)
    expected = sum(term.weight * _map_times(term, one, q, k, u) for term in PUBLISHED[name].terms)
    torch.testing.assert_close(maps, expected, atol=1e-10, rtol=1e-10)


def _map_times(term: Attend, one: Bound, q: Tensor, k: Tensor, u: Tensor) -> Tensor:
    def pick(x: Tensor, name: str) -> Tensor:
        return x[ROWS.index(Row(one.lane_of(name), "cond"))]

    keys = torch.cat([pick(k, n) for n in term.key_lanes], 1)
    logits = pick(q, term.q) @ keys.transpose(-1, -2) / q.shape[-1] ** 0.5
    if term.mask is not None:
        logits = logits.masked_fill(~term.mask, float("-inf"))
    a = logits.softmax(-1)
    if term.value_map is not None:
        a = a @ (torch.diag(term.value_map) if term.value_map.ndim == 1 else term.value_map)
    return a @ u.repeat(len(term.key_lanes), 1)


def test_observers_see_maps_that_were_set_explicitly_and_other_lanes_maps() -> None:
    seen: dict[str, Tensor] = {}
    u = torch.eye(6, dtype=torch.float64)
    setter = hatch(on_probs=lambda call, probs: probs["self"].flip(-1))
    own = hatch(observe=Observation(u, lambda call, maps: seen.__setitem__("own", maps)))
    first = Observation(lambda call: u[:, : call.keys], lambda call, maps: seen.__setitem__("source", maps), "source")
    other = hatch(observe=first)
    op = make(bound(setter), bound(own), bound(other))
    assert op is not None
    q, k, v = project(len(ROWS))
    run(op, q, k, v)
    torch.testing.assert_close(seen["own"], explicit_map(q[4], k[4]).flip(-1))
    torch.testing.assert_close(seen["source"], explicit_map(q[3], k[3]))


def test_an_observer_alone_changes_no_bit_and_is_not_asked_for_a_change() -> None:
    reader = bound(hatch(observe=Observation(torch.ones(6, 1), lambda call, maps: None)), proven=False)
    op = make(reader)
    assert op is not None
    assert op.unproven == []
    q, k, v = (x.float() for x in project(len(ROWS), width=8))
    assert torch.equal(run(op, q, k, v), F.scaled_dot_product_attention(q, k, v))
    assert len(reader.acted) == 1


def test_windows_of_bounds_are_their_own() -> None:
    assert bound(attend(Attend(), when=When(0, 0.5))).active(STEP)
    assert not bound(attend(Attend())).active(Step(2, 4, 1))


@pytest.mark.parametrize("added", [False, True], ids=["bool", "added"])
def test_a_mask_that_leaves_a_query_without_keys_is_refused(added: bool) -> None:
    """Its softmax would be NaN."""
    mask = torch.ones(6, 6, dtype=torch.bool)
    mask[2] = False
    made = torch.zeros(6, 6).masked_fill(~mask, float("-inf")) if added else mask
    op = make(bound(attend(Attend(mask=made))))
    assert op is not None
    with pytest.raises(PluginError, match=r"1 of 6 queries see no key"):
        run(op, *project(6))
