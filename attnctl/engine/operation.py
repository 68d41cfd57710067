"""Attention edits resolved to batch rows: what a layer shall do in the next denoiser call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attnctl.attend import Attend, AttentionCall
from attnctl.branches import Branches, Half, Row, resolve_lane
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


@dataclass(frozen=True, eq=False)
class RowTerm:
    """One term ``w A[q, k] T v`` of one output row, in batch indices.

    The mask is made when the layer runs, not before: it may depend on maps read earlier in the same denoiser call.
    """

    q: int
    k: tuple[int, ...]
    v: tuple[int, ...]
    weight: float = 1.0
    value_map: Tensor | None = None
    mask: Callable[[], Tensor] | None = None

    @property
    def plain(self) -> bool:
        """Whether it is bare attention between one row's queries, one row's keys and one row's values."""
        return len(self.k) == 1 and self.weight == 1.0 and self.value_map is None and self.mask is None


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
    """

    terms: list[tuple[RowTerm, ...]]
    branches: Branches
    edits: list[RowAction] = field(default_factory=list)
    probs: list[RowAction] = field(default_factory=list)
    observers: list[RowAction] = field(default_factory=list)
    acting: list[tuple[Bound, list[AttentionCall]]] = field(default_factory=list)

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
        rows: set[int] = set()
        for terms in self.terms:
            for term in terms:
                rows.update((term.q,) if part == "q" else getattr(term, part))
        return tuple(sorted(rows))


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
        grid: Query token grid (h, w).
        keys: Number of key tokens M.
        device: Where masks and maps are moved to.

    Raises:
        PluginError: Two controllers set the same row's map, by an expression or ``on_probs``, at one site and step.
    """
    op = Operation([(RowTerm(r, (r,), (r,)),) for r in range(len(branches))], branches)
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
            if bound.controller.attend is not None:
                expression = bound.controller.expression(step)
                if expression is None:
                    continue
                _claim(written, row, bound, call)
                op.terms[row] = tuple(_row_term(t, bound, call, device) for t in expression.terms)
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


def _row_term(term: Attend, bound: Bound, call: AttentionCall, device: torch.device) -> RowTerm:
    def rows(names: Sequence[str]) -> tuple[int, ...]:
        return tuple(call.branches.index(bound.lane_of(n), call.half) for n in names)

    keys = call.keys * len(term.key_lanes)
    n = call.grid[0] * call.grid[1]

    def mask() -> Tensor:
        made = term.mask(call) if callable(term.mask) else term.mask
        if made is None or tuple(made.shape) != (n, keys):
            raise shape_error(bound, call, "mask", () if made is None else tuple(made.shape), f"({n}, {keys})")
        _check_keys(made, bound, call)
        return made.to(device)

    value_map = term.value_map(call) if callable(term.value_map) else term.value_map
    if value_map is not None:
        if tuple(value_map.shape) not in {(keys,), (keys, keys)}:
            raise shape_error(bound, call, "value map", tuple(value_map.shape), f"({keys}, {keys}) or ({keys},)")
        value_map = value_map.to(device)
    lazy = None if term.mask is None else mask
    return RowTerm(rows((term.q,))[0], rows(term.key_lanes), rows(term.value_lanes), term.weight, value_map, lazy)


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


def shape_error(bound: Bound, call: AttentionCall, what: str, found: tuple[int, ...], expected: str) -> PluginError:
    """Build the error for a callback's result of a wrong shape."""
    return PluginError(
        f"controller {bound.label!r} gave a {what} of shape {found} at {call.site.path} in step {call.step.index}, "
        f"expected {expected}",
        hint="tokens are counted by call.grid and call.keys",
    )
