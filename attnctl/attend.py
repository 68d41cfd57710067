"""The attention algebra: which lane's queries, keys and values meet, as data that can be printed.

Write A[a, b] for ``softmax(q_a k_b^T / sqrt(D))``. Almost every published edit is linear in A, so it is a sum

    out_self = sum_m  w_m  A[a_m, b_m]  T_m v_m

whose terms are plain fused scaled-dot-product attention on other rows and with mapped values: (A C) V = A (C V) for
any fixed matrix C over the key tokens. No attention map has to exist for any of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from attnctl.branches import Branches, Half
from attnctl.errors import SelectionError
from attnctl.sites import Site
from attnctl.steps import Step

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class AttentionCall:
    """All context of one attention call, as an edit sees it; holds no activations.

    Attributes:
        site: Where it happens.
        step: When it happens.
        branches: The batch rows of this denoiser call.
        grid: Query token grid (h, w), N = h * w; never derive it from a square root.
        keys: Number of key tokens M (the text length at cross attention).
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


@dataclass(frozen=True, eq=False)
class Attend:
    """One term ``w A[q, k] T v``; terms add up with ``+`` and scale with ``*``.

    Attributes:
        q: Lane whose queries are used: ``"self"``, ``"source"`` or a lane's name.
        k: Lane, or lanes whose keys are joined under ONE softmax.
        v: Lane, or lanes (as many as `k`) whose values are joined.
        weight: Factor w.
        value_map: Linear map T over value tokens, applied as ``T @ v``: shape (M, M), or (M,) for a diagonal, or a
            function of the `AttentionCall` that returns either. At cross attention M is the text length.
        mask: Which keys a query may see: bool (N, M), True = may, or float (N, M), added to the logits; or a function
            of the `AttentionCall` that returns either.
    """

    q: str = "self"
    k: str | tuple[str, ...] = "self"
    v: str | tuple[str, ...] = "self"
    weight: float = 1.0
    value_map: Tensor | Callable[[AttentionCall], Tensor] | None = None
    mask: Tensor | Callable[[AttentionCall], Tensor] | None = None

    def __post_init__(self) -> None:
        if len(self.key_lanes) != len(self.value_lanes):
            raise SelectionError(
                f"{len(self.key_lanes)} key lanes meet {len(self.value_lanes)} value lanes",
                hint="every key token needs its value token: name as many lanes in v as in k",
            )

    @property
    def key_lanes(self) -> tuple[str, ...]:
        """The lanes whose keys are joined."""
        return (self.k,) if isinstance(self.k, str) else self.k

    @property
    def value_lanes(self) -> tuple[str, ...]:
        """The lanes whose values are joined."""
        return (self.v,) if isinstance(self.v, str) else self.v

    @property
    def lanes(self) -> frozenset[str]:
        """Every lane name that the term reads."""
        return frozenset({self.q, *self.key_lanes, *self.value_lanes})

    @property
    def terms(self) -> tuple[Attend, ...]:
        """The term itself, so that a term and a sum are read alike."""
        return (self,)

    def __add__(self, other: Attend | AttendSum) -> AttendSum:
        return AttendSum(self.terms + other.terms)

    def __mul__(self, factor: float) -> Attend:
        return replace(self, weight=self.weight * factor)

    __rmul__ = __mul__

    def __str__(self) -> str:
        def joined(names: tuple[str, ...]) -> str:
            return "|".join(names)

        weight = "" if self.weight == 1.0 else f"{self.weight:g} "
        mapped = "" if self.value_map is None else "T "
        masked = "" if self.mask is None else " masked"
        return f"{weight}A[{self.q}, {joined(self.key_lanes)}]{masked} {mapped}v[{joined(self.value_lanes)}]"


@dataclass(frozen=True, eq=False)
class AttendSum:
    """A sum of `Attend` terms."""

    terms: tuple[Attend, ...]

    @property
    def lanes(self) -> frozenset[str]:
        """Every lane name that the sum reads."""
        return frozenset().union(*(t.lanes for t in self.terms))

    def __add__(self, other: Attend | AttendSum) -> AttendSum:
        return AttendSum(self.terms + other.terms)

    def __mul__(self, factor: float) -> AttendSum:
        return AttendSum(tuple(t * factor for t in self.terms))

    __rmul__ = __mul__

    def __str__(self) -> str:
        return " + ".join(str(t) for t in self.terms)
