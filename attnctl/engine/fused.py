"""The executor: an `Operation` run as fused attention, with no attention map in memory.

Tensors here are (B, H, N, D) queries and (B, H, M, D) keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from attnctl.attend import AttentionCall
from attnctl.branches import LaneTensors, Row
from attnctl.engine.operation import Bound, Operation, RowAction, RowTerm, shape_error
from attnctl.errors import PluginError


@dataclass
class Projections:
    """Queries, keys and values of the rows that were projected, addressed by batch row."""

    q: Tensor
    k: Tensor
    v: Tensor
    q_rows: tuple[int, ...]
    k_rows: tuple[int, ...]
    v_rows: tuple[int, ...]
    mask: Tensor | None = None

    def pick(self, part: str, rows: Sequence[int]) -> Tensor:
        """Gather rows of ``q``, ``k`` or ``v`` in the given order; no copy when they are all there in order."""
        tensor, have = getattr(self, part), getattr(self, f"{part}_rows")
        if tuple(rows) == have:
            return tensor  # type: ignore[no-any-return]
        index = [have.index(r) for r in rows]
        start = index[0]
        if index == list(range(start, start + len(index))):
            return tensor[start : start + len(index)]  # type: ignore[no-any-return]
        return tensor[torch.tensor(index, device=tensor.device)]  # type: ignore[no-any-return]

    def mask_of(self, rows: Sequence[int]) -> Tensor | None:
        """Gather the model's own attention mask by key row."""
        return None if self.mask is None else self.mask[torch.tensor(list(rows), device=self.mask.device)]


def execute(op: Operation, p: Projections) -> Tensor:
    """Run an operation as fused attention.

    Args:
        op: What to do per row.
        p: Projections; q (B, H, N, D), k and v (B, H, M, D), at least the rows in `Operation.used`.

    Returns:
        Attention outputs of all rows, (B, H, N, D).
    """
    plain_out = _stock(op, p) if op.unproven else None
    if op.edits:
        p = _apply_qkv(op, p)
    out = _run_terms(op, p)
    maps: dict[int, Tensor] = {}
    if op.probs:
        out, maps = _apply_probs(op, p, out)
    for action in op.observers:
        _observe(action, op, p, maps.get(action.row))
    for bound, calls in op.acting:
        bound.acted.update((c.site.path, c.step.index, c.half) for c in calls)
    if plain_out is not None:
        _prove(op, out, plain_out)
    return out


def _stock(op: Operation, p: Projections) -> Tensor:
    return F.scaled_dot_product_attention(p.q, p.k, p.v, attn_mask=p.mask)


def _prove(op: Operation, out: Tensor, plain: Tensor) -> None:
    """Mark controllers whose rows differ from uncontrolled attention by more than rounding."""
    for bound in op.unproven:
        rows = [op.branches.index(bound.lane, h) for h in bound.controller.passes if Row(bound.lane, h) in op.branches]
        a, b = out[rows].detach(), plain[rows].detach()
        info = torch.finfo(a.dtype)
        eps = info.eps * (2 if info.bits == 16 else 8)  # a few roundings; more would hide mild edits in half precision
        allowed = max(eps, 1e-4) if bound.controller.on_probs is not None else eps  # explicit maps round otherwise
        tolerance = allowed * float(b.abs().max())
        bound.differs = float((a - b).abs().max()) > tolerance


def _run_terms(op: Operation, p: Projections) -> Tensor:
    """One gathered call for all rows with a single plain term; one call per remaining term."""
    outputs: dict[int, Tensor] = {}
    plain = [r for r, terms in enumerate(op.terms) if len(terms) == 1 and terms[0].plain]
    for group in _sharing(op, plain, p):
        outputs.update(_shared_softmax(op, group, p))
    rest = [r for r in plain if r not in outputs]
    if rest:
        firsts = [op.terms[r][0] for r in rest]
        keys = [t.k[0] for t in firsts]
        batch = F.scaled_dot_product_attention(
            p.pick("q", [t.q for t in firsts]),
            p.pick("k", keys),
            p.pick("v", [t.v[0] for t in firsts]),
            attn_mask=p.mask_of(keys),
        )
        if len(rest) == len(op.terms):
            return batch
        outputs.update({r: batch[i : i + 1] for i, r in enumerate(rest)})
    for r, terms in enumerate(op.terms):
        if r not in outputs:
            outputs[r] = _sum_terms(terms, p)
    return torch.cat([outputs[r] for r in range(len(op.terms))])


SHARED_WIDTH = 256
"""Widest head that rows with the same queries and keys are joined to; wider ones gain nothing (decision 0005)."""


def _sharing(op: Operation, plain: Sequence[int], p: Projections) -> list[list[int]]:
    """Group edited rows that use the same queries and keys, so that one softmax serves them all.

    Only on the CPU, whose fused kernel takes wide heads. Rows that nobody edits stay out: with some head sizes the wide
    kernel rounds otherwise (seen with 8 channels a head), and an edit must not move its source by a single bit.
    """
    if p.q.device.type != "cpu":
        return []
    size = SHARED_WIDTH // p.q.shape[-1]
    by_map: dict[tuple[int, int], list[int]] = {}
    for r in plain:
        if op.terms[r][0].q == r and op.terms[r][0].k == (r,):
            continue
        by_map.setdefault((op.terms[r][0].q, op.terms[r][0].k[0]), []).append(r)
    pieces = [rows[i : i + size] for rows in by_map.values() if size > 1 for i in range(0, len(rows), size)]
    return [piece for piece in pieces if len(piece) > 1]


def _shared_softmax(op: Operation, group: Sequence[int], p: Projections) -> dict[int, Tensor]:
    """Run rows with one map as ONE attention with their values side by side, (1, H, N, D) per row.

    Queries and keys are padded with zeros to the values' width, which changes no logit.
    """
    term, width = op.terms[group[0]][0], p.q.shape[-1]
    v = torch.cat([p.pick("v", [op.terms[r][0].v[0]]) for r in group], dim=-1)
    pad = (0, v.shape[-1] - width)
    q, k = F.pad(p.pick("q", [term.q]), pad), F.pad(p.pick("k", [term.k[0]]), pad)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=p.mask_of(term.k), scale=width**-0.5)
    return dict(zip(group, torch.split(out, width, dim=-1), strict=True))


def _sum_terms(terms: Sequence[RowTerm], p: Projections, columns: Tensor | None = None) -> Tensor:
    """Add a row's terms, (1, H, N, D); with `columns` (M, K) in place of the values, (1, H, N, K)."""
    total: Tensor | None = None
    for term in terms:
        q = p.pick("q", [term.q])
        k = torch.cat([p.pick("k", [r]) for r in term.k], dim=2)
        if columns is None:
            v = torch.cat([p.pick("v", [r]) for r in term.v], dim=2)
        else:  # padded to D: with values of another width torch falls back to a kernel that stores the whole map
            wide = F.pad(columns, (0, max(0, q.shape[-1] - columns.shape[-1])))
            v = wide.repeat(len(term.k), 1).expand(1, q.shape[1], -1, -1)
        if term.value_map is not None:
            t = term.value_map.to(v.dtype)
            v = t[:, None] * v if t.ndim == 1 else t @ v
        joined = None if p.mask is None else torch.cat([p.mask[r : r + 1] for r in term.k], dim=-1)
        mask = joined if term.mask is None else _as_added(term.mask(), v.dtype)
        out = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, attn_mask=mask)
        out = out if term.weight == 1.0 else out * term.weight
        total = out if total is None else total + out
    if total is None:
        raise PluginError("an attention expression has no terms", hint="add at least one Attend term")
    return total if columns is None else total[..., : columns.shape[-1]]


def _as_added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast a mask that is added to logits, its largest values to finite ones: a row of -inf would become NaN."""
    if mask.dtype == torch.bool or mask.dtype == dtype:
        return mask
    limits = torch.finfo(dtype)
    if torch.finfo(mask.dtype).max > limits.max:
        mask = mask.clamp(limits.min, limits.max)
    return mask.to(dtype)


def _views(bound: Bound, call: AttentionCall, part: str, p: Projections) -> LaneTensors:
    def get(lane: str) -> Tensor:
        return p.pick(part, [call.branches.index(lane, call.half)])[0]

    return LaneTensors(bound.lane, bound.source, get)


def _apply_qkv(op: Operation, p: Projections) -> Projections:
    """Let every ``on_qkv`` replace its own row, out of place, from the unedited projections."""
    parts = {"q": list(p.q.unbind()), "k": list(p.k.unbind()), "v": list(p.v.unbind())}
    for action in op.edits:
        views = [_views(action.bound, action.call, part, p) for part in "qkv"]
        made = action.bound.controller.on_qkv(action.call, *views)  # type: ignore[misc]
        for part, new in zip("qkv", made, strict=True):
            if new.shape != parts[part][action.row].shape:
                expected = str(tuple(parts[part][action.row].shape))
                raise shape_error(action.bound, action.call, f"{part} tensor", tuple(new.shape), expected)
            parts[part][action.row] = new.to(p.q.dtype)
    q, k, v = (torch.stack(parts[x]) for x in "qkv")
    return Projections(q, k, v, p.q_rows, p.k_rows, p.v_rows, p.mask)


def explicit_map(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
    """Materialise ``softmax(q k^T / sqrt(D))`` (..., N, M) from (..., N, D), (..., M, D), at least in float32."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    logits = q.to(wide) @ k.to(wide).transpose(-1, -2) * q.shape[-1] ** -0.5
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else logits + mask
    return torch.softmax(logits, -1)


def _apply_probs(op: Operation, p: Projections, out: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
    """Let every ``on_probs`` replace its own row's map; returns all outputs, and the maps that were set by row."""
    rows, maps = list(out.unbind()), {}
    for action in op.probs:
        call = action.call

        def get(lane: str, call: AttentionCall = call) -> Tensor:
            r = call.branches.index(lane, call.half)
            mask = p.mask_of([r])
            return explicit_map(p.pick("q", [r])[0], p.pick("k", [r])[0], None if mask is None else mask[0])

        probs = action.bound.controller.on_probs(call, LaneTensors(action.bound.lane, action.bound.source, get))  # type: ignore[misc]
        v = p.pick("v", [action.row])[0]
        expected = (v.shape[0], out.shape[2], v.shape[1])
        if tuple(probs.shape) != expected:
            raise shape_error(action.bound, call, "map", tuple(probs.shape), str(expected))
        rows[action.row] = (probs @ v.to(probs.dtype)).to(out.dtype)
        maps[action.row] = probs
    return torch.stack(rows), maps


def _observe(action: RowAction, op: Operation, p: Projections, edited: Tensor | None) -> None:
    """Give a reader A U of the row's own, edited map, in float32 because thresholds follow."""
    observation = action.bound.controller.observe
    assert observation is not None  # resolve() put only observers here
    columns = observation.columns(action.call) if callable(observation.columns) else observation.columns
    wide = torch.float64 if p.q.dtype == torch.float64 else torch.float32
    columns = columns.to(p.q.device, wide)
    if edited is not None:
        observation.sink(action.call, edited.to(wide) @ columns)
    else:
        observation.sink(action.call, _sum_terms(op.terms[action.row], p, columns)[0])
