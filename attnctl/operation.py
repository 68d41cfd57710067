"""Attention edits resolved to batch rows, and the executor that runs them as fused attention.

Tensors here are (B, H, N, D) queries and (B, H, M, D) keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from attnctl.attend import Attend, AttentionCall
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
            raise _shape_error(bound, call, "mask", () if made is None else tuple(made.shape), f"({n}, {keys})")
        return made.to(device)

    value_map = term.value_map(call) if callable(term.value_map) else term.value_map
    if value_map is not None:
        if tuple(value_map.shape) not in {(keys,), (keys, keys)}:
            raise _shape_error(bound, call, "value map", tuple(value_map.shape), f"({keys}, {keys}) or ({keys},)")
        value_map = value_map.to(device)
    lazy = None if term.mask is None else mask
    return RowTerm(rows((term.q,))[0], rows(term.key_lanes), rows(term.value_lanes), term.weight, value_map, lazy)


def _shape_error(bound: Bound, call: AttentionCall, what: str, found: tuple[int, ...], expected: str) -> PluginError:
    return PluginError(
        f"controller {bound.label!r} gave a {what} of shape {found} at {call.site.path} in step {call.step.index}, "
        f"expected {expected}",
        hint="tokens are counted by call.grid and call.keys",
    )


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
        tolerance = 8 * torch.finfo(a.dtype).eps * float(b.abs().max())
        bound.differs = float((a - b).abs().max()) > tolerance


def _run_terms(op: Operation, p: Projections) -> Tensor:
    """One gathered call for all rows with a single plain term; one call per remaining term."""
    plain = [r for r, terms in enumerate(op.terms) if len(terms) == 1 and terms[0].plain]
    outputs: dict[int, Tensor] = {}
    if plain:
        firsts = [op.terms[r][0] for r in plain]
        keys = [t.k[0] for t in firsts]
        batch = F.scaled_dot_product_attention(
            p.pick("q", [t.q for t in firsts]),
            p.pick("k", keys),
            p.pick("v", [t.v[0] for t in firsts]),
            attn_mask=p.mask_of(keys),
        )
        if len(plain) == len(op.terms):
            return batch
        outputs = {r: batch[i : i + 1] for i, r in enumerate(plain)}
    for r, terms in enumerate(op.terms):
        if r not in outputs:
            outputs[r] = _sum_terms(terms, p)
    return torch.cat([outputs[r] for r in range(len(op.terms))])


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
        mask = joined if term.mask is None else term.mask()
        out = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, attn_mask=mask)
        out = out if term.weight == 1.0 else out * term.weight
        total = out if total is None else total + out
    if total is None:
        raise PluginError("an attention expression has no terms", hint="add at least one Attend term")
    return total if columns is None else total[..., : columns.shape[-1]]


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
                raise _shape_error(action.bound, action.call, f"{part} tensor", tuple(new.shape), expected)
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
            raise _shape_error(action.bound, call, "map", tuple(probs.shape), str(expected))
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
