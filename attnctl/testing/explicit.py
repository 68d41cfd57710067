"""The attention algebra by its definition: every map materialised, in float64, nothing shared or rearranged.

The engine's executor never holds a map. This one holds them all, so that tests of the engine, and of methods, have
something to be held against.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attnctl.attend import Attend, AttendJoint, AttentionCall, Expression, Lane
from attnctl.sites import Layout


@dataclass(frozen=True)
class ExplicitAttention:
    """One attention layer's tokens by lane.

    Attributes:
        q: Queries (H, N, D) by lane; ``"self"`` is the lane that is edited.
        k: Keys (H, M, D) by lane.
        v: Values (H, M, D) by lane.
        layout: Where the segments stand.
        call: Handed to masks and maps that are functions.
    """

    q: Mapping[str, Tensor]
    k: Mapping[str, Tensor]
    v: Mapping[str, Tensor]
    layout: Layout
    call: AttentionCall | None = None

    def attend(self, expression: Expression) -> Tensor:
        """Return what the edited lane's attention gives under an expression, (H, N, D) float64."""
        own = self.map() @ self.v["self"].double()
        total, written = torch.zeros_like(own), torch.zeros(own.shape[1], dtype=torch.bool)
        for term in expression.terms:
            to = self.layout.queries if term.to is None else {term.to} & self.layout.queries.keys()
            out = self._joint(term) if isinstance(term, AttendJoint) else self._term(term)
            if out is None:
                continue
            for segment in to:
                at = self.layout.queries[segment]
                total[:, at] += term.weight * out[:, at]
                written[at] = True
        return torch.where(written[:, None], total, own)

    def map(self) -> Tensor:
        """Return the edited lane's own map, (H, N, M)."""
        return torch.softmax(self._logits(Attend()), -1)

    def _tokens(self, part: Mapping[str, Tensor], lane: Lane, segments: Mapping[str, slice]) -> Tensor:
        names = {name: lane if isinstance(lane, str) else lane.get(name, "self") for name in segments}
        return torch.cat([part[names[name]][:, at].double() for name, at in segments.items()], dim=1)

    def _logits(self, term: Attend) -> Tensor:
        q = self._tokens(self.q, term.q, self.layout.queries)
        k = torch.cat([self._tokens(self.k, lane, self.layout.keys) for lane in term.key_lanes], dim=1)
        return q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])

    def _values(self, lanes: Sequence[Lane]) -> Tensor:
        return torch.cat([self._tokens(self.v, lane, self.layout.keys) for lane in lanes], dim=1)

    def _inside(self, segment: str, lanes: int) -> Tensor:
        """Mark the keys of a segment among those of all joined lanes."""
        marks = torch.zeros(self.layout.key_count, dtype=torch.bool)
        marks[self.layout.keys[segment]] = True
        return marks.repeat(lanes)

    def _term(self, term: Attend) -> Tensor | None:
        """Return A T v of all queries; None where the site has not what it reads."""
        read = term.keys or term.values
        if read is not None and read not in self.layout.keys:
            return None
        lanes = len(term.key_lanes)
        logits, v = self._logits(term), self._values(term.value_lanes)
        mask = term.mask(self.call) if callable(term.mask) else term.mask  # type: ignore[arg-type]
        if mask is not None:
            logits = logits.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else logits + mask
        if term.keys is not None:
            logits = logits.masked_fill(~self._inside(term.keys, lanes), float("-inf"))
        a = torch.softmax(logits, -1)
        if term.values is not None:
            v = torch.where(self._inside(term.values, lanes)[:, None], v, 0.0)
        t = term.value_map(self.call) if callable(term.value_map) else term.value_map  # type: ignore[arg-type]
        if t is not None:
            t = (torch.diag(t) if t.ndim == 1 else t).double()
            if t.shape[0] != v.shape[1]:
                assert read is not None
                at = self._inside(read, lanes).nonzero()[:, 0]
                full = torch.zeros(v.shape[1], v.shape[1], dtype=torch.float64)
                full[at[:, None], at] = t
                t = full
            elif term.keys is not None:
                at = self._inside(term.keys, lanes)
                t = torch.where(at[:, None] & at, t, 0.0)
            v = t @ v
        out = a @ v
        if term.mass:
            assert term.keys is not None
            out = out * self.map()[..., self.layout.keys[term.keys]].sum(-1, keepdim=True)
        return out

    def _joint(self, joint: AttendJoint) -> Tensor | None:
        logits, values = [], []
        for part in joint.parts:
            if part.keys is not None and part.keys in self.layout.keys:
                inside = self._inside(part.keys, len(part.key_lanes))
                logits.append(self._logits(part)[..., inside])
                values.append(self._values(part.value_lanes)[:, inside])
        if not logits:
            return None
        return torch.softmax(torch.cat(logits, -1), -1) @ torch.cat(values, 1)
