"""Reading what happens inside the denoiser without changing it: what to record, and what was recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from attnctl.branches import HALVES, Half
from attnctl.errors import InputError, SelectionError, unknown
from attnctl.sites import Site, Where
from attnctl.steps import When

if TYPE_CHECKING:
    from torch import Tensor

    from attnctl.attend import AttentionCall

Quantity = Literal["map", "columns", "mass", "q", "k", "v", "out", "feature"]
Reduced = Literal["heads", "steps", "sites"]
DTYPES = {"float32": 4, "float16": 2, "bfloat16": 2}
BUDGET = 2 * 1024**3
"""Bytes that the recordings of one run may take unless the request says otherwise."""


@dataclass(frozen=True, eq=False)
class Recording:
    """Something to be read during a run; it composes with every method and changes no bit of any lane.

    Where a method edits the lane, what it really did is read: the edited map, the edited output. Of a step with several
    evaluations of the denoiser the first is read.

    Attributes:
        name: What it is called among the results.
        where: At which sites.
        when: In which steps.
        lane: ``source``, another source's name, or an edit's lane.
        half: The guidance half.
        of: What is read, per head. ``map``: the attention map (H, N, M). ``columns``: the map times `columns`, A U,
            (H, N, K), without the map ever being held. ``mass``: what each query gives to image keys, (H, N). ``q``
            (H, N, D), ``k`` and ``v`` (H, M, D) as attention meets them, after norms and rotation; ``out`` (H, N, D)
            before the output projection; ``feature`` (C, h, w), what a residual block adds before its shortcut.
        columns: U for ``columns``: (M, K) over all key tokens, or a function of the call that returns it.
        queries: Segment of the queries that is kept of maps, masses, q and outputs; None keeps all. k, v and the keys
            of maps are always all: `attnctl.sites.Site.layout` says which are which.
        reduce: What is averaged while the run goes on, so that it takes no memory: ``heads``, ``steps``, ``sites``.
        dtype: What the results are kept in: ``float32``, ``float16`` or ``bfloat16``; they are computed in float32.

    Raises:
        InputError: The parts do not go together.
    """

    name: str
    where: Where
    when: When = When()  # noqa: RUF009  (frozen)
    lane: str = "source"
    half: Half = "cond"
    of: Quantity = "map"
    columns: Tensor | Callable[[AttentionCall], Tensor] | None = None
    queries: str | None = "image"
    reduce: frozenset[Reduced] = frozenset()
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise InputError("a recording has no name", hint="results are found by it")
        for what, given, known in (
            ("quantity to record", self.of, get_args(Quantity)),
            ("dtype of a recording", self.dtype, tuple(DTYPES)),
            ("guidance half", self.half, HALVES),
            *(("reduction", name, get_args(Reduced)) for name in self.reduce),
        ):
            if given not in known:
                raise unknown(what, str(given), known)
        if (self.of == "columns") != (self.columns is not None):
            raise InputError(
                f"the recording {self.name!r} of {self.of} and its columns do not go together",
                hint="columns are for of='columns', which needs them",
            )
        if (self.of == "feature") != (self.where.kind == "feature"):
            raise InputError(
                f"the recording {self.name!r} reads {self.of} at {self.where.what} sites",
                hint="features are read at sites of the kind feature, everything else where there is attention",
            )
        if self.of == "feature" and "heads" in self.reduce:
            raise InputError(f"the recording {self.name!r} averages heads, which features have none of",
                             hint="leave heads out of `reduce`")  # fmt: skip


Key = tuple[str | None, int | None]


@dataclass(eq=False)
class Recorded:
    """What was read under one name.

    Attributes:
        recording: What was asked for.
        sites: The sites that were read, in execution order.
        steps: The steps that were read.
        tensors: By (module path, step index), on the CPU; a path is None where sites were averaged, a step is None
            where steps were.
    """

    recording: Recording
    sites: tuple[Site, ...]
    steps: tuple[int, ...]
    tensors: dict[Key, Tensor] = field(default_factory=dict)

    def at(self, layer: int | None = None, step: int | None = None) -> Tensor:
        """Return the one tensor of a layer and a step; what was averaged, or is one alone, need not be said.

        Raises:
            SelectionError: There is none, or more than one.
        """
        paths = {site.path for site in self.sites if site.layer == layer}
        found = [
            tensor
            for (path, index), tensor in self.tensors.items()
            if (layer is None or path is None or path in paths) and (step is None or index is None or index == step)
        ]
        if len(found) != 1:
            layers = sorted({site.layer for site in self.sites})
            raise SelectionError(
                f"the recording {self.recording.name!r} has {len(found)} tensors for layer {layer} and step {step}",
                hint=f"it has the layers {layers} and the steps {list(self.steps)}",
            )
        return found[0]

    def stack(self) -> Tensor:
        """Return all tensors in one, (sites, steps, ...); an axis that was averaged has the length 1.

        Raises:
            SelectionError: They have different shapes: their sites have different numbers of tokens.
        """
        import torch

        shapes = {tuple(tensor.shape) for tensor in self.tensors.values()}
        if len(shapes) != 1:
            raise SelectionError(
                f"the recording {self.recording.name!r} has tensors of the shapes {sorted(shapes)}",
                hint="select sites of one grid, or take them one by one with `at`",
            )
        paths = list(dict.fromkeys(path for path, _ in self.tensors))
        steps = list(dict.fromkeys(step for _, step in self.tensors))
        return torch.stack([torch.stack([self.tensors[path, step] for step in steps]) for path in paths])

    def __iter__(self) -> Iterator[tuple[Key, Tensor]]:
        return iter(self.tensors.items())

    def __len__(self) -> int:
        return len(self.tensors)


def named_tensors(recorded: Mapping[str, Recorded]) -> dict[str, Tensor]:
    """Return all recorded tensors by names that say what they are, ``NAME/PATH/STEP``; ``mean`` stands for averages."""
    return {
        f"{name}/{'mean' if path is None else path}/{'mean' if step is None else step}": tensor.contiguous()
        for name, found in recorded.items()
        for (path, step), tensor in found
    }
