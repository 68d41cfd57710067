"""Attention that torch has no name for: parts with different queries under one softmax, and maps in full.

Tensors here are (B, H, N, D) queries and (B, H, M, D) keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Part(NamedTuple):
    """One part of a joint attention: its queries, the keys that it brings and their values.

    Attributes:
        q: (1, H, N, D).
        k: (1, H, M, D).
        v: (1, H, M, D).
        mask: The model's own, bool or added to the logits, (1, H or 1, N or 1, M); None is none.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None


def attend_jointly(parts: Sequence[Part]) -> Tensor:
    """Attend with one softmax over the keys of all parts, each of which has queries of its own.

    Each part is attended to by itself, and the results are merged by the logarithms of their softmax's sums. Where
    the kernel that returns these sums is not there or not right, and whenever gradients may be asked for (it has none
    for the sums), it is ONE attention with the parts' heads side by side, which takes up to twice the time.

    Args:
        parts: At least two, with the same number of queries.

    Returns:
        (1, H, N, D).
    """
    first = parts[0].q
    narrow = all(part.v.shape[-1] == first.shape[-1] for part in parts)
    masked = any(part.mask is not None for part in parts)
    if torch.is_grad_enabled() or not narrow or (masked and first.device.type != "cpu"):
        return _folded(parts)
    return _merged(parts) if gives_sums(first.device.type, first.dtype, first.shape[-1]) else _folded(parts)


def _folded(parts: Sequence[Part]) -> Tensor:
    """Run one attention with heads P times as wide: queries side by side, each part's keys in its own columns.

    All other columns of the keys are zero, so that a query meets a key by its part's own queries alone.
    """
    width, out_width = parts[0].q.shape[-1], parts[0].v.shape[-1]
    total = max(len(parts) * width, out_width)

    def column(x: Tensor, i: int) -> Tensor:
        return F.pad(x, (i * width, total - (i + 1) * width))

    q = F.pad(torch.cat([part.q for part in parts], dim=-1), (0, total - len(parts) * width))
    k = torch.cat([column(part.k, i) for i, part in enumerate(parts)], dim=2)
    v = F.pad(torch.cat([part.v for part in parts], dim=2), (0, total - out_width))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=_mask_of_all(parts), scale=width**-0.5)
    return out[..., :out_width]


def _mask_of_all(parts: Sequence[Part]) -> Tensor | None:
    given = [part.mask for part in parts if part.mask is not None]
    return torch.cat(given, dim=-1) if given else None  # the model's own mask: all parts have one, or none has


def _merged(parts: Sequence[Part]) -> Tensor:
    """Attend part by part and weigh the results by the softmax of their sums."""
    outs, sums = zip(*(_with_sums(*part) for part in parts), strict=True)
    weights = torch.softmax(torch.stack(sums), dim=0)[..., None]
    wide = sum(weight * out for weight, out in zip(weights, outs, strict=True))
    assert isinstance(wide, Tensor)
    return wide.to(parts[0].v.dtype)


def _with_sums(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attend by a kernel that also returns log sum exp of the logits, (1, H, N), at least in float32.

    torch keeps these operators to itself: `gives_sums` asks first. They take no bool mask, and say 0 for a query that
    sees no key, which would count as much as a key with the logit 0.
    """
    scale = q.shape[-1] ** -0.5
    if q.device.type != "cpu":
        out, sums, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True, scale=scale)
        return out, sums[..., : q.shape[2]].float()
    if mask is None:
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, scale=scale)  # type: ignore[no-any-return]
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(~mask, float("-inf"))
    mask = mask.to(q.dtype).expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    out, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=mask, scale=scale)
    return out, sums.masked_fill((mask == float("-inf")).all(dim=-1), float("-inf"))


@cache
def gives_sums(device: str, dtype: torch.dtype, width: int) -> bool:
    """Whether this torch has a kernel that returns the sums of its softmax, and returns them right.

    Asked once per process for a kind of device, type and width of heads, by a small attention done both ways.
    """
    generator = torch.Generator().manual_seed(0)
    try:
        q, k, v = (torch.randn(1, 2, n, width, generator=generator).to(device, dtype) for n in (5, 19, 19))
        with torch.no_grad():
            out, sums = _with_sums(q, k, v, None)
            logits = q.double() @ k.double().transpose(-1, -2) * width**-0.5
            pairs = ((sums, torch.logsumexp(logits, -1)), (out, torch.softmax(logits, -1) @ v.double()))
            near = 8 * torch.finfo(dtype).eps
            return all(
                x.shape == y.shape and bool(((x.double() - y).abs() <= near * (1 + y.abs())).all()) for x, y in pairs
            )
    except (RuntimeError, AttributeError, NotImplementedError, TypeError, ValueError):
        return False


def explicit_map(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
    """Materialise ``softmax(q k^T / sqrt(D))`` (..., N, M) from (..., N, D), (..., M, D), at least in float32."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    logits = q.to(wide) @ k.to(wide).transpose(-1, -2) * q.shape[-1] ** -0.5
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else logits + mask
    return torch.softmax(logits, -1)
