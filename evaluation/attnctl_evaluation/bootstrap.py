"""Means with intervals, paired win rates and rank correlations, from the rows of a comparison.

Pure functions on numpy. Every interval is a percentile bootstrap that draws *cases* with replacement, so that the seeds
of one case stay together: they share a source, and are not independent. Draws depend on nothing but the number of cases
and `seed`, so the same rows give the same intervals.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from attnctl.metric import Better

Floats = NDArray[np.float64]

_CHUNK = 2_000_000
"""Drawn indices held at once: 16 MB."""


@dataclass(frozen=True)
class Interval:
    """A mean and where it would lie for other cases of the same kind.

    Attributes:
        mean: Mean over all values.
        low: Lower end of the interval.
        high: Upper end; with a single case both ends are the mean, and say nothing.
        count: Number of values.
        cases: Number of cases that the values come from.
    """

    mean: float
    low: float
    high: float
    count: int
    cases: int


@dataclass(frozen=True)
class WinRate:
    """How often a method beats the baseline on the same case and seed.

    Attributes:
        wins: Pairs in which it is better.
        ties: Pairs with equal values.
        losses: Pairs in which it is worse.
        rate: (wins + ties / 2) / pairs, 0 to 1.
        low: Lower end of the rate's interval.
        high: Upper end.
    """

    wins: int
    ties: int
    losses: int
    rate: float
    low: float
    high: float

    @property
    def pairs(self) -> int:
        """Number of pairs."""
        return self.wins + self.ties + self.losses


@dataclass(frozen=True)
class Draws:
    """How to bootstrap.

    Attributes:
        samples: Number of resamples.
        level: Probability mass of an interval, between 0 and 1.
        seed: Seed of the draws.
    """

    samples: int = 2000
    level: float = 0.95
    seed: int = 0
    _kept: dict[int, Floats] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.samples < 1 or not 0 < self.level < 1:
            raise ValueError("a bootstrap needs at least one sample and a level between 0 and 1")

    def ends(self, sums: Floats, counts: Floats) -> tuple[float, float]:
        """Return the ends of the interval of sum(sums) / sum(counts) over cases drawn with replacement.

        Args:
            sums: Per case, the sum of its values, (cases,).
            counts: Per case, how many values, (cases,), all at least 1.
        """
        n = len(sums)
        if n * self.samples <= _CHUNK:
            drawn = self._kept.get(n)
            if drawn is None:
                if len(self._kept) >= 8:
                    self._kept.clear()
                drawn = self._kept[n] = self._times_drawn(np.random.default_rng(self.seed), n, self.samples)
            means = (drawn @ sums) / (drawn @ counts)
        else:
            generator, step = np.random.default_rng(self.seed), max(1, _CHUNK // n)
            parts = []
            for start in range(0, self.samples, step):
                drawn = self._times_drawn(generator, n, min(step, self.samples - start))
                parts.append((drawn @ sums) / (drawn @ counts))
            means = np.concatenate(parts)
        tail = (1 - self.level) / 2
        low, high = np.quantile(means, (tail, 1 - tail))
        return float(low), float(high)

    @staticmethod
    def _times_drawn(generator: np.random.Generator, n: int, samples: int) -> Floats:
        """How often each of n cases is drawn in each resample, (samples, n)."""
        drawn = generator.integers(0, n, (samples, n)) + n * np.arange(samples)[:, None]
        return np.bincount(drawn.ravel(), minlength=samples * n).reshape(samples, n).astype(np.float64)


def mean_interval(
    values: Sequence[float] | Floats,
    *,
    groups: Sequence[Hashable] | None = None,
    samples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    draws: Draws | None = None,
) -> Interval | None:
    """Return the mean of `values` with its bootstrap interval, or None where there are no values.

    Args:
        values: Finite numbers.
        groups: Per value, the case it belongs to, which is drawn as a whole; by default every value is a case.
        samples: Number of resamples.
        level: Probability mass of the interval.
        seed: Seed of the draws.
        draws: All three at once; many intervals over the same number of cases are quicker with a shared one.

    Raises:
        ValueError: A value is not finite, or `groups` has another length.
    """
    array = _finite(values)
    if not len(array):
        return None
    draws = draws or Draws(samples, level, seed)
    sums, counts = _by_group(array, groups)
    # A mean is within its values, whatever rounding did to the sum.
    mean = float(np.clip(array.mean(), array.min(), array.max()))
    low, high = draws.ends(sums, counts) if len(sums) > 1 else (mean, mean)
    return Interval(mean, min(low, mean), max(high, mean), len(array), len(sums))


def win_rate(
    values: Sequence[float] | Floats,
    baseline_values: Sequence[float] | Floats,
    better: Better,
    *,
    groups: Sequence[Hashable] | None = None,
    samples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    draws: Draws | None = None,
) -> WinRate | None:
    """Return how often `values` beat `baseline_values`, pair by pair; ties count half.

    Args:
        values: Finite numbers.
        baseline_values: As many, in the same order.
        better: Which direction wins; with ``neither`` there is no winner, and the answer is None.
        groups: See `mean_interval`.
        samples: See `mean_interval`.
        level: See `mean_interval`.
        seed: See `mean_interval`.
        draws: See `mean_interval`.

    Raises:
        ValueError: A value is not finite, or lengths differ.
    """
    own, other = _finite(values), _finite(baseline_values)
    if len(own) != len(other):
        raise ValueError(f"a win rate needs pairs, found {len(own)} and {len(other)} values")
    if better == "neither" or not len(own):
        return None
    difference = own - other if better == "higher" else other - own
    points = np.where(difference > 0, 1.0, np.where(difference < 0, 0.0, 0.5))
    found = mean_interval(points, groups=groups, samples=samples, level=level, seed=seed, draws=draws)
    if found is None:  # pragma: no cover  (there are values)
        return None
    wins, losses = int((difference > 0).sum()), int((difference < 0).sum())
    return WinRate(wins, len(own) - wins - losses, losses, found.mean, found.low, found.high)


def rank_correlation(a: Sequence[float] | Floats, b: Sequence[float] | Floats) -> float | None:
    """Return Spearman's rank correlation, equal values sharing their average rank; -1 to 1.

    Returns:
        None where it is not defined: fewer than three pairs, or a side whose values are all equal.

    Raises:
        ValueError: A value is not finite, or lengths differ.
    """
    first, second = _finite(a), _finite(b)
    if len(first) != len(second):
        raise ValueError(f"a correlation needs pairs, found {len(first)} and {len(second)} values")
    if len(first) < 3:
        return None
    x, y = _ranks(first), _ranks(second)
    x, y = x - x.mean(), y - y.mean()
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(np.clip((x @ y) / size, -1, 1)) if size > 0 else None


def _ranks(values: Floats) -> Floats:
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    averages: Floats = last - (counts - 1) / 2
    return averages[where]


def _finite(values: Sequence[float] | Floats) -> Floats:
    array = np.asarray(values, dtype=np.float64).reshape(-1)
    if not np.isfinite(array).all():
        raise ValueError("values must be finite numbers; leave out what is missing")
    return array


def _by_group(array: Floats, groups: Sequence[Hashable] | None) -> tuple[Floats, Floats]:
    """Sum and number of values per group, groups in the order of their first value."""
    if groups is None:
        return array, np.ones(len(array))
    if len(groups) != len(array):
        raise ValueError(f"{len(array)} values have {len(groups)} groups")
    numbers: dict[Hashable, int] = {}
    where = np.array([numbers.setdefault(group, len(numbers)) for group in groups], dtype=np.intp)
    sums = np.bincount(where, weights=array).astype(np.float64)
    return sums, np.bincount(where).astype(np.float64)
