"""The executor: an `Operation` run as fused attention, with no attention map in memory.

Tensors here are (B, H, N, D) queries and (B, H, M, D) keys and values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from attnctl.attend import AttentionCall
from attnctl.branches import LaneTensors, Row
from attnctl.engine.kernels import Part, attend_jointly, explicit_map
from attnctl.engine.operation import Bound, Operation, Piece, RowAction, RowJoint, RowTerm, shape_error


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

    def tokens(self, part: str, pieces: Sequence[Piece]) -> Tensor:
        """Join pieces of ``q``, ``k`` or ``v``, (1, H, tokens, D); one piece is a view."""
        made = []
        for piece in pieces:
            x = self.pick(part, [piece.row])[:, :, piece.start : piece.stop]
            made.append(torch.zeros_like(x) if piece.zero else x)
        return made[0] if len(made) == 1 else torch.cat(made, dim=2)

    def masked(self, queries: tuple[int, int] | None, keys: Sequence[Piece]) -> Tensor | None:
        """Join the model's own attention mask over pieces of keys, (1, H or 1, N or 1, M)."""
        if self.mask is None:
            return None
        mask = self.mask if queries is None or self.mask.shape[2] == 1 else self.mask[:, :, slice(*queries)]
        return torch.cat([mask[p.row : p.row + 1, ..., p.start : p.stop] for p in keys], dim=-1)


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
        _observe(action, op, p, out, maps.get(action.row))
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
        allowed = max(eps, _rounding(bound, [op.terms[r] for r in rows]))
        tolerance = allowed * float(b.abs().max())
        bound.differs = float((a - b).abs().max()) > tolerance


def _rounding(bound: Bound, rows: Sequence[Sequence[RowTerm | RowJoint]]) -> float:
    """Return by how much a row may differ for no other reason than the way in which it is computed."""
    if bound.controller.on_probs is not None:
        return 1e-4  # explicit maps
    in_pieces = any(isinstance(t, RowJoint) or t.to is not None or t.mass is not None for row in rows for t in row)
    return 1e-5 if in_pieces else 0.0  # masses and merged parts


def _run_terms(op: Operation, p: Projections) -> Tensor:
    """One gathered call for all rows with a single plain term; one call per remaining term."""
    outputs: dict[int, Tensor] = {}
    plain = {r: terms[0] for r, terms in enumerate(op.terms) if len(terms) == 1 and isinstance(terms[0], RowTerm)}
    plain = {r: term for r, term in plain.items() if term.plain}
    for group in _sharing(plain, p):
        outputs.update(_shared_softmax({r: plain[r] for r in group}, p))
    rest = [r for r in plain if r not in outputs]
    if rest:
        firsts = [plain[r] for r in rest]
        keys = [t.k[0].row for t in firsts]
        batch = F.scaled_dot_product_attention(
            p.pick("q", [t.q[0].row for t in firsts]),
            p.pick("k", keys),
            p.pick("v", [t.v[0].row for t in firsts]),
            attn_mask=p.mask_of(keys),
        )
        if len(rest) == len(op.terms):
            return batch
        outputs.update({r: batch[i : i + 1] for i, r in enumerate(rest)})
    for r, terms in enumerate(op.terms):
        if r not in outputs:
            outputs[r] = _row_out(terms, p)
    return torch.cat([outputs[r] for r in range(len(op.terms))])


SHARED_WIDTH = 256
"""Widest head that rows with the same queries and keys are joined to; wider ones gain nothing (decision 0005)."""


def _sharing(plain: Mapping[int, RowTerm], p: Projections) -> list[list[int]]:
    """Group edited rows that use the same queries and keys, so that one softmax serves them all.

    Only on the CPU, whose fused kernel takes wide heads. Rows that nobody edits stay out: with some head sizes the wide
    kernel rounds otherwise (seen with 8 channels a head), and an edit must not move its source by a single bit.
    """
    if p.q.device.type != "cpu":
        return []
    size = SHARED_WIDTH // p.q.shape[-1]
    by_map: dict[tuple[int, int], list[int]] = {}
    for r, term in plain.items():
        if (term.q[0].row, term.k[0].row) != (r, r):
            by_map.setdefault((term.q[0].row, term.k[0].row), []).append(r)
    pieces = [rows[i : i + size] for rows in by_map.values() if size > 1 for i in range(0, len(rows), size)]
    return [piece for piece in pieces if len(piece) > 1]


def _shared_softmax(group: Mapping[int, RowTerm], p: Projections) -> dict[int, Tensor]:
    """Run rows with one map as ONE attention with their values side by side, (1, H, N, D) per row.

    Queries and keys are padded with zeros to the values' width, which changes no logit.
    """
    term, width = next(iter(group.values())), p.q.shape[-1]
    v = torch.cat([p.tokens("v", t.v) for t in group.values()], dim=-1)
    pad = (0, v.shape[-1] - width)
    q, k = F.pad(p.tokens("q", term.q), pad), F.pad(p.tokens("k", term.k), pad)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=p.masked(None, term.k), scale=width**-0.5)
    return dict(zip(group, torch.split(out, width, dim=-1), strict=True))


def _row_out(terms: Sequence[RowTerm | RowJoint], p: Projections, columns: Tensor | None = None) -> Tensor:
    """Add up what a row's terms write, (1, H, N, D); with `columns` (M, K) in place of the values, (1, H, N, K)."""
    outs: dict[tuple[int, int] | None, Tensor] = {}
    for term in terms:
        out = _term_out(term, p, columns)
        out = out if term.weight == 1.0 else out * term.weight
        outs[term.to] = outs[term.to] + out if term.to in outs else out
    written = sorted(outs, key=lambda to: to or (0, 0))
    total = outs[written[0]] if len(written) == 1 else torch.cat([outs[to] for to in written], dim=2)
    return total if columns is None else total[..., : columns.shape[-1]]


def _term_out(term: RowTerm | RowJoint, p: Projections, columns: Tensor | None) -> Tensor:
    """Run one term for the queries that it writes, without its weight."""
    if isinstance(term, RowJoint):
        parts = []
        for part in term.parts:
            q, k, v = p.tokens("q", part.q), p.tokens("k", part.k), _values(part, p, columns)
            parts.append(Part(q.to(v.dtype), k.to(v.dtype), v, p.masked(term.to, part.k)))
        return attend_jointly(parts)
    v = _values(term, p, columns)
    q, k = p.tokens("q", term.q), p.tokens("k", term.k)
    mask = p.masked(term.to, term.k) if term.mask is None else _as_added(term.mask(), v.dtype)
    out = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, attn_mask=mask)
    return out if term.mass is None else out * _mass(*term.mass, p, out.dtype)


def _values(term: RowTerm, p: Projections, columns: Tensor | None) -> Tensor:
    """Make what a term's map is multiplied with, (1, H, M, D): mapped values, or the columns where they count."""
    if columns is None:
        parts = [p.tokens("v", [piece]) for piece in term.v]
    else:  # padded to D: with values of another width torch falls back to a kernel that stores the whole map
        wide = F.pad(columns, (0, max(0, p.q.shape[-1] - columns.shape[-1])))
        wide = wide.expand(1, p.q.shape[1], -1, -1)
        cut = [wide[:, :, piece.start : piece.stop] for piece in term.v]
        parts = [torch.zeros_like(x) if piece.zero else x for x, piece in zip(cut, term.v, strict=True)]
    if term.value_map is None:
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
    t = term.value_map
    counting = [i for i, piece in enumerate(term.v) if not piece.zero]
    if t.shape[0] == sum(part.shape[2] for part in parts):
        counting = list(range(len(parts)))
    joined = torch.cat([parts[i] for i in counting], dim=2)
    t = t.to(joined.dtype)
    mapped = t[:, None] * joined if t.ndim == 1 else t @ joined
    sizes = [parts[i].shape[2] for i in counting]
    for i, part in zip(counting, torch.split(mapped, sizes, dim=2), strict=True):
        parts[i] = part
    return mapped if len(counting) == len(parts) else torch.cat(parts, dim=2)


def _mass(queries: Piece, keys: Piece, p: Projections, dtype: torch.dtype) -> Tensor:
    """Return what a row's own map gives to some of its keys, (1, H, N, 1): attention over ones instead of values.

    The ones are as wide as a head: with narrower values torch falls back to a kernel that stores the whole map.
    """
    whole = Piece(keys.row)
    q, k = p.tokens("q", [queries]).to(dtype), p.tokens("k", [whole]).to(dtype)
    ones = torch.zeros_like(k)
    ones[:, :, keys.start : keys.stop] = 1
    at = None if queries.stop is None else (queries.start, queries.stop)
    return F.scaled_dot_product_attention(q, k, ones, attn_mask=p.masked(at, [whole]))[..., :1]


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


def _observe(action: RowAction, op: Operation, p: Projections, out: Tensor, edited: Tensor | None) -> None:
    """Give a reader the row's own q, k, v or output, or A U of its edited map, in float32 as thresholds follow."""
    observation = action.bound.controller.observe
    assert observation is not None  # resolve() put only observers here
    if observation.of != "columns":
        read = out[action.row] if observation.of == "out" else p.pick(observation.of, [action.row])[0]
        observation.sink(action.call, read)
        return
    columns = observation.columns(action.call) if callable(observation.columns) else observation.columns
    wide = torch.float64 if p.q.dtype == torch.float64 else torch.float32
    columns = columns.to(p.q.device, wide)
    if edited is not None:
        observation.sink(action.call, edited.to(wide) @ columns)
    else:
        observation.sink(action.call, _row_out(op.terms[action.row], p, columns)[0])
