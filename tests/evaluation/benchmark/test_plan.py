"""Which cases run, in which order, and what their pictures are called."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnctl.dataset import Case
from attnctl.errors import InputError
from attnctl_evaluation.benchmark.plan import (
    Shard,
    canonical,
    choose_cases,
    folders,
    make_jobs,
    noise_seed,
    picture_name,
)


def cases(count: int) -> list[Case]:
    return [Case(id=f"c{n}", prompt="p", edit_type="even" if n % 2 == 0 else "odd") for n in range(count)]


@given(count=st.integers(1, 30), shards=st.integers(1, 40), seeds=st.integers(1, 3))
def test_shards_share_nothing_and_leave_nothing_out(count: int, shards: int, seeds: int) -> None:
    ids = [f"c{n}" for n in range(count)]
    whole = make_jobs(ids, range(seeds))
    parts = [make_jobs(ids, range(seeds), Shard(i + 1, shards)) for i in range(shards)]
    assert sorted((job for part in parts for job in part), key=lambda job: job.number) == whole
    for part in parts:  # all seeds of a case are in one part
        assert {job.case: sum(j.case == job.case for j in part) for job in part} == {j.case: seeds for j in part}
    assert max(map(len, parts)) - min(map(len, parts)) <= seeds


def test_rows_are_ordered_by_case_then_seed_then_method() -> None:
    order = canonical(["x", "a"], [1, 0], ["none", "b"])
    assert [*order] == [
        *(("x", "none", 1), ("x", "b", 1), ("x", "none", 0), ("x", "b", 0)),
        *(("a", "none", 1), ("a", "b", 1), ("a", "none", 0), ("a", "b", 0)),
    ]
    assert [*order.values()] == list(range(8))


def test_a_limit_is_spread_over_the_data_set() -> None:
    assert [c.id for c in choose_cases(cases(10), limit=4)] == ["c0", "c2", "c5", "c7"]
    assert [c.id for c in choose_cases(cases(10), ["odd"], 2)] == ["c1", "c5"]
    assert len(choose_cases(cases(3), limit=9)) == 3


def test_what_cannot_be_chosen_is_said() -> None:
    with pytest.raises(InputError, match="unknown edit type 'ood': known are odd, even"):
        choose_cases(cases(4), ["ood"])
    with pytest.raises(InputError, match="holds no case"):
        choose_cases([])
    with pytest.raises(InputError, match="two cases are called 'C1'"):
        choose_cases([*cases(2), Case(id="C1", prompt="p")])


@pytest.mark.parametrize("text", ["", "0/2", "3/2", "1", "a/b", "1/0", "-1/2", "1/2/3"])
def test_bad_shards_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="--shard takes i/n"):
        Shard.parse(text)


def test_shards_are_read() -> None:
    assert Shard.parse(" 2/8 ") == Shard(2, 8)


def test_a_cases_own_seed_is_moved_by_the_runs() -> None:
    assert noise_seed(None, 7) == 7
    assert noise_seed(5, 0) == 5
    assert noise_seed(5, 2) == 2_000_005
    assert 0 <= noise_seed(2**63 - 1, 2**31 - 1) < 2**63


def test_pictures_carry_the_seed_where_there_are_several() -> None:
    assert picture_name("c1", 0, [0]) == "c1.png"
    assert picture_name("c1", 4, [4]) == "c1.png"
    assert picture_name("c1", 4, [4, 7]) == "c1-seed4.png"


def test_folders_differ_on_every_file_system() -> None:
    pairs = [("ddim", "fpe"), ("ddim", "FPE"), ("ddim", "f/p\\e"), ("ddim", "../.."), ("direct", "fpe"), ("ddim", "❤")]
    found = folders(pairs)
    assert found == ["ddim+fpe", "ddim+fpe-2", "ddim+f-p-e", "ddim+unnamed", "direct+fpe", "ddim+unnamed-2"]
