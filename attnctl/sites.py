"""Hook points of a denoiser: every attention layer and residual feature as a `Site`, in execution order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from attnctl.errors import AttnctlError, ModelError, SelectionError, unknown
from attnctl.steps import compact_range

Kind = Literal["self", "cross", "joint", "feature"]
Block = str
"""``down``, ``mid`` and ``up`` in a UNet, ``double`` and ``single`` in a transformer."""

SEGMENTS = ("image", "text")
"""What tokens can stand for; a site says which of them its queries and keys are, in token order."""

SEGMENTS_OF: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "self": (("image",), ("image",)),
    "cross": (("image",), ("text",)),
    "feature": ((), ()),
}
"""Queries and keys by kind, where the kind alone says them."""


@dataclass(frozen=True)
class Layout:
    """Where the segments of one site's queries and keys stand, for latents and a text of given sizes.

    Attributes:
        queries: Per segment its query tokens, in token order.
        keys: Per segment its key tokens, in token order.
    """

    queries: Mapping[str, slice]
    keys: Mapping[str, slice]

    @classmethod
    def of(cls, queries: Mapping[str, int], keys: Mapping[str, int]) -> Layout:
        """Lay segments of the given numbers of tokens out one after the other."""

        def placed(sizes: Mapping[str, int]) -> dict[str, slice]:
            found, start = {}, 0
            for name, size in sizes.items():
                found[name] = slice(start, start + size)
                start += size
            return found

        return cls(placed(queries), placed(keys))

    @property
    def query_count(self) -> int:
        """Number of query tokens."""
        return max((s.stop for s in self.queries.values()), default=0)

    @property
    def key_count(self) -> int:
        """Number of key tokens."""
        return max((s.stop for s in self.keys.values()), default=0)


@dataclass(frozen=True)
class Site:
    """One place in the denoiser where an edit can act.

    Attributes:
        path: Module path inside the denoiser, for example ``up_blocks.1.attentions.0.transformer_blocks.0.attn1``.
        kind: ``self`` or ``cross`` attention, ``joint`` attention (image and text tokens under one softmax), or
            ``feature`` (what a residual block adds before its shortcut).
        block: ``down``, ``mid`` or ``up`` in a UNet; ``double`` or ``single`` in a transformer.
        layer: 0-based EXECUTION order. The attentions of one transformer block share one number;
            features count residual blocks. On SD1.x: 0-5 down, 6 mid, 7-15 up.
        downscale: Latent side divided by this site's side: 1, 2, 4, 8.
        heads: Number of attention heads H; 0 for features.
        queries: Segments of the query tokens, in token order. Follows from `kind`, but for ``joint``, where models
            differ and the order must be said.
        keys: Segments of the key tokens, in token order; at ``joint`` the queries' unless given.

    Raises:
        ModelError: A joint site does not say its segments, or one that nobody knows is named.
    """

    path: str
    kind: Kind
    block: Block
    layer: int
    downscale: int
    heads: int
    queries: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        queries, keys = SEGMENTS_OF.get(self.kind, (self.queries, self.queries))
        object.__setattr__(self, "queries", self.queries or queries)
        object.__setattr__(self, "keys", self.keys or keys)
        if self.kind == "joint" and not self.queries:
            raise ModelError(
                f"the joint attention {self.path} does not say which tokens come first",
                hint='give `queries`, for example ("image", "text")',
            )
        for name in (*self.queries, *self.keys):
            check_segment(name, ModelError)

    def layout(self, latent_size: tuple[int, int], text_length: int) -> Layout:
        """Return where the segments of queries and keys stand.

        Args:
            latent_size: Latent (h, w).
            text_length: Number of text tokens M.
        """
        sizes = {"image": self.tokens(latent_size), "text": text_length}
        return Layout.of({name: sizes[name] for name in self.queries}, {name: sizes[name] for name in self.keys})

    def attends(self, query: str, key: str) -> bool:
        """Whether queries of the one segment meet keys of the other here."""
        return query in self.queries and key in self.keys

    def grid(self, latent_size: tuple[int, int]) -> tuple[int, int]:
        """Return the token grid (h, w) at this site for latents of size (h, w): strided convolutions round up."""
        height, width = latent_size
        return -(-height // self.downscale), -(-width // self.downscale)

    def tokens(self, latent_size: tuple[int, int]) -> int:
        """Return the number N of image tokens among the queries, for latents of size (h, w)."""
        h, w = self.grid(latent_size)
        return h * w


def check_segment(name: str, cls: type[AttnctlError] = SelectionError) -> None:
    """Refuse a segment that nobody knows.

    Raises:
        AttnctlError: Of the class `cls`; the message lists the segments that exist.
    """
    if name not in SEGMENTS:
        raise unknown("segment", str(name), SEGMENTS, cls=cls)


@dataclass(frozen=True)
class Where:
    """A structured selector over sites; the fields that are set are ANDed. One of `kind` and `attends` must be.

    Attributes:
        kind: ``self``, ``cross``, ``joint`` or ``feature``: where a thing is, in one family of models.
        block: One of, or several of, the model's blocks: ``down``, ``mid``, ``up``; ``double``, ``single``.
        layers: Layer numbers in execution order.
        min_downscale: Only sites whose side is at most 1/min_downscale of the latents' side: the relative rule,
            which means the same at every picture size.
        max_downscale: Only sites whose side is at least 1/max_downscale of the latents' side.
        max_tokens: Only sites with at most this many image tokens: the published codes' absolute rule.
        paths: Exact module paths.
        attends: (query segment, key segment): sites where such queries meet such keys, in any family. ``("image",
            "image")`` is self attention in a UNet, joint attention (and the image's own) in a transformer;
            ``("image", "text")`` is cross attention or joint attention.

    Raises:
        SelectionError: Neither `kind` nor `attends` is given, or `attends` is no pair of segments.
    """

    kind: Kind | None = None
    block: tuple[Block, ...] | Block | None = None
    layers: tuple[int, ...] | None = None
    min_downscale: int | None = None
    max_downscale: int | None = None
    max_tokens: int | None = None
    paths: tuple[str, ...] | None = None
    attends: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        if self.kind is None and self.attends is None:
            raise SelectionError(
                "a selector over sites says neither the kind of site nor what attends to what",
                hint='give Where(kind="self") or Where(attends=("image", "image"))',
            )
        if self.attends is not None:
            if isinstance(self.attends, str) or len(self.attends) != 2:
                raise SelectionError(
                    f"`attends` is {self.attends!r}, expected two segments",
                    hint='the queries\' and the keys\', for example attends=("image", "text")',
                )
            for name in self.attends:
                check_segment(name)

    @property
    def what(self) -> str:
        """The sort of site in words, for tables and errors: ``self``, ``image->image``."""
        meeting = None if self.attends is None else "->".join(self.attends)
        return " ".join(word for word in (self.kind, meeting) if word is not None)

    def select(self, sites: Sequence[Site], latent_size: tuple[int, int]) -> tuple[Site, ...]:
        """Return the matching sites in execution order.

        Args:
            sites: All sites of the denoiser.
            latent_size: Latent height and width, which `max_tokens` is measured against.

        Raises:
            SelectionError: Nothing matches, or a layer or path does not exist; the message lists what does.
        """
        of_kind = [
            s
            for s in sites
            if (self.kind is None or s.kind == self.kind) and (self.attends is None or s.attends(*self.attends))
        ]
        if not of_kind:
            raise SelectionError(
                f"{self} selects no site of this model: it has no {self.what} sites",
                hint=f"it has {_sorts(sites)}; `attnctl sites` lists them",
            )
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
                hint=f"{self.what} sites that exist: {describe_sites(of_kind, latent_size)}",
            )
        return found

    def _reject_unknown(self, of_kind: Sequence[Site]) -> None:
        layers = {s.layer for s in of_kind}
        missing = sorted(set(self.layers or ()) - layers)
        if missing:
            raise SelectionError(
                f"{self.what} layers {compact_range(missing)} do not exist in this model",
                hint=f"{self.what} layers are {compact_range(sorted(layers))}; `attnctl sites` lists them",
            )
        unknown_paths = sorted(set(self.paths or ()) - {s.path for s in of_kind})
        if unknown_paths:
            raise SelectionError(
                f"no {self.what} site has the path {unknown_paths[0]!r}",
                hint="`attnctl sites` lists all paths",
            )

    def __str__(self) -> str:
        parts: list[str] = [self.what]
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


def _sorts(sites: Iterable[Site]) -> str:
    """Say which kinds of sites there are, and what attends to what at them."""
    found: dict[str, list[str]] = {}
    for site in sites:
        pairs = [f"{query}->{key}" for query in site.queries for key in site.keys]
        found.setdefault(site.kind, []).extend(pair for pair in pairs if pair not in found.get(site.kind, []))
    return ", ".join(f"{kind} sites" + (f" ({', '.join(p)})" if p else "") for kind, p in found.items()) or "no sites"


def describe_sites(sites: Iterable[Site], latent_size: tuple[int, int]) -> str:
    """Summarise sites by resolution, for example ``layers 0-1 (16x16), layers 2-3 (8x8)``."""
    groups: list[tuple[tuple[int, int], list[int]]] = []
    for site in sites:
        grid = site.grid(latent_size)
        if groups and groups[-1][0] == grid:
            groups[-1][1].extend([site.layer] if site.layer not in groups[-1][1] else [])
        else:
            groups.append((grid, [site.layer]))
    return ", ".join(f"layers {compact_range(layers)} ({h}x{w})" for (h, w), layers in groups) or "none"
