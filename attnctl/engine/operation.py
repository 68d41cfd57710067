"""Edits in terms of batch rows: what an attention layer, or a feature's tap, shall do in the next denoiser call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from attnctl.attend import AttentionCall
from attnctl.branches import Branches, Half, LaneTensors, Row, resolve_lane
from attnctl.controller import Controller
from attnctl.errors import PluginError
from attnctl.sites import Site
from attnctl.steps import Step


@dataclass
class Bound:
    """A controller bound to a lane, with the sites it selected, the steps it may act on, and where it acted.

    Attributes:
        expected: Number of (site, step, half) triples it should act on; step actions count steps.
        acted: The triples it did act on.
        differs: Whether it has been seen to change something.
    """

    controller: Controller
    lane: str
    source: str
    sites: tuple[Site, ...]
    steps: tuple[int, ...]
    expected: int
    acted: set[tuple[str, int, Half | None]] = field(default_factory=set)
    differs: bool = False

    @property
    def label(self) -> str:
        """``lane: controller`` for tables and errors."""
        return f"{self.lane}: {self.controller.name}"

    def active(self, step: Step) -> bool:
        """Whether it acts at a step."""
        return step.index in self.steps

    def begin(self, start: int) -> None:
        """Leave out the steps before `start`, which a lane that starts late never runs."""
        kept = tuple(i for i in self.steps if i >= start)
        if self.steps:
            self.expected = self.expected // len(self.steps) * len(kept)
        self.steps = kept

    def lane_of(self, name: str) -> str:
        """Turn ``self`` and ``source`` into real lane names."""
        return resolve_lane(name, self.lane, self.source)


class Piece(NamedTuple):
    """Tokens of one row that stand next to each other.

    Attributes:
        row: Batch index.
        start: First token.
        stop: Behind the last token; None is all of the row's tokens.
        zero: Whether zeros stand in their place (values that do not count).
    """

    row: int
    start: int = 0
    stop: int | None = None
    zero: bool = False


@dataclass(frozen=True, eq=False)
class RowTerm:
    """One term ``w A[q, k] T v`` of one output row: which tokens meet, in batch indices.

    The mask is made when the layer runs, not before: it may depend on maps read earlier in the same denoiser call.

    Attributes:
        q: Queries, joined in this order.
        k: Keys, joined in this order.
        v: Values, piece by piece those of `k`.
        weight: Factor w.
        value_map: T over all of `v`, or over the pieces that are not zero.
        mask: Gives the mask over `q` and `k`.
        to: (start, stop) of the query tokens that are written; None is all. A row's terms either all have None, or
            together cover the row's tokens.
        mass: A piece of queries, and a piece of keys of the same row: the term is scaled with what the queries give
            to these keys among all keys of the row.
    """

    q: tuple[Piece, ...]
    k: tuple[Piece, ...]
    v: tuple[Piece, ...]
    weight: float = 1.0
    value_map: Tensor | None = None
    mask: Callable[[], Tensor] | None = None
    to: tuple[int, int] | None = None
    mass: tuple[Piece, Piece] | None = None

    @classmethod
    def own(cls, row: int, to: tuple[int, int] | None = None) -> RowTerm:
        """Make a row's plain attention, or that of some of its queries."""
        return cls((Piece(row, *(to or ())),), (Piece(row),), (Piece(row),), to=to)

    @property
    def plain(self) -> bool:
        """Whether it is bare attention between one row's queries, one row's keys and one row's values."""
        bare = self.weight == 1.0 and self.value_map is None and self.mask is None and self.mass is None
        whole = all(len(part) == 1 and part[0] == Piece(part[0].row) for part in (self.q, self.k, self.v))
        return bare and whole

    def rows(self, part: str) -> set[int]:
        """Return the rows whose ``q``, ``k`` or ``v`` it reads."""
        mass = {self.mass[0].row} if self.mass is not None and part in "qk" else set()
        return {piece.row for piece in getattr(self, part)} | mass


@dataclass(frozen=True, eq=False)
class RowJoint:
    """Parts under one softmax over the keys of them all; their queries differ."""

    parts: tuple[RowTerm, ...]
    weight: float = 1.0
    to: tuple[int, int] | None = None

    @property
    def plain(self) -> bool:
        """Never: it is more than one attention."""
        return False

    def rows(self, part: str) -> set[int]:
        """Return the rows whose ``q``, ``k`` or ``v`` it reads."""
        return set().union(*(term.rows(part) for term in self.parts))


@dataclass(frozen=True, eq=False)
class RowAction:
    """A bound callback for one output row."""

    bound: Bound
    call: AttentionCall
    row: int


@dataclass(eq=False)
class Operation:
    """What happens at one site in one denoiser call: terms for every row, then callbacks for some.

    Attributes:
        terms: Per output row, its terms; an untouched row has its own plain attention.
        edits: ``on_qkv`` actions, applied first.
        probs: ``on_probs`` actions, applied last.
        observers: Readers of word maps.
        acting: Bound controllers with the halves that they edit here.
        tokens: Numbers of query and key tokens that the site must have, where terms count on it; None does not ask.
    """

    terms: list[tuple[RowTerm | RowJoint, ...]]
    branches: Branches
    edits: list[RowAction] = field(default_factory=list)
    probs: list[RowAction] = field(default_factory=list)
    observers: list[RowAction] = field(default_factory=list)
    acting: list[tuple[Bound, list[AttentionCall]]] = field(default_factory=list)
    tokens: tuple[int, int] | None = None

    @property
    def needs_all(self) -> bool:
        """Whether callbacks may ask for any row's projection."""
        return bool(self.edits or self.probs or self.unproven)

    @property
    def unproven(self) -> list[Bound]:
        """Controllers that have not been seen to change anything yet."""
        return [b for b, _ in self.acting if not b.differs and b.controller.observe is None]

    def used(self, part: str) -> tuple[int, ...]:
        """Return the rows whose ``q``, ``k`` or ``v`` projection some term reads, ascending."""
        if self.needs_all:
            return tuple(range(len(self.terms)))
        rows = {action.row for action in self.observers if _observed(action) == part}
        for terms in self.terms:
            for term in terms:
                rows.update(term.rows(part))
        return tuple(sorted(rows))


def _observed(action: RowAction) -> str:
    """Return what a reader reads."""
    observation = action.bound.controller.observe
    return "" if observation is None else observation.of


def shape_error(bound: Bound, call: AttentionCall, what: str, found: tuple[int, ...], expected: str) -> PluginError:
    """Build the error for a callback's result of a wrong shape."""
    return PluginError(
        f"controller {bound.label!r} gave a {what} of shape {found} at {call.site.path} in step {call.step.index}, "
        f"expected {expected}",
        hint="tokens are counted by call.grid and call.keys",
    )


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
    readers = [action for action in actions if action.bound.controller.observe is not None]
    for action in (action for action in actions if action.bound.controller.observe is None):
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
    for action in readers:
        observation = action.bound.controller.observe
        assert observation is not None  # chosen by it
        observation.sink(action.call, rows[action.row])
        action.bound.acted.add((action.call.site.path, action.call.step.index, action.call.half))
    return feature if len(readers) == len(actions) else torch.stack(rows)
