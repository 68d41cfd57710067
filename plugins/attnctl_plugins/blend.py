"""LocalBlend: an edit keeps its own latents where chosen words are, and takes the source's everywhere else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from attnctl.controller import Controller, Observation, StepCall
from attnctl.sites import Where
from attnctl.steps import When

if TYPE_CHECKING:
    from attnctl.attend import AttentionCall

ROLES = ("source", "self")


class WordPlaces:
    """Where words are, from cross-attention maps as they are AFTER the edit, summed over the steps so far.

    Attributes:
        columns: Per role an indicator (M, K) of the tokens of each of K sets of words.
    """

    def __init__(self, columns: dict[str, Tensor]) -> None:
        self.columns = columns
        self._step = -1
        self._seen: dict[str, dict[str, Tensor]] = {role: {} for role in ROLES}
        self._total: dict[str, Tensor | None] = dict.fromkeys(ROLES)

    def see(self, role: str, call: AttentionCall, maps: Tensor) -> None:
        """Take one layer's maps (H, N, K); a layer that runs again in the same step replaces what it gave."""
        if call.step.index != self._step:
            self._total = {r: self.total(r) for r in ROLES}
            self._seen = {r: {} for r in ROLES}
            self._step = call.step.index
        self._seen[role][call.site.path] = maps.mean(0).T.reshape(-1, *call.grid)

    def total(self, role: str) -> Tensor | None:
        """Return the sum over steps of the mean over layers and heads, (K, h, w); None before the first map."""
        now = torch.stack(list(self._seen[role].values())).mean(0) if self._seen[role] else None
        before = self._total[role]
        return now if before is None else before if now is None else before + now

    def region(self, words: int, size: tuple[int, int], threshold: float, *, widen: bool) -> Tensor:
        """Return where a set of words is, in the source or in the edit.

        Args:
            words: Which of the K sets.
            size: (h, w) of the result.
            threshold: Share of the largest value from which on (exclusive) a place counts.
            widen: Take the maximum over 3x3 places first.

        Returns:
            Bool (h, w); never NaN: a map without a positive value marks nothing.
        """
        found = torch.zeros(size, dtype=torch.bool)
        for role in ROLES:
            total = self.total(role)
            if total is None:
                continue
            place = total[None, words : words + 1]
            if widen:
                place = F.max_pool2d(place, 3, stride=1, padding=1)
            place = F.interpolate(place, size, mode="nearest")[0, 0]
            peak = place.max()
            if bool(peak > 0):
                found = found.to(place.device) | (place / peak > threshold)
        return found


class LocalBlend:
    """Puts the source's latents back after a step wherever the edit must not act.

    Attributes:
        places: Maps of the words; None when only a mask is given.
        threshold: Where the blend words are, as a share of their map's maximum; None: no blend words, anywhere.
        subtract_threshold: The same for subtracted words, which are not widened; None: no such words.
        mask: Where the user lets the picture change, bool (h, w); None: everywhere.
        start: Fraction of the schedule from which on it acts.
    """

    def __init__(
        self,
        places: WordPlaces | None,
        *,
        threshold: float | None,
        subtract_threshold: float | None,
        mask: Tensor | None,
        start: float,
    ) -> None:
        self.places = places
        self.threshold = threshold
        self.subtract_threshold = subtract_threshold
        self.mask = mask
        self.start = start

    def controllers(self, downscale: int) -> tuple[Controller, ...]:
        """Return its readers, at cross-attention of one downscale outside the mid block, and its step action."""
        found = [Controller("local blend", when=When(self.start, 1), on_step_end=self.blend)]
        if self.places is not None:
            where = Where("cross", block=("down", "up"), min_downscale=downscale, max_downscale=downscale)
            for role in ROLES:
                name = f"word maps of {'the source' if role == 'source' else 'the edit'}"
                found.append(Controller(name, where, observe=self._reader(self.places, role)))
        return tuple(found)

    @staticmethod
    def _reader(places: WordPlaces, role: str) -> Observation:
        return Observation(places.columns[role], lambda call, maps: places.see(role, call, maps), role)

    def keep(self, size: tuple[int, int]) -> Tensor:
        """Return where the edit keeps its own latents, bool (h, w)."""
        kept = torch.ones(size, dtype=torch.bool)
        if self.places is not None and self.threshold is not None:
            kept = self.places.region(0, size, self.threshold, widen=True)
        if self.places is not None and self.subtract_threshold is not None:
            words = 0 if self.threshold is None else 1
            taken = self.places.region(words, size, self.subtract_threshold, widen=False)
            kept = kept.to(taken.device) & ~taken
        return kept if self.mask is None else kept & self.mask.to(kept.device)

    def blend(self, call: StepCall) -> Tensor:
        """Return the edit's latents (C, h, w) inside, the source's outside."""
        own, source = call.latents["self"], call.latents["source"]
        kept = self.keep((int(own.shape[-2]), int(own.shape[-1])))
        return torch.where(kept.to(own.device), own, source)


def indicator(sets: Sequence[Sequence[int]], length: int, device: str) -> Tensor:
    """Return U, (M, K) float32: column k is 1 at the tokens of set k."""
    columns = torch.zeros(length, len(sets), device=device)
    for k, tokens in enumerate(sets):
        columns[list(tokens), k] = 1
    return columns
