"""Regions of the source and of an edit, and who may see whom: objects see objects, backgrounds see backgrounds.

A query i and a key j meet where m_edit(i) = m_source(j), which is one attention call with a boolean mask.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from attnctl.controller import Controller, Observation
from attnctl.errors import InputError
from attnctl.sites import Where

if TYPE_CHECKING:
    from attnctl.attend import AttentionCall
    from attnctl.steps import When


class Regions(Protocol):
    """Anything that can say which keys of the source a query of the edit may see."""

    def allowed(self, call: AttentionCall) -> Tensor:
        """Return bool (N, M), True = may see; or float (N, M) to be added to the logits."""

    def readers(self, when: When, downscale: int) -> list[Controller]:
        """Return the controllers that read what the regions are made of."""


class FixedRegions:
    """Regions from pictures.

    Attributes:
        source: Where the object is in the source, bool (h, w).
        edit: Where it shall be in the edit, bool (h, w).
        average_if_empty: See `meet`.
    """

    def __init__(self, source: Tensor, edit: Tensor, *, average_if_empty: bool = False) -> None:
        self.source, self.edit, self.average_if_empty = source, edit, average_if_empty

    def allowed(self, call: AttentionCall) -> Tensor:
        """Return who may see whom at one layer, both regions resized to its token grid."""
        return meet(
            resize(self.source.float(), call.grid) > 0.5,
            resize(self.edit.float(), call.grid) > 0.5,
            average_if_empty=self.average_if_empty,
        )

    def readers(self, when: When, downscale: int) -> list[Controller]:
        """Return nothing: the regions are given."""
        return []


class WordRegions:
    """Regions from the cross-attention maps of words, read in the same denoiser call at the layers before.

    Maps are averaged over heads, then over the layers seen so far in the step, summed over a word's tokens and scaled
    to [0, 1]; the object is where that is at least `threshold`. Without a layer before, everything sees everything.

    Attributes:
        source_columns: Indicator (M, 1) of the tokens whose map marks the object in the source.
        edit_columns: The same for the edit.
        threshold: Between 0 and 1.
        average_if_empty: See `meet`.
    """

    def __init__(
        self,
        source_tokens: tuple[int, ...],
        edit_tokens: tuple[int, ...],
        text_length: int,
        threshold: float,
        *,
        average_if_empty: bool = False,
    ) -> None:
        self.source_columns = _indicator(source_tokens, text_length)
        self.edit_columns = _indicator(edit_tokens, text_length)
        self.threshold = threshold
        self.average_if_empty = average_if_empty
        self._step = -1
        self._maps: dict[str, dict[int, Tensor]] = {"source": {}, "edit": {}}

    def readers(self, when: When, downscale: int) -> list[Controller]:
        """Return the controllers that read both maps where the token grid is 1/`downscale` of the latents' side."""
        where = Where(kind="cross", min_downscale=downscale, max_downscale=downscale)
        source = Observation(self.source_columns, partial(self._see, "source"), "source")
        edit = Observation(self.edit_columns, partial(self._see, "edit"))
        return [
            Controller("source map of words", where, when, observe=source),
            Controller("edit map of words", where, when, observe=edit),
        ]

    def _see(self, role: str, call: AttentionCall, maps: Tensor) -> None:
        if call.step.index != self._step:
            self._step = call.step.index
            self._maps = {"source": {}, "edit": {}}
        self._maps[role][call.site.layer] = maps.mean(0).reshape(call.grid)

    def map_of(self, role: str, before_layer: int) -> Tensor | None:
        """Return a map (h, w) scaled to [0, 1] from the layers before one; None if none has been seen.

        A constant map says nothing about where the object is: it becomes all zeros, never NaN.
        """
        seen = [m for layer, m in self._maps[role].items() if layer < before_layer]
        if not seen:
            return None
        mean = torch.stack(seen).mean(0)
        low, high = mean.min(), mean.max()
        return (mean - low) / (high - low) if bool(high > low) else torch.zeros_like(mean)

    def allowed(self, call: AttentionCall) -> Tensor:
        """Return who may see whom at one layer."""
        source, edit = (self.map_of(role, call.site.layer) for role in ("source", "edit"))
        if source is None or edit is None:
            n = call.grid[0] * call.grid[1]
            return torch.ones(n, n, dtype=torch.bool)
        return meet(
            resize(source, call.grid) >= self.threshold,
            resize(edit, call.grid) >= self.threshold,
            average_if_empty=self.average_if_empty,
        )


def meet(source: Tensor, edit: Tensor, *, average_if_empty: bool = False) -> Tensor:
    """Return who may see whom: ``allowed[i, j] = edit(i) == source(j)``.

    A query whose region holds no key of the source must not end up with a softmax over nothing. It sees all keys; or,
    as in the reference code, which adds the most negative float to all its logits and so makes them equal, it takes the
    mean of all values.

    Args:
        source: bool (h, w), the keys' region.
        edit: bool (h, w), the queries' region.
        average_if_empty: Take the mean of all values instead of seeing all keys.

    Returns:
        bool (N, M), or float (N, M) to be added to the logits where `average_if_empty` matters.
    """
    allowed = edit.reshape(-1, 1) == source.reshape(1, -1)
    empty = ~allowed.any(1, keepdim=True)
    if not bool(empty.any()):
        return allowed
    if not average_if_empty:
        return allowed | empty
    return torch.where(allowed, 0.0, torch.finfo(torch.float32).min)


def resize(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (h, w) to another size by taking the nearest value."""
    return F.interpolate(picture[None, None], size, mode="nearest")[0, 0]


def _indicator(tokens: tuple[int, ...], length: int) -> Tensor:
    wrong = [t for t in tokens if not 0 <= t < length]
    if wrong:
        raise InputError(f"there is no token {wrong[0]}", hint=f"tokens are counted from 0 to {length - 1}")
    columns = torch.zeros(length, 1)
    columns[list(tokens)] = 1
    return columns
