"""An encoded prompt as one value with named parts, whose names mean something to the model's family alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

TOKENS = "embeds"
"""The part that attention reads, (1, M, C'): every family has it, whatever else its denoiser is told of a prompt."""


@dataclass(frozen=True, eq=False)
class Text:
    """One encoded prompt.

    Attributes:
        prompt: The text.
        parts: What its words became, by name: `TOKENS`, and for example a pooled vector. Batch size 1 in each.
        images: What image prompts add to it, one tensor per loaded image adapter; they belong to a guidance half, not
            to the words, and stay when words are exchanged.
    """

    prompt: str
    parts: Mapping[str, Tensor]
    images: tuple[Tensor, ...] = ()

    @property
    def embeds(self) -> Tensor:
        """The token embeddings that attention reads, (1, M, C')."""
        return self.parts[TOKENS]

    @property
    def length(self) -> int:
        """Number of text tokens M."""
        return int(self.embeds.shape[1])

    def same_as(self, other: Text) -> bool:
        """Whether both condition the denoiser alike, to the bit."""
        return (
            self.parts.keys() == other.parts.keys()
            and all(_equal(part, other.parts[name]) for name, part in self.parts.items())
            and len(self.images) == len(other.images)
            and all(_equal(a, b) for a, b in zip(self.images, other.images, strict=True))
        )

    def map(self, f: Callable[..., Tensor], *others: Text) -> Text:
        """Return the text whose parts are `f` of this one's and of the others' of the same name; images stay.

        Weighted sums, interpolation and moves to a device are such functions.
        """
        parts = {name: f(part, *(o.parts[name] for o in others)) for name, part in self.parts.items()}
        return replace(self, parts=parts)

    def reworded(self, parts: Mapping[str, Tensor], prompt: str = "") -> Text:
        """Return the text with some parts exchanged, each in the type and on the device of the one that it replaces."""
        fitted = {name: part.to(self.parts[name]) for name, part in parts.items() if name in self.parts}
        return replace(self, prompt=prompt, parts={**self.parts, **fitted})


def _equal(a: Tensor, b: Tensor) -> bool:
    import torch

    return a is b or (a.shape == b.shape and torch.equal(a, b))
