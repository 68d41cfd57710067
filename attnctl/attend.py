"""The attention algebra: which lane's queries, keys and values meet, as data that can be printed.

Write A[a, b] for ``softmax(q_a k_b^T / sqrt(D))``. Almost every published edit is linear in A, so it is a sum

    out_self = sum_m  w_m  A[a_m, b_m]  T_m v_m

whose terms are plain fused scaled-dot-product attention on other rows and with mapped values: (A C) V = A (C V) for
any fixed matrix C over the key tokens. No attention map has to exist for any of them.

Where image and text tokens meet under one softmax, a term may say which of these segments it speaks of: a lane per
segment, the queries that it writes, the keys or values that it keeps. A segment that a site does not have restricts
nothing there, so one expression serves every family of models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from attnctl.branches import Branches, Half
from attnctl.errors import SelectionError
from attnctl.sites import SEGMENTS, Layout, Site, check_segment
from attnctl.steps import Step

if TYPE_CHECKING:
    from torch import Tensor

Lane = str | Mapping[str, str]
"""A lane, or a lane per segment: ``{"image": "source"}`` leaves every other segment to ``"self"``."""

Lanes = Lane | tuple[Lane, ...]
"""One lane, or several whose tokens are joined."""


@dataclass(frozen=True)
class AttentionCall:
    """All context of one attention call, as an edit sees it; holds no activations.

    Attributes:
        site: Where it happens.
        step: When it happens.
        branches: The batch rows of this denoiser call.
        grid: Token grid (h, w) of the picture's queries, N = h * w; never derive it from a square root.
        keys: Number of all key tokens: N at self attention, the text length M at cross attention, N + M at joint.
        lane: The lane being edited.
        half: The guidance half being edited.
    """

    site: Site
    step: Step
    branches: Branches
    grid: tuple[int, int]
    keys: int
    lane: str
    half: Half

    @property
    def segments(self) -> Layout:
        """Where image and text stand among the queries and among the keys; cut maps to the picture with it."""
        n = self.grid[0] * self.grid[1]
        sizes = {"image": n, "text": self.keys - n}
        alone = len(self.site.keys) == 1
        keys = {name: self.keys if alone else sizes[name] for name in self.site.keys}
        return Layout.of({name: sizes[name] for name in self.site.queries}, keys)

    @property
    def queries(self) -> int:
        """Number of all query tokens: N, and N + M at joint attention."""
        return self.segments.query_count


@dataclass(frozen=True, eq=False)
class Attend:
    """One term ``w A[q, k] T v``; terms add up with ``+``, scale with ``*`` and share one softmax with ``|``.

    A lane is ``"self"``, ``"source"`` or a lane's name; or a mapping from segments to such names, in which a segment
    that is not named is ``"self"``. A mapping that gives all of a site's segments to one lane is that lane.

    Attributes:
        q: Lane whose queries are used.
        k: Lane, or lanes whose keys are joined under ONE softmax.
        v: Lane, or lanes (as many as `k`) whose values are joined.
        weight: Factor w.
        value_map: Linear map T over value tokens, applied as ``T @ v``: shape (K, K), or (K,) for a diagonal, or a
            function of the `AttentionCall` that returns either. K counts all keys of the joined lanes
            (``call.keys`` a lane), or only those of the segment in `keys` or `values`.
        mask: Which keys a query may see: bool (Q, K), True = may, or float (Q, K), added to the logits, for all
            queries and all keys (``call.queries``, ``call.keys`` a lane); or a function of the `AttentionCall` that
            returns either.
        to: Query segment that the term writes; None is all. Queries that no term of an expression writes keep their
            own attention.
        keys: Segment whose keys alone the softmax runs over.
        values: Segment whose values count; all others are zero, while the softmax still runs over all keys.
        mass: Whether the term is scaled, query by query, with what the lane's own map gives to the keys in `keys`.

    Raises:
        SelectionError: Lanes or restrictions that do not fit together, or a segment that does not exist.
    """

    q: Lane = "self"
    k: Lanes = "self"
    v: Lanes = "self"
    weight: float = 1.0
    value_map: Tensor | Callable[[AttentionCall], Tensor] | None = None
    mask: Tensor | Callable[[AttentionCall], Tensor] | None = None
    to: str | None = None
    keys: str | None = None
    values: str | None = None
    mass: bool = False

    def __post_init__(self) -> None:
        if len(self.key_lanes) != len(self.value_lanes):
            raise SelectionError(
                f"{len(self.key_lanes)} key lanes meet {len(self.value_lanes)} value lanes",
                hint="every key token needs its value token: name as many lanes in v as in k",
            )
        if self.mass and self.keys is None:
            raise SelectionError(
                "a term is scaled with the mass of keys that it does not name",
                hint='say which: Attend(..., keys="image", mass=True)',
            )
        if self.keys is not None and self.values is not None:
            raise SelectionError(
                f"a term is restricted to {self.keys} keys and to {self.values} values",
                hint="`keys` restricts the softmax and with it the values; `values` keeps the softmax over all keys",
            )
        mapped = [lane for lane in (self.q, *self.key_lanes, *self.value_lanes) if not isinstance(lane, str)]
        for name in (self.to, self.keys, self.values, *(segment for lane in mapped for segment in lane)):
            if name is not None:
                check_segment(name)

    @property
    def key_lanes(self) -> tuple[Lane, ...]:
        """The lanes whose keys are joined."""
        return self.k if isinstance(self.k, tuple) else (self.k,)

    @property
    def value_lanes(self) -> tuple[Lane, ...]:
        """The lanes whose values are joined."""
        return self.v if isinstance(self.v, tuple) else (self.v,)

    @property
    def lanes(self) -> frozenset[str]:
        """Every lane name that the term may read, whatever segments a site has."""
        names: set[str] = {"self"} if self.mass or self.to is not None else set()
        for lane in (self.q, *self.key_lanes, *self.value_lanes):
            names |= {lane} if isinstance(lane, str) else {lane.get(segment, "self") for segment in SEGMENTS}
        return frozenset(names)

    @property
    def terms(self) -> tuple[Attend | AttendJoint, ...]:
        """The term itself, so that a term and a sum are read alike."""
        return (self,)

    def __add__(self, other: Expression) -> AttendSum:
        return AttendSum(self.terms + other.terms)

    def __or__(self, other: Attend | AttendJoint) -> AttendJoint:
        return AttendJoint((self, *(other.parts if isinstance(other, AttendJoint) else (other,))))

    def __mul__(self, factor: float) -> Attend:
        return replace(self, weight=self.weight * factor)

    __rmul__ = __mul__

    def __str__(self) -> str:
        def joined(lanes: tuple[Lane, ...]) -> str:
            return "|".join(map(_lane_text, lanes))

        weight = "" if self.weight == 1.0 else f"{self.weight:g} "
        mass = "mass " if self.mass else ""
        mapped = "" if self.value_map is None else "T "
        masked = "" if self.mask is None else " masked"
        over = "" if self.keys is None else f" over {self.keys}"
        of = "" if self.values is None else f" of {self.values}"
        return (
            f"{weight}{mass}A[{_lane_text(self.q)}, {joined(self.key_lanes)}{over}]{masked} "
            f"{mapped}v[{joined(self.value_lanes)}{of}]{_to_text(self.to)}"
        )


def _lane_text(lane: Lane) -> str:
    return lane if isinstance(lane, str) else "{" + ", ".join(f"{k}: {v}" for k, v in lane.items()) + "}"


def _to_text(to: str | None) -> str:
    return "" if to is None else f" -> {to}"


@dataclass(frozen=True, eq=False)
class AttendJoint:
    """Terms under ONE softmax, each over the keys of its own segment; their queries may come from different lanes.

    Attributes:
        parts: Terms with different `keys` and the same `to`, without weight, mass, mask or map of values.
        weight: Factor w of the whole.

    Raises:
        SelectionError: The parts do not fit under one softmax.
    """

    parts: tuple[Attend, ...]
    weight: float = 1.0

    def __post_init__(self) -> None:
        segments = [part.keys for part in self.parts]
        if None in segments or len(set(segments)) != len(segments) or not segments:
            raise SelectionError(
                f"terms that share one softmax run over the keys {segments}",
                hint="name another segment in `keys` of each: every key may be there once",
            )
        if len({part.to for part in self.parts}) != 1:
            raise SelectionError(
                f"terms that share one softmax write to {[part.to for part in self.parts]}",
                hint="give all of them the same `to`",
            )
        for part in self.parts:
            if part.weight != 1.0 or part.mass or part.mask is not None or part.value_map is not None:
                raise SelectionError(
                    f"the term {part} has a weight, mass, mask or value map inside of a shared softmax",
                    hint="weigh the whole: 0.5 * (a | b)",
                )

    @property
    def to(self) -> str | None:
        """Query segment that is written; None is all."""
        return self.parts[0].to

    @property
    def lanes(self) -> frozenset[str]:
        """Every lane name that the parts may read."""
        return frozenset().union(*(part.lanes for part in self.parts))

    @property
    def terms(self) -> tuple[Attend | AttendJoint, ...]:
        """Itself, so that it and a sum are read alike."""
        return (self,)

    def __add__(self, other: Expression) -> AttendSum:
        return AttendSum(self.terms + other.terms)

    def __or__(self, other: Attend) -> AttendJoint:
        if self.weight != 1.0:
            raise SelectionError("a weighted joint term is joined further", hint="weigh the whole: 0.5 * (a | b | c)")
        return AttendJoint((*self.parts, other))

    def __mul__(self, factor: float) -> AttendJoint:
        return replace(self, weight=self.weight * factor)

    __rmul__ = __mul__

    def __str__(self) -> str:
        weight = "" if self.weight == 1.0 else f"{self.weight:g} "
        parts = " | ".join(str(replace(part, to=None)) for part in self.parts)
        return f"{weight}joint({parts}){_to_text(self.to)}"


@dataclass(frozen=True, eq=False)
class AttendSum:
    """A sum of `Attend` and `AttendJoint` terms."""

    terms: tuple[Attend | AttendJoint, ...]

    @property
    def lanes(self) -> frozenset[str]:
        """Every lane name that the sum reads."""
        return frozenset().union(*(t.lanes for t in self.terms))

    def __add__(self, other: Expression) -> AttendSum:
        return AttendSum(self.terms + other.terms)

    def __mul__(self, factor: float) -> AttendSum:
        return AttendSum(tuple(t * factor for t in self.terms))

    __rmul__ = __mul__

    def __str__(self) -> str:
        return " + ".join(str(t) for t in self.terms)


Expression = Attend | AttendJoint | AttendSum
"""What a row's attention is set to."""
