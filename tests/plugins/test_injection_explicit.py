"""MasaCtrl and Plug-and-Play against attention maps that exist: their definitions written out, in float64.

Nothing here goes through the attention algebra: a processor computes every map, a rule edits it as the published codes
do, and guidance and the order of latents are written out too. Latents are not square.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from attnctl.families.betas import beta_schedule
from attnctl.request import Edit, EditRequest
from attnctl.session import EditSession
from attnctl.testing import tiny_model
from attnctl.testing.conformance import distance

SOURCE, TARGET, NEGATIVE = "a red cat on the grass", "a red dog on the grass", "a small car"
STEPS, GUIDANCE, START = 5, 3.0, 1
LATENTS = (24, 16)
LIMIT = 1e-9

Rule = Callable[[Any, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor | None]


@cache
def model():
    return tiny_model(dtype=torch.float64)


def noise() -> torch.Tensor:
    return torch.randn(1, 4, *LATENTS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def softmax_of(q: torch.Tensor, k: torch.Tensor, added: torch.Tensor | float = 0.0) -> torch.Tensor:
    return torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + added, -1)


class Explicit:
    """Runs the denoiser with maps in memory and a rule that returns a layer's outputs, or None to leave them."""

    def __init__(self, rule: Rule, feature: Callable[[torch.Tensor], torch.Tensor] = lambda h: h) -> None:
        self.rule, self.feature, self.step = rule, feature, 0

    def processor(self, site: Any) -> Any:
        def process(attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
            text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
            q, k, v = (
                f(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
                for f, x in ((attn.to_q, hidden_states), (attn.to_k, text), (attn.to_v, text))
            )
            probs = softmax_of(q, k)
            out = self.rule(site, q, k, v, probs)
            out = probs @ v if out is None else out
            return attn.to_out[0](out.transpose(1, 2).flatten(2))

        return process

    def predict(self, x: torch.Tensor, t: int, texts: list) -> torch.Tensor:
        unet = model().unet
        before = dict(unet.attn_processors)
        for site in model().sites:
            if site.kind != "feature":
                unet.get_submodule(site.path).processor = self.processor(site)
        handle = unet.up_blocks[1].resnets[1].conv2.register_forward_hook(lambda m, i, out: self.feature(out))
        try:
            return model().predict(x, t, texts)
        finally:
            handle.remove()
            unet.set_attn_processor(before)


def grid() -> Any:
    return beta_schedule("ddim", model().pipe.scheduler, STEPS, 0)


def text(prompt: str) -> Any:
    return model().encode_text(prompt)


# -- MasaCtrl ----------------------------------------------------------------------------------------------------------


class Mutual:
    """The rule, on rows [u_s, u_t, c_s, c_t]."""

    def __init__(self, regions: Any = None, union: bool = False) -> None:
        self.regions, self.union, self.step = regions, union, 0
        self.maps: list[torch.Tensor] = []
        self.acted = 0

    def __call__(self, site, q, k, v, probs):
        if site.kind == "cross":
            if site.downscale == 4:
                self.maps.append(probs[2:].mean(1))  # c_s and c_t, (2, N, 77)
            return None
        if site.layer < 10 or self.step < START:
            return None
        self.acted += 1
        out = probs @ v
        for source, target in ((0, 1), (2, 3)):
            if self.union:
                joined = [torch.cat([x[source], x[target]], 1) for x in (k, v)]
                out[target] = softmax_of(q[target], joined[0]) @ joined[1]
            elif self.regions is None:
                out[target] = softmax_of(q[target], k[source]) @ v[source]
            else:
                size = [side // site.downscale for side in LATENTS]
                m_s, m_t = (F.interpolate(m[None, None], size).flatten() for m in self.regions(self.maps))
                lowest = torch.full_like(m_s, torch.finfo(torch.float64).min)
                inside = softmax_of(q[target], k[source], lowest * (1 - m_s)) @ v[source]
                outside = softmax_of(q[target], k[source], lowest * m_s) @ v[source]
                out[target] = m_t[:, None] * inside + (1 - m_t[:, None]) * outside
        return out


def by_tokens(tokens: tuple[list[int], list[int]], threshold: float) -> Any:
    def regions(maps: list[torch.Tensor]) -> list[torch.Tensor]:
        assert len(maps) == 5
        mean = torch.stack(maps).mean(0)
        found = []
        for row, own in enumerate(tokens):
            m = mean[row][:, own].sum(-1).reshape(LATENTS[0] // 4, LATENTS[1] // 4)
            m = (m - m.min()) / (m.max() - m.min())
            found.append((m >= threshold).double())
        return found

    return regions


def masactrl(rule: Mutual) -> tuple[torch.Tensor, torch.Tensor]:
    explicit, x = Explicit(rule), noise().repeat(2, 1, 1, 1)
    texts = [text(""), text(""), text(SOURCE), text(TARGET)]
    for i, t in enumerate(grid().timesteps):
        rule.step, rule.maps = i, []
        uncond, cond = explicit.predict(x.repeat(2, 1, 1, 1), t, texts).chunk(2)
        x = grid().denoise(i, uncond + GUIDANCE * (cond - uncond), x)
    assert rule.acted == 6 * (STEPS - START)
    return x[:1], x[1:]


MASK = torch.zeros(LATENTS, dtype=torch.bool)
MASK[5:19, 3:12] = True
SPECK = torch.zeros(LATENTS, dtype=torch.bool)
SPECK[3, 3] = True  # lost where the grid is halved: an empty region
CASES = {
    "base": ({}, Mutual, None),
    "union": ({"union": True}, lambda: Mutual(union=True), None),
    "mask": ({}, lambda: Mutual(lambda maps: [MASK.double()] * 2), MASK),
    "words": ({"words": "cat > dog", "threshold": 0.4}, lambda: Mutual(by_tokens(([3], [3]), 0.4)), None),
    "two tokens": (
        {"tokens": ((2, 3), (3,)), "threshold": 0.6},
        lambda: Mutual(by_tokens(([2, 3], [3]), 0.6)),
        None,
    ),
    "empty region": ({"empty_region": "average"}, lambda: Mutual(lambda maps: [SPECK.double()] * 2), SPECK),
}


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_masactrl(name: str) -> None:
    settings, rule, mask = CASES[name]
    edit = Edit(TARGET, "masactrl", {"start_step": START, **settings})
    request = EditRequest((edit,), source_prompt=SOURCE, x_T=noise(), steps=STEPS, guidance=GUIDANCE, mask=mask)
    result = EditSession(model()).run(request)
    source, edited = masactrl(rule())
    assert distance(result.source.latents, source) < LIMIT
    assert distance(result["edit[0]"].latents, edited) < LIMIT


# -- Plug-and-Play -----------------------------------------------------------------------------------------------------


def plug_and_play(path: list[torch.Tensor], start: torch.Tensor) -> torch.Tensor:
    """Rows [source, uncond target, cond target]; `path` has the source's latents of every step."""
    x, at = start, {"step": 0}

    def rule(site, q, k, v, probs):
        if site.kind == "self" and 8 <= site.layer <= 15 and at["step"] < int(STEPS * 0.5):
            probs[1:] = probs[:1]
            return probs @ v
        return None

    def feature(h: torch.Tensor) -> torch.Tensor:
        return h[:1].repeat(3, 1, 1, 1) if at["step"] < int(STEPS * 0.8) else h

    explicit = Explicit(rule, feature)
    for i, t in enumerate(grid().timesteps):
        at["step"] = i
        out = explicit.predict(torch.cat([path[i], x, x]), t, [text(""), text(NEGATIVE), text(TARGET)])
        x = grid().denoise(i, out[1:2] + GUIDANCE * (out[2:] - out[1:2]), x)
    return x


def inverted(prompt: str) -> list[torch.Tensor]:
    path = [noise()]
    for i in reversed(range(STEPS)):
        path.append(grid().invert(i, model().predict(path[-1], grid().timesteps[i], [text(prompt)]), path[-1]))
    return path


def edited(settings: dict, source: str | None) -> torch.Tensor:
    edit = Edit(TARGET, "pnp", {"negative_prompt": NEGATIVE, **settings})
    request = EditRequest(
        (edit,), source_prompt=source, x0=noise(), steps=STEPS, guidance=GUIDANCE, check_reconstruction=False
    )
    return EditSession(model()).run(request)["edit[0]"].latents


@torch.no_grad()
@pytest.mark.parametrize("source", [None, SOURCE])
def test_pnp(source: str | None) -> None:
    path = inverted(source or "")
    assert distance(edited({}, source), plug_and_play(path[:0:-1], path[-1])) < LIMIT


@torch.no_grad()
def test_pnp_misaligned() -> None:
    """The source of step i is the reconstruction AFTER step i, and the edit starts from that of step 0."""
    x, back = inverted(SOURCE)[-1], []
    for i, t in enumerate(grid().timesteps):
        x = grid().denoise(i, model().predict(x, t, [text(SOURCE)]), x)
        back.append(x)
    assert distance(edited({"misaligned": True}, SOURCE), plug_and_play(back, back[0])) < LIMIT
