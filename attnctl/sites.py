"""Hook points of a denoiser as `Site`s in execution order, and structured selectors over them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from attnctl.errors import SelectionError
from attnctl.steps import compact_range

Kind = Literal["self", "cross", "feature"]
Block = Literal["down", "mid", "up"]


@dataclass(frozen=True)
class Site:
    """One place in the denoiser where an edit can act.

    Attributes:
        path: Module path inside the denoiser, for example ``up_blocks.1.attentions.0.transformer_blocks.0.attn1``.
        kind: ``self`` or ``cross`` attention, or ``feature`` (what a residual block adds before its shortcut).
        block: ``down``, ``mid`` or ``up``.
        layer: 0-based EXECUTION order. A transformer block's self and cross attention share one number;
            features count residual blocks. On SD1.x: 0-5 down, 6 mid, 7-15 up.
        downscale: Latent side divided by this site's side: 1, 2, 4, 8.
        heads: Number of attention heads H; 0 for features.
    """

    path: str
    kind: Kind
    block: Block
    layer: int
    downscale: int
    heads: int

    def grid(self, latent_size: tuple[int, int]) -> tuple[int, int]:
        """Return the token grid (h, w) at this site for latents of size (h, w): strided convolutions round up."""
        height, width = latent_size
        return -(-height // self.downscale), -(-width // self.downscale)

    def tokens(self, latent_size: tuple[int, int]) -> int:
        """Return the number N of query tokens at this site for latents of size (h, w)."""
        h, w = self.grid(latent_size)
        return h * w


@dataclass(frozen=True)
class Where:
    """A structured selector over sites; the fields that are set are ANDed.

    Attributes:
        kind: ``self``, ``cross`` or ``feature``.
        block: One of, or several of, ``down``, ``mid``, ``up``.
        layers: Layer numbers in execution order.
        min_downscale: Only sites whose side is at most 1/min_downscale of the latents' side: the relative rule,
            which means the same at every picture size.
        max_downscale: Only sites whose side is at least 1/max_downscale of the latents' side.
        max_tokens: Only sites with at most this many query tokens: the published codes' absolute rule.
        paths: Exact module paths.
    """

    kind: Kind
    block: tuple[Block, ...] | Block | None = None
    layers: tuple[int, ...] | None = None
    min_downscale: int | None = None
    max_downscale: int | None = None
    max_tokens: int | None = None
    paths: tuple[str, ...] | None = None

    def select(self, sites: Sequence[Site], latent_size: tuple[int, int]) -> tuple[Site, ...]:
        """Return the matching sites in execution order.

        Args:
            sites: All sites of the denoiser.
            latent_size: Latent height and width, which `max_tokens` is measured against.

        Raises:
            SelectionError: Nothing matches, or a layer or path does not exist; the message lists what does.
        """
        of_kind = [s for s in sites if s.kind == self.kind]
        self._reject_unknown(of_kind)
        blocks = (self.block,) if isinstance(self.block, str) else self.block
        found = tuple(
            s
            for s in of_kind
            if (blocks is None or s.block in blocks)
            and (self.layers is None or s.layer in self.layers)
            and (self.min_downscale is None or s.downscale >= self.min_downscale)
            and (self.max_downscale is None or s.downscale <= self.max_downscale)
            and (self.max_tokens is None or s.tokens(latent_size) <= self.max_tokens)
            and (self.paths is None or s.path in self.paths)
        )
        if not found:
            raise SelectionError(
                f"{self} selects no site of this model at latent size {latent_size[0]}x{latent_size[1]}",
                hint=f"{self.kind} sites that exist: {describe_sites(of_kind, latent_size)}",
            )
        return found

    def _reject_unknown(self, of_kind: Sequence[Site]) -> None:
        layers = {s.layer for s in of_kind}
        missing = sorted(set(self.layers or ()) - layers)
        if missing:
            raise SelectionError(
                f"{self.kind} layers {compact_range(missing)} do not exist in this model",
                hint=f"{self.kind} layers are {compact_range(sorted(layers))}; `attnctl sites` lists them",
            )
        unknown_paths = sorted(set(self.paths or ()) - {s.path for s in of_kind})
        if unknown_paths:
            raise SelectionError(
                f"no {self.kind} site has the path {unknown_paths[0]!r}",
                hint="`attnctl sites` lists all paths",
            )

    def __str__(self) -> str:
        parts: list[str] = [self.kind]
        if self.block is not None:
            parts.append("in " + (self.block if isinstance(self.block, str) else "/".join(self.block)))
        if self.layers is not None:
            parts.append(f"layers {compact_range(sorted(self.layers))}")
        if self.min_downscale is not None:
            parts.append(f"downscale >= {self.min_downscale}")
        if self.max_downscale is not None:
            parts.append(f"downscale <= {self.max_downscale}")
        if self.max_tokens is not None:
            parts.append(f"tokens <= {self.max_tokens}")
        if self.paths is not None:
            parts.append("at " + ", ".join(self.paths))
        return " ".join(parts)


def describe_sites(sites: Iterable[Site], latent_size: tuple[int, int]) -> str:
    """Summarise sites by resolution, for example ``layers 0-1 (16x16), layers 2-3 (8x8)``."""
    groups: list[tuple[tuple[int, int], list[int]]] = []
    for site in sites:
        grid = site.grid(latent_size)
        if groups and groups[-1][0] == grid:
            groups[-1][1].append(site.layer)
        else:
            groups.append((grid, [site.layer]))
    return ", ".join(f"layers {compact_range(layers)} ({h}x{w})" for (h, w), layers in groups) or "none"
