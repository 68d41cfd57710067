"""Laws of means, intervals, win rates and rank correlations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnctl_evaluation.bootstrap import Draws, mean_interval, rank_correlation, win_rate

numbers = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40)
pairs = st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=1, max_size=40)
quick = Draws(samples=200)


@settings(max_examples=50, deadline=None)
@given(numbers)
def test_a_mean_lies_in_its_interval_and_the_interval_among_the_values(values: list[float]) -> None:
    found = mean_interval(values, draws=quick)
    assert found is not None
    slack = 1e-9 * max(1.0, *map(abs, values))
    assert min(values) - slack <= found.low <= found.mean <= found.high <= max(values) + slack
    assert found.count == found.cases == len(values)


@settings(max_examples=50, deadline=None)
@given(numbers, st.floats(-1e3, 1e3), st.floats(0.1, 10))
def test_an_interval_moves_and_stretches_with_its_values(values: list[float], shift: float, scale: float) -> None:
    plain = mean_interval(values, draws=quick)
    moved = mean_interval([scale * v + shift for v in values], draws=quick)
    assert plain is not None
    assert moved is not None
    for name in ("mean", "low", "high"):
        assert getattr(moved, name) == pytest.approx(scale * getattr(plain, name) + shift, rel=1e-6, abs=1e-3)


def test_the_same_values_give_the_same_interval_and_another_seed_another() -> None:
    values = np.random.default_rng(1).normal(size=50)
    assert mean_interval(values) == mean_interval(values, draws=Draws())
    assert mean_interval(values) != mean_interval(values, seed=1)


def test_the_interval_is_that_of_theory_for_many_values() -> None:
    values = np.random.default_rng(2).normal(3.0, 2.0, 2000)
    found = mean_interval(values)
    assert found is not None
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_many_cases_are_drawn_in_parts_to_the_same_effect() -> None:
    values = np.random.default_rng(3).normal(size=30_000)
    found = mean_interval(values, samples=300)
    assert found is not None
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert found.high - found.low == pytest.approx(2 * half, rel=0.2)


def test_the_level_is_the_mass_of_the_interval() -> None:
    values = np.random.default_rng(4).normal(size=100)
    wide, narrow = mean_interval(values, level=0.99), mean_interval(values, level=0.5)
    assert wide is not None
    assert narrow is not None
    assert wide.low < narrow.low < narrow.high < wide.high


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=12), st.integers(2, 4))
def test_equal_seeds_of_one_case_add_no_certainty(values: list[float], seeds: int) -> None:
    once = mean_interval(values, draws=quick)
    cases = [case for case in range(len(values)) for _ in range(seeds)]
    again = mean_interval([v for v in values for _ in range(seeds)], groups=cases, draws=quick)
    assert once is not None
    assert again is not None
    assert (again.mean, again.low, again.high) == pytest.approx((once.mean, once.low, once.high), abs=1e-6)
    assert (again.count, again.cases) == (len(values) * seeds, len(values))


def test_nothing_and_one_value() -> None:
    assert mean_interval([]) is None
    found = mean_interval([2.0, 4.0], groups=["a", "a"])
    assert found is not None
    assert (found.mean, found.low, found.high, found.count, found.cases) == (3.0, 3.0, 3.0, 2, 1)


@pytest.mark.parametrize("bad", [[1.0, float("nan")], [float("inf")]])
def test_what_is_no_number_is_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        mean_interval(bad)


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="2 values have 1 groups"):
        mean_interval([1.0, 2.0], groups=["a"])
    with pytest.raises(ValueError, match="pairs, found 1 and 2"):
        win_rate([1.0], [1.0, 2.0], "higher")
    with pytest.raises(ValueError, match="pairs, found 1 and 2"):
        rank_correlation([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="at least one sample"):
        Draws(samples=0)


@settings(max_examples=50, deadline=None)
@given(pairs)
def test_win_rates_of_two_sides_and_of_two_directions_are_opposite(rows: list[tuple[int, int]]) -> None:
    a, b = [float(x) for x, _ in rows], [float(y) for _, y in rows]
    one, other = win_rate(a, b, "higher", draws=quick), win_rate(b, a, "higher", draws=quick)
    lower = win_rate(a, b, "lower", draws=quick)
    assert one is not None
    assert other is not None
    assert lower is not None
    assert (one.wins, one.ties, one.losses) == (other.losses, other.ties, other.wins)
    assert one.rate == pytest.approx(1 - other.rate) == pytest.approx((one.wins + one.ties / 2) / len(rows))
    assert lower.rate == pytest.approx(other.rate)
    assert 0 <= one.low <= one.rate <= one.high <= 1
    assert one.pairs == len(rows)


def test_no_direction_or_no_pairs_means_no_winner() -> None:
    assert win_rate([1.0], [2.0], "neither") is None
    assert win_rate([], [], "higher") is None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=3, max_size=30))
def test_rank_correlation_agrees_with_scipy(rows: list[tuple[int, int]]) -> None:
    stats = pytest.importorskip("scipy.stats")
    a, b = [float(x) for x, _ in rows], [float(y) for _, y in rows]
    found = rank_correlation(a, b)
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-50, 50), min_size=3, max_size=20, unique=True))
def test_rank_correlation_sees_order_alone(values: list[int]) -> None:
    a = [float(v) for v in values]
    assert rank_correlation(a, [v**3 for v in a]) == pytest.approx(1)
    assert rank_correlation(a, [-v for v in a]) == pytest.approx(-1)
    assert rank_correlation(a[:2], a[:2]) is None
