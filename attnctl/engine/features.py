"""Feature edits: what a residual block adds before its shortcut, replaced for some rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attnctl.attend import AttentionCall
from attnctl.branches import Branches, LaneTensors, Row
from attnctl.engine.operation import Bound, RowAction
from attnctl.errors import PluginError
from attnctl.sites import Site
from attnctl.steps import Step


def resolve_features(
    site: Site, step: Step, branches: Branches, bounds: Sequence[Bound], grid: tuple[int, int]
) -> list[RowAction]:
    """List the feature edits of one site in one denoiser call, in the controllers' order."""
    return [
        RowAction(b, AttentionCall(site, step, branches, grid, 0, b.lane, half), branches.index(b.lane, half))
        for b in bounds
        if b.active(step)
        for half in b.controller.passes
        if Row(b.lane, half) in branches
    ]


def apply_features(actions: Sequence[RowAction], feature: Tensor) -> Tensor:
    """Apply feature edits out of place; every edit sees the unedited features of all rows.

    Args:
        actions: Edits of this site.
        feature: (B, C, h, w).

    Raises:
        PluginError: An edit returns another shape than (C, h, w).
    """
    rows = list(feature.unbind())
    for action in actions:
        call, bound = action.call, action.bound

        def get(lane: str, call: AttentionCall = call) -> Tensor:
            return feature[call.branches.index(lane, call.half)]

        new = bound.controller.on_feature(call, LaneTensors(bound.lane, bound.source, get))  # type: ignore[misc]
        old = rows[action.row]
        if new.shape != old.shape:
            raise PluginError(
                f"controller {bound.label!r} gave a feature of shape {tuple(new.shape)} at {call.site.path} in step "
                f"{call.step.index}, expected {tuple(old.shape)}",
                hint="return a tensor (C, h, w) like feature['self']",
            )
        rows[action.row] = new.to(old.dtype)
        bound.acted.add((call.site.path, call.step.index, call.half))
        bound.differs = bound.differs or not torch.equal(rows[action.row], old)
    return torch.stack(rows)
