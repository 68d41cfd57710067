"""Prompt-to-Prompt against attention maps that exist: its definition written out, in float64, on a tiny real pipeline.

Nothing here goes through the attention algebra: every map is computed, edited in place and stored, as the published
code does, and the sampler, the guidance and the blending are written out too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from attnctl.request import Edit, EditRequest
from attnctl.session import EditSession
from attnctl.testing import tiny_model
from attnctl.tokens import align_ids, align_words, read_prompt

STEPS, GUIDANCE = 5, 3.0
LATENTS = (24, 16)  # not square; 6x4 where blending reads


@cache
def model():
    return tiny_model(dtype=torch.float64)


@dataclass
class Definition:
    """The tables of one edit, as docs/methods/p2p.md defines them; everything by hand."""

    mode: str
    cross: Any = 0.8
    selfs: tuple[float, float] = (0.0, 0.4)
    factors: dict[str, float] = field(default_factory=dict)
    blend: tuple[list[str], list[str]] | None = None
    subtract: tuple[list[str], list[str]] | None = None
    thresholds: tuple[float, float] = (0.3, 0.3)
    start_blend: float = 0.0
    mask: torch.Tensor | None = None
    published: bool = True
    max_keys: int = 12 * 8

    def tables(self, source: str, target: str):
        tokenizer, m = model().pipe.tokenizer, 77
        a, b = (read_prompt(p, tokenizer, m) for p in (source, target))
        alpha = np.zeros((STEPS + 1, m))
        schedule = dict(self.cross) if isinstance(self.cross, dict) else {"default_": self.cross}
        order = [("default_", schedule.pop("default_", 1.0)), *schedule.items()]
        for word, bounds in order:
            lo, hi = bounds if isinstance(bounds, tuple) else (0.0, bounds)
            columns = range(m) if word == "default_" else b.find(word)
            for n in columns:
                alpha[:, n] = 0
                alpha[int(lo * (STEPS + 1)) : int(hi * (STEPS + 1)), n] = 1
        c = np.ones(m)
        for word, factor in self.factors.items():
            c[list(b.find(word))] = factor
        mapper = np.arange(m)
        mapper[: len(b.ids)] = align_ids(a.ids, b.ids)
        matrix = align_words(a, b, published=self.published).matrix if self.mode == "replace" else None
        tables = {"alpha": alpha, "c": c, "matrix": matrix, "mapper": mapper, "kept": (mapper != -1).astype(float)}
        words = {
            name: [[n for w in ws for n in p.find(w)] for p, ws in zip((a, b), pair, strict=True)]
            for name, pair in (("blend", self.blend), ("subtract", self.subtract))
            if pair is not None
        }
        return {k: None if v is None else torch.as_tensor(v, dtype=torch.float64) for k, v in tables.items()}, words


class Explicit:
    """Runs source and target with maps in memory; rows are [u_s, u_t, c_s, c_t], or [c_s, c_t] without guidance."""

    def __init__(self, definition: Definition, source: str, target: str, guidance: float) -> None:
        self.d, self.guidance = definition, guidance
        self.t, self.words = definition.tables(source, target)
        self.prompts = (source, target)
        self.step = 0
        self.stored: dict[str, torch.Tensor] = {}
        self.edited: dict[str, int] = {"self": 0, "cross": 0}

    def edit(self, probs: torch.Tensor, site: Any) -> torch.Tensor:
        half = probs.shape[0] // 2 if self.guidance != 1 else 0
        s, t = half, half + 1
        if site.kind == "self":
            lo, hi = (int(STEPS * f) for f in self.d.selfs)
            if probs.shape[2] <= self.d.max_keys and lo <= self.step < hi:
                probs[t] = probs[s]
                self.edited["self"] += 1
            return probs
        if self.d.mode == "replace":
            new = torch.einsum("hpw,wn->hpn", probs[s], self.t["matrix"])
        elif self.d.mode == "refine":
            gathered = probs[s][:, :, self.t["mapper"].long()]
            new = gathered * self.t["kept"] + probs[t] * (1 - self.t["kept"])
        else:
            new = probs[s]
        alpha = self.t["alpha"][self.step]
        probs[t] = new * self.t["c"] * alpha + probs[t] * (1 - alpha)
        self.edited["cross"] += 1
        if site.downscale == 4 and site.block != "mid":
            kept = self.stored.setdefault(site.path, torch.zeros_like(probs[s : t + 1]))
            kept += probs[s : t + 1]
        return probs

    def region(self, name: str, threshold: float, pool: bool) -> torch.Tensor:
        maps = torch.stack(list(self.stored.values()))  # layers, 2 rows, heads, N, 77
        found = torch.zeros(LATENTS, dtype=torch.bool)
        for row in (0, 1):
            m = maps[:, row][..., self.words[name][row]].sum(-1).mean((0, 1)).reshape(1, 1, LATENTS[0] // 4, -1)
            m = F.max_pool2d(m, 3, 1, 1) if pool else m
            m = F.interpolate(m, LATENTS, mode="nearest")[0, 0]
            found |= m / m.max() > threshold
        return found

    def blend(self, x: torch.Tensor) -> torch.Tensor:
        if (self.d.blend is None and self.d.mask is None) or self.step < int(self.d.start_blend * STEPS):
            return x
        keep = torch.ones(LATENTS, dtype=torch.bool)
        if self.d.blend is not None:
            keep = self.region("blend", self.d.thresholds[0], True)
        if self.d.subtract is not None:
            keep &= ~self.region("subtract", self.d.thresholds[1], False)
        if self.d.mask is not None:
            keep &= self.d.mask
        self.share = float(keep.double().mean())
        return x[:1] + keep * (x - x[:1])

    @torch.no_grad()
    def run(self, x: torch.Tensor) -> torch.Tensor:
        m = model()
        texts = [m.encode_text(p).embeds for p in (("", "") if self.guidance != 1 else ()) + self.prompts]
        abar = m.pipe.scheduler.alphas_cumprod.float()  # the schedule is float32 whatever the model is
        sites = {s.path: s for s in m.sites if s.kind != "feature"}
        before = m.unet.attn_processors
        m.unet.set_attn_processor({f"{p}.processor": Materialised(self, s) for p, s in sites.items()})
        try:
            x = x.repeat(2, 1, 1, 1)
            for self.step, t in enumerate(range(1000 // STEPS * (STEPS - 1) + 1, 0, -1000 // STEPS)):
                e = m.unet(x.repeat(len(texts) // 2, 1, 1, 1), t, torch.cat(texts)).sample
                if self.guidance != 1:
                    u, c = e.chunk(2)
                    e = u + self.guidance * (c - u)
                a, b = abar[t], abar[max(t - 1000 // STEPS, 0)]
                x = b.sqrt() * (x - (1 - a).sqrt() * e) / a.sqrt() + (1 - b).sqrt() * e
                x = self.blend(x)
        finally:
            m.unet.set_attn_processor(before)
        return x


class Materialised:
    """softmax(q k^T / sqrt(D)) as a tensor, edited, then multiplied by v."""

    def __init__(self, run: Explicit, site: Any) -> None:
        self.run, self.site = run, site

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states

        def heads(x):
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        q, k, v = heads(attn.to_q(hidden_states)), heads(attn.to_k(text)), heads(attn.to_v(text))
        probs = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        out = self.run.edit(probs, self.site) @ v
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


CAT, DOG = "a photo of a cat on the grass", "a photo of a dog on the grass"
TIGER = "a photo of a tiger on the grass"  # spelled in five tokens by the tiny tokenizer
BIG = "a photo of a big striped cat on the grass with snow"
MASK = torch.zeros(LATENTS, dtype=torch.bool)
MASK[4:16, 2:12] = True

CASES: dict[str, tuple[str, str, Definition, dict[str, Any]]] = {
    "replace": (CAT, DOG, Definition("replace"), {"mode": "replace"}),
    "replace, automatic, all steps": (CAT, DOG, Definition("replace", cross=1.0, selfs=(0, 1)), {
        "cross_replace": 1.0, "self_replace": 1.0,
    }),
    "replace, uneven": (CAT, TIGER, Definition("replace", published=False), {"mode": "replace"}),
    "replace, uneven, as published": (CAT, TIGER, Definition("replace"), {"alignment": "reference"}),
    "replace, fewer tokens, as published": (TIGER, CAT, Definition("replace"), {"alignment": "reference"}),
    "replace, per word": (
        CAT, TIGER, Definition("replace", cross={"default_": 1.0, "tiger": 0.4, "grass": (0.2, 0.7)}),
        {"cross_replace": "default_:1.0 tiger:0.4 grass:0.2,0.7", "alignment": "reference"},
    ),
    "replace and reweight": (CAT, TIGER, Definition("replace", factors={"tiger": -2.0, "grass": 0.0}), {
        "equalizer": {"tiger": -2, "grass": 0}, "alignment": "reference",
    }),
    "refine": (CAT, BIG, Definition("refine", cross=0.5, selfs=(0.2, 0.6)), {
        "cross_replace": 0.5, "self_replace": (0.2, 0.6),
    }),
    "refine, fewer tokens, as published": (BIG, CAT, Definition("refine"), {"alignment": "reference"}),
    "refine and reweight": (CAT, BIG, Definition("refine", cross=(0.2, 0.9), factors={"striped": 5.0, "cat": 3.0}), {
        "mode": "refine", "cross_replace": (0.2, 0.9), "equalizer": "striped:5 cat:3",
    }),
    "reweight": (CAT, CAT, Definition("reweight", factors={"cat": 4.0}), {"mode": "reweight", "equalizer": "cat:4"}),
    "reweight, per word": (CAT, CAT, Definition("reweight", cross={"cat": 0.5}, factors={"cat": -1.0}), {
        "mode": "reweight", "equalizer": "cat:-1", "cross_replace": {"cat": 0.5},
    }),
    "blend from the first step": (CAT, DOG, Definition("replace", blend=(["cat"], ["dog"]), thresholds=(0.8, 0)), {
        "blend_words": "cat > dog", "blend_threshold": 0.8, "start_blend": 0,
    }),
    "blend late, less subtracted words": (
        CAT, BIG,
        Definition("refine", blend=(["cat"], ["striped", "cat"]), subtract=(["grass"], ["grass", "snow"]),
                   thresholds=(0.7, 0.93), start_blend=0.4, factors={"striped": 2.0}),
        {"blend_words": "cat > striped cat", "blend_threshold": 0.7, "subtract_words": "grass > grass snow",
         "subtract_threshold": 0.93, "start_blend": 0.4, "equalizer": "striped:2"},
    ),
    "a mask": (CAT, DOG, Definition("replace", mask=MASK, start_blend=0.2), {}),
    "a mask and blend": (
        CAT, DOG, Definition("replace", blend=(["cat"], ["dog"]), thresholds=(0.8, 0), mask=MASK, start_blend=0.2),
        {"blend_words": "cat > dog", "blend_threshold": 0.8},
    ),
}  # fmt: skip


def noise() -> torch.Tensor:
    return torch.randn((1, 4, *LATENTS), generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


QUICK = {"replace, uneven", "refine and reweight", "reweight, per word", "blend late, less subtracted words"}


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CASES])
def test_equals_explicit_maps(name):
    source, target, definition, settings = CASES[name]
    explicit = Explicit(definition, source, target, GUIDANCE)
    expected = explicit.run(noise())
    assert explicit.edited["cross"] > 0
    assert explicit.edited["self"] > 0
    if definition.blend is not None or definition.mask is not None:
        assert 0.05 < explicit.share < 0.95, "the mask of this case tells nothing"
    request = EditRequest(
        (Edit(target, "p2p", settings),), source, x_T=noise(), steps=STEPS, guidance=GUIDANCE, mask=definition.mask
    )
    result = EditSession(model()).run(request)
    # 1/5 and the like are rounded to float32 in the tables.
    assert distance(result.source.latents, expected[:1]) < 1e-12
    assert distance(result["edit[0]"].latents, expected[1:]) < (1e-6 if "uneven" in name or TIGER in target else 1e-12)
    assert distance(expected[1:], expected[:1]) > 1e-2


@pytest.mark.slow
def test_two_edits_in_one_pass_and_no_guidance():
    names = ["replace", "refine and reweight", "blend late, less subtracted words"]
    edits = tuple(Edit(CASES[n][1], "p2p", CASES[n][3], name=n) for n in names)
    result = EditSession(model()).run(EditRequest(edits, CAT, x_T=noise(), steps=STEPS, guidance=1.0))
    for name in names:
        expected = Explicit(CASES[name][2], CAT, CASES[name][1], 1.0).run(noise())
        assert distance(result[name].latents, expected[1:]) < 1e-12, name
