"""Feature edits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from attnctl.branches import Branches, Row
from attnctl.controller import Controller
from attnctl.engine.operation import Bound, apply_features, resolve_features
from attnctl.errors import PluginError
from attnctl.model import Model
from attnctl.sites import Site, Where
from attnctl.steps import Step

ROWS = (Row("edit", "uncond"), Row("source", "cond"), Row("edit", "cond"))
SITE = Site("up_blocks.1.resnets.1", "feature", "up", 4, 4, 0)


def bound(action: Any, passes: Any = ("uncond", "cond"), lane: str = "edit") -> Bound:
    controller = Controller("inject", where=Where(kind="feature"), passes=passes, on_feature=action)
    return Bound(controller, lane, "source", (SITE,), (0,), 2)


def apply(*bounds: Bound, aliases: Any = None, step: int = 0) -> tuple[Tensor, Tensor]:
    feature = torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(0))
    branches = Branches(ROWS, aliases or {Row("source", "uncond"): ROWS[1]})
    actions = resolve_features(SITE, Step(step, 1, 1), branches, bounds, (4, 5))
    kept = feature.clone()
    out = apply_features(actions, feature)
    assert torch.equal(feature, kept), "the model's own tensor was changed in place"
    return feature, out


def test_both_halves_can_take_the_sources_features() -> None:
    """Also where the source's two halves are one row."""
    one = bound(lambda call, feature: feature["source"])
    before, after = apply(one)
    assert torch.equal(after, before[[1, 1, 1]])
    assert one.acted == {(SITE.path, 0, "uncond"), (SITE.path, 0, "cond")}
    assert one.differs


def test_one_half_alone_can_be_edited() -> None:
    before, after = apply(bound(lambda call, feature: 2 * feature["self"], passes=("cond",)))
    assert torch.equal(after[:2], before[:2])
    assert torch.equal(after[2], 2 * before[2])


def test_every_edit_sees_features_of_before() -> None:
    first = bound(lambda call, feature: feature["self"] + 1)
    second = Bound(first.controller, "source", "edit", (SITE,), (0,), 2)
    reader = bound(lambda call, feature: feature["source"], lane="edit")
    before, after = apply(second, reader)
    assert torch.equal(after[2], before[1])
    assert torch.equal(after[1], before[1] + 1)


def test_an_edit_that_returns_what_it_got_is_not_taken_for_one() -> None:
    one = bound(lambda call, feature: feature["self"])
    before, after = apply(one)
    assert torch.equal(after, before)
    assert one.acted
    assert not one.differs


def test_nothing_happens_outside_the_window() -> None:
    one = bound(lambda call, feature: feature["source"])
    before, after = apply(one, step=1)
    assert torch.equal(after, before)
    assert not one.acted


def test_wrong_shapes_name_controller_site_step_and_both_shapes() -> None:
    with pytest.raises(PluginError) as caught:
        apply(bound(lambda call, feature: feature["self"][:, :3]))
    for part in ("edit: inject", SITE.path, "step 0", "(2, 3, 5)", "(2, 4, 5)"):
        assert part in str(caught.value)


@pytest.mark.parametrize("half", ["uncond", "cond"])
def test_in_a_run_the_edits_features_are_the_sources(
    half: Any, shared_tiny_model: Model, run_with: Callable[..., Any]
) -> None:
    """Each row keeps its own shortcut: only what the block adds is replaced."""
    where = Where(kind="feature", block="up", layers=(14,))
    (site,) = where.select(shared_tiny_model.sites, (8, 8))
    seen: list[Tensor] = []
    module = shared_tiny_model.unet.get_submodule(site.path)
    inject = Controller("inject", where=where, passes=(half,), on_feature=lambda call, feature: feature["source"])
    hook = module.register_forward_hook(lambda m, inputs, out: seen.append(out - m.conv_shortcut(inputs[0])))
    try:
        result = run_with([inject], steps=2)
    finally:
        hook.remove()
    (row,) = result.coverage
    assert row.acted == row.expected == 2
    for added in seen:  # rows: source and edit unconditional, source and edit conditional
        first = 0 if half == "uncond" else 2
        torch.testing.assert_close(added[first], added[first + 1], atol=1e-5, rtol=1e-5)
    other = 2 if half == "uncond" else 0  # the half that is left alone differs, once the two pictures do
    assert not torch.allclose(seen[-1][other], seen[-1][other + 1], atol=1e-3)
