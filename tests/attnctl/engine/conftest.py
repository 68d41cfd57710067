"""Transformers run by a loop of their own, with controllers attached: what tests of joint attention need of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from attnctl.branches import Branches, Row
from attnctl.controller import Controller
from attnctl.engine.attach import attached
from attnctl.engine.operation import Bound
from attnctl.sites import Site
from attnctl.steps import Step


class Joint:
    """Stands for the parts of a model family that these tests need."""

    @staticmethod
    def sites_of(transformer: Any) -> tuple[Site, ...]:
        """The joint attentions, and the image's own, of SD3 (image first) and FLUX (text first), in execution order."""
        single = getattr(transformer, "single_transformer_blocks", ())
        order = ("text", "image") if len(single) else ("image", "text")
        sites = []
        for i, block in enumerate(transformer.transformer_blocks):
            heads = block.attn.heads
            sites.append(Site(f"transformer_blocks.{i}.attn", "joint", "double", i, 2, heads, order))
            if getattr(block, "attn2", None) is not None:
                sites.append(Site(f"transformer_blocks.{i}.attn2", "self", "double", i, 2, heads))
        for j, block in enumerate(single):
            path = f"single_transformer_blocks.{j}.attn"
            sites.append(
                Site(path, "joint", "single", len(transformer.transformer_blocks) + j, 2, block.attn.heads, order)
            )
        return tuple(sites)

    @staticmethod
    def bind(transformer: Any, controller: Controller, lane: str, steps: int, size: tuple[int, int]) -> Bound:
        """Bind a controller to the sites that it selects, as the planner does."""
        assert controller.where is not None
        sites = controller.where.select(Joint.sites_of(transformer), size)
        window = controller.when.indices(steps)
        return Bound(controller, lane, "source", sites, window, len(sites) * len(window) * len(controller.passes))

    @staticmethod
    def sample(
        transformer: Any,
        x: Tensor,
        text: dict[str, Tensor],
        sigmas: Tensor,
        guidance: float,
        bounds: Sequence[Bound] = (),
    ) -> Tensor:
        """Denoise by Euler steps; x (R, C, h, w), or packed (R, N, 4C) with the ids among `text`.

        SD3 runs both halves of guidance, so its text has twice the rows of x; FLUX is told guidance with its text.
        """
        packed = x.ndim == 3
        lanes = ("source", "edit[0]", "edit[1]")[: len(x)]
        rows = [Row(lane, half) for half in (("cond",) if packed else ("uncond", "cond")) for lane in lanes]
        ids = text["img_ids"][-1].long() if packed else None
        size = tuple(x.shape[2:]) if ids is None else (2 * int(ids[1] + 1), 2 * int(ids[2] + 1))
        length = text["encoder_hidden_states"].shape[1]
        with torch.no_grad(), attached(transformer, bounds) as attachment:
            for i in range(len(sigmas) - 1):
                attachment.aim(Step(i, len(sigmas) - 1, 0), Branches(tuple(rows)), size, length, x.device)
                told = sigmas[i].expand(len(rows)) if packed else sigmas[i].expand(len(rows)) * 1000
                batch = x if packed else torch.cat([x, x])
                v = transformer(hidden_states=batch, timestep=told, return_dict=False, **text)[0]
                if not packed:
                    uncond, cond = v.chunk(2)
                    v = uncond + guidance * (cond - uncond)
                x = x + (sigmas[i + 1] - sigmas[i]) * v
        return x


@pytest.fixture(scope="session")
def joint() -> type[Joint]:
    """Sites, binding and sampling of transformers."""
    return Joint
