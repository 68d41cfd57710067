"""From what controllers say about lanes and segments to what the executor does with batch rows and tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attnctl.attend import Attend, AttendJoint, AttentionCall, Expression, Lane
from attnctl.branches import Branches, Row
from attnctl.engine.operation import Bound, Operation, Piece, RowAction, RowJoint, RowTerm, shape_error
from attnctl.errors import PluginError
from attnctl.sites import Site
from attnctl.steps import Step


def resolve(
    site: Site,
    step: Step,
    branches: Branches,
    bounds: Sequence[Bound],
    grid: tuple[int, int],
    keys: int,
    device: torch.device,
) -> Operation | None:
    """Turn the controllers that act at a site and step into an `Operation`; None when none does.

    Args:
        site: The site.
        step: The step.
        branches: The rows of the denoiser call.
        bounds: Controllers bound to this site.
        grid: Token grid (h, w) of the picture's queries.
        keys: Number of all key tokens.
        device: Where masks and maps are moved to.

    Raises:
        PluginError: Two controllers set the same row's map, by an expression or ``on_probs``, at one site and step.
    """
    op = Operation([(RowTerm.own(r),) for r in range(len(branches))], branches)
    written: dict[int, Bound] = {}
    for bound in bounds:
        if not bound.active(step):
            continue
        calls: list[AttentionCall] = []
        for half in bound.controller.passes:
            if Row(bound.lane, half) not in branches:
                continue
            row = branches.index(bound.lane, half)
            call = AttentionCall(site, step, branches, grid, keys, bound.lane, half)
            if site.kind == "joint":
                op.tokens = (call.queries, keys)
            if bound.controller.attend is not None:
                expression = bound.controller.expression(step)
                if expression is None:
                    continue
                _claim(written, row, bound, call)
                op.terms[row] = Resolver(bound, call, device).row(expression)
            else:
                if bound.controller.observe is not None:
                    row = branches.index(bound.lane_of(bound.controller.observe.lane), half)
                if bound.controller.on_probs is not None:
                    _claim(written, row, bound, call)
                target = {"on_qkv": op.edits, "on_probs": op.probs, "observe": op.observers}[bound.controller.action]
                target.append(RowAction(bound, call, row))
            calls.append(call)
        if calls:
            op.acting.append((bound, calls))
    return op if op.acting else None


def _claim(written: dict[int, Bound], row: int, bound: Bound, call: AttentionCall) -> None:
    """Note who sets a row's map; one only, because the second would silently undo the first."""
    if row in written:
        raise PluginError(
            f"controllers {written[row].label!r} and {bound.label!r} both set the attention of "
            f"{call.lane}/{call.half} at {call.site.path} in step {call.step.index}",
            hint="give them disjoint sites or steps, or add their expressions in one controller",
        )
    written[row] = bound


@dataclass(frozen=True)
class Resolver:
    """Turns one row's expression into terms over rows and tokens.

    What a site's segments make of a term is decided here, so that the executor sees no segment: a mapping that covers
    a site with one lane becomes that lane, a restriction to all of a site's tokens vanishes, and a term over keys,
    values or queries that the site does not have adds nothing.
    """

    bound: Bound
    call: AttentionCall
    device: torch.device

    def row(self, expression: Expression) -> tuple[RowTerm | RowJoint, ...]:
        """Resolve a row's expression; queries that no term writes get their own attention."""
        segments = {name: (at.start, at.stop) for name, at in self.call.segments.queries.items()}
        said = [term for term in expression.terms if self._adds(term)]
        restricted = len(segments) > 1 and any(term.to is not None for term in said)
        terms: list[RowTerm | RowJoint] = []
        for name, to in segments.items() if restricted else [(None, None)]:
            here = [self._term(term, to) for term in said if not restricted or term.to in (None, name)]
            terms += here or ([RowTerm.own(self._row("self"), to)] if restricted else [])
        if not terms or not said:
            raise PluginError(
                f"the expression {str(expression)!r} of controller {self.bound.label!r} has no term that says anything "
                f"at {self.call.site.path} ({self.call.site.kind} attention, step {self.call.step.index})",
                hint="add a term without restrictions, or select other sites",
            )
        return tuple(terms)

    def _row(self, lane: str) -> int:
        return self.call.branches.index(self.bound.lane_of(lane), self.call.half)

    def _adds(self, term: Attend | AttendJoint) -> bool:
        """Whether the site has the queries that a term writes and the keys or values that it reads."""
        if isinstance(term, AttendJoint):
            return any(self._adds(part) for part in term.parts)
        read = (term.keys, term.values)
        site = self.call.site
        return term.to in (None, *site.queries) and all(name is None or name in site.keys for name in read)

    def _term(self, term: Attend | AttendJoint, to: tuple[int, int] | None) -> RowTerm | RowJoint:
        if isinstance(term, Attend):
            return self._attend(term, to)
        parts = [self._attend(part, to) for part in term.parts if self._adds(part)]
        if len({part.q for part in parts}) == 1:  # the same queries: joined keys are one softmax already
            order = sorted(parts, key=lambda part: part.k[0].start)
            k = _joined([piece for part in order for piece in part.k], self.call.keys)
            v = _joined([piece for part in order for piece in part.v], self.call.keys)
            return RowTerm(parts[0].q, k, v, term.weight, to=to)
        return RowJoint(tuple(parts), term.weight, to)

    def _attend(self, term: Attend, to: tuple[int, int] | None) -> RowTerm:
        layout, total = self.call.segments, self.call.keys
        keys = None if term.keys is None else _bounds(layout.keys[term.keys])
        counts = None if term.values is None else _bounds(layout.keys[term.values])
        q = _joined(self._pieces(term.q, layout.queries, to), self.call.queries)
        k = [piece for lane in term.key_lanes for piece in _joined(self._pieces(lane, layout.keys, keys), total)]
        v = [
            piece
            for lane in term.value_lanes
            for piece in _joined(self._pieces(lane, layout.keys, keys, counts), total)
        ]
        mass = None
        if term.mass and keys is not None and keys != (0, total):
            own = self._row("self")
            mass = (Piece(own, *(to or ())), Piece(own, *keys))
        value_map = self._value_map(term, keys, counts)
        return RowTerm(q, tuple(k), tuple(v), term.weight, value_map, self._mask(term, to, keys), to, mass)

    def _pieces(
        self,
        lane: Lane,
        segments: Mapping[str, slice],
        only: tuple[int, int] | None,
        counts: tuple[int, int] | None = None,
    ) -> list[Piece]:
        """List a lane's tokens segment by segment, those outside of `only` left out, those outside of `counts` zero."""
        pieces = []
        for name, at in segments.items():
            if only is None or only[0] <= at.start < at.stop <= only[1]:
                row = self._row(lane if isinstance(lane, str) else lane.get(name, "self"))
                pieces.append(Piece(row, at.start, at.stop, counts is not None and counts != _bounds(at)))
        return pieces

    def _value_map(self, term: Attend, keys: tuple[int, int] | None, counts: tuple[int, int] | None) -> Tensor | None:
        value_map = term.value_map(self.call) if callable(term.value_map) else term.value_map
        if value_map is None:
            return None
        lanes = len(term.key_lanes)
        whole = self.call.keys * lanes
        sizes = {whole} if (read := keys or counts) is None else {whole, (read[1] - read[0]) * lanes}
        found = tuple(value_map.shape)
        if found not in {(size,) for size in sizes} | {(size, size) for size in sizes}:
            expected = " or ".join(f"({size}, {size}) or ({size},)" for size in sorted(sizes, reverse=True))
            raise shape_error(self.bound, self.call, "value map", found, expected)
        value_map = value_map.to(self.device)
        if keys is not None and found[0] == whole:
            at = self._columns(keys, lanes)
            value_map = value_map[at] if value_map.ndim == 1 else value_map[at][:, at]
        return value_map

    def _mask(
        self, term: Attend, to: tuple[int, int] | None, keys: tuple[int, int] | None
    ) -> Callable[[], Tensor] | None:
        if term.mask is None:
            return None
        call, lanes = self.call, len(term.key_lanes)
        size = (call.queries, call.keys * lanes)

        def mask() -> Tensor:
            made = term.mask(call) if callable(term.mask) else term.mask
            if made is None or tuple(made.shape) != size:
                found = () if made is None else tuple(made.shape)
                raise shape_error(self.bound, call, "mask", found, f"({size[0]}, {size[1]})")
            made = made if to is None else made[slice(*to)]
            made = made if keys is None else made[:, self._columns(keys, lanes).to(made.device)]
            _check_keys(made, self.bound, call)
            return made.to(self.device)

        return mask

    def _columns(self, keys: tuple[int, int], lanes: int) -> Tensor:
        """Return where the keys (start, stop) of every joined lane stand among all of their keys."""
        starts = torch.arange(lanes, device=self.device)[:, None] * self.call.keys
        return (starts + torch.arange(*keys, device=self.device)).flatten()


def _bounds(at: slice) -> tuple[int, int]:
    return at.start, at.stop


def _joined(pieces: Sequence[Piece], total: int) -> tuple[Piece, ...]:
    """Merge pieces that follow each other in one row; a piece that holds all of a row's `total` tokens is the row."""
    merged: list[Piece] = []
    for piece in pieces:
        last = merged[-1] if merged else None
        if last is not None and (last.row, last.stop, last.zero) == (piece.row, piece.start, piece.zero):
            merged[-1] = last._replace(stop=piece.stop)
        else:
            merged.append(piece)
    return tuple(Piece(p.row, zero=p.zero) if (p.start, p.stop) == (0, total) else p for p in merged)


def _check_keys(mask: Tensor, bound: Bound, call: AttentionCall) -> None:
    """Refuse a mask that leaves a query without any key: its softmax would be NaN, which spreads over the picture."""
    allowed = mask if mask.dtype == torch.bool else mask > float("-inf")
    lost = int((~allowed.any(dim=-1)).sum())
    if lost:
        raise PluginError(
            f"controller {bound.label!r} gave a mask at {call.site.path} in step {call.step.index} under which "
            f"{lost} of {mask.shape[0]} queries see no key",
            hint="let every query see at least one key, for example its own place",
        )
