"""Which cases run with which seeds, in which order, and where their pictures go."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from attnctl.dataset import Case
from attnctl.errors import InputError, unknown
from attnctl.files import slug
from attnctl_evaluation.rows import Key

SEED_STRIDE = 1_000_000
"""How far a case's own seed moves from one seed of the run to the next."""


@dataclass(frozen=True)
class Job:
    """One case with one seed: everything that shares a source.

    Attributes:
        number: Place in the canonical order.
        case: Case id.
        seed: Seed of the run.
    """

    number: int
    case: str
    seed: int


@dataclass(frozen=True)
class Shard:
    """One of several parts of a run, counted from 1."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read ``2/8``.

        Raises:
            InputError: It is no such pair.
        """
        match = re.fullmatch(r"\s*([0-9]{1,6})\s*/\s*([0-9]{1,6})\s*", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise InputError(f"--shard takes i/n with 1 <= i <= n, found {text!r}", hint="for example --shard 2/8")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def choose_cases(cases: Sequence[Case], edit_types: Sequence[str] = (), limit: int | None = None) -> list[Case]:
    """Return the cases of a run, in the data set's order.

    Args:
        cases: All cases.
        edit_types: Only these types; empty: all.
        limit: At most so many, spread evenly over what is left.

    Raises:
        InputError: There is no such edit type, nothing is left, or two cases have the same id.
    """
    known = list(dict.fromkeys(case.edit_type for case in cases))
    for name in edit_types:
        if name not in known:
            raise unknown("edit type", name, known)
    chosen = [case for case in cases if not edit_types or case.edit_type in edit_types]
    if not chosen:
        raise InputError("the data set holds no case", hint="`attnctl datasets NAME` says what it reads")
    if limit is not None and limit < len(chosen):
        chosen = [chosen[i * len(chosen) // limit] for i in range(limit)]
    seen: set[str] = set()
    for case in chosen:
        if case.id.casefold() in seen:  # on many file systems names that differ in case alone are one file
            raise InputError(f"two cases are called {case.id!r}", hint="give every case an id of its own")
        seen.add(case.id.casefold())
    return chosen


def make_jobs(cases: Sequence[str], seeds: Sequence[int], shard: Shard | None = None) -> list[Job]:
    """Return the jobs of a run, or of one shard of it; the shards of a run share no case and leave none out.

    Args:
        cases: Case ids in order.
        seeds: Seeds in order.
        shard: Which part; every n-th case, so that edit types spread over all of them.
    """
    found = []
    for place, case in enumerate(cases):
        if shard is None or place % shard.count == shard.index - 1:
            found += [Job(place * len(seeds) + n, case, seed) for n, seed in enumerate(seeds)]
    return found


def canonical(cases: Sequence[str], seeds: Sequence[int], labels: Sequence[str]) -> dict[Key, int]:
    """Return the place of every row: by case, then seed, then method."""
    rows = ((case, label, seed) for case in cases for seed in seeds for label in labels)
    return {key: place for place, key in enumerate(rows)}


def noise_seed(own: int | None, seed: int) -> int:
    """Return the seed that noise is drawn with.

    Args:
        own: The case's own seed; None leaves it to the run.
        seed: The run's.
    """
    return seed if own is None else (own + SEED_STRIDE * seed) % 2**63


def picture_name(case: str, seed: int, seeds: Sequence[int]) -> str:
    """Return a picture's file name: the case's, with the seed where there are several."""
    return f"{case}.png" if len(seeds) == 1 else f"{case}-seed{seed}.png"


def folders(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """Return folder names ``<inversion>+<method>``, each different from all others whatever a file system ignores.

    Args:
        pairs: Per entry the inversion's name and the label.
    """
    found: list[str] = []
    for inversion, label in pairs:
        base, number = f"{slug(inversion)}+{slug(label)}", 1
        while (name := base + (f"-{number}" if number > 1 else "")) in found:
            number += 1
        found.append(name)
    return found
