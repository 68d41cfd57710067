"""The only file that speaks diffusers' attention-processor protocol."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from attnctl.engine.features import apply_features
from attnctl.engine.fused import Projections, execute
from attnctl.engine.operation import Operation, RowAction
from attnctl.errors import ModelError
from attnctl.sites import Site

# Processors that build the map with bmm or call a foreign kernel: their attention cannot be intercepted.
UNHOOKABLE = (
    "AttnProcessor",
    "SlicedAttnProcessor",
    "XFormersAttnProcessor",
    "AttnAddedKVProcessor",
    "IPAdapterAttnProcessor",
)


class ControlledProcessor:
    """Runs a layer's own processor, except in steps for which the loop has set `op`.

    The loop sets `op` once per denoiser call; nothing here counts calls or knows what step it is. diffusers' stock
    processor is re-implemented so that projections nobody reads are never computed; any other processor (IP-Adapter,
    fused projections, a stranger's) runs itself and only its attention call is replaced.

    Attributes:
        original: The processor found on the layer, put back after the run.
        op: What to do in the next call; None delegates to `original`.
    """

    def __init__(self, original: Any, site: Site) -> None:
        self.original = original
        self.site = site
        self.op: Operation | None = None
        self._native = type(original).__name__ == "AttnProcessor2_0"
        if type(original).__name__ in UNHOOKABLE:
            raise ModelError(
                f"{site.path} uses {type(original).__name__}, whose attention cannot be controlled",
                hint="switch attention slicing and xformers off (pipe.unet.set_attn_processor(AttnProcessor2_0()))",
            )

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Attend for one layer; hidden_states (B, N, C) or (B, C, h, w), text (B, M, C')."""
        if self.op is None:
            out: Tensor = self.original(
                attn, hidden_states, encoder_hidden_states, attention_mask, temb, *args, **kwargs
            )
            return out
        if self._native and not args and not kwargs:
            return _native(attn, self.op, hidden_states, encoder_hidden_states, attention_mask, temb)
        return self._intercepted(attn, hidden_states, encoder_hidden_states, attention_mask, temb, *args, **kwargs)

    def _intercepted(self, attn: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        assert self.op is not None
        catcher = _FirstAttention(self.op)
        with catcher:
            out: Tensor = self.original(attn, *args, **kwargs)
        if not catcher.seen:
            raise ModelError(
                f"{type(self.original).__name__} at {self.site.path} never called scaled dot-product attention, "
                "so the edit could not act",
                hint="use the stock attention processor (set_attn_processor) or another model",
            )
        return out


class _FirstAttention(TorchFunctionMode):
    """Replaces the first fused attention call inside a foreign processor: the text's, for IP-Adapter."""

    def __init__(self, op: Operation) -> None:
        super().__init__()
        self.op = op
        self.seen = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention or self.seen:
            return func(*args, **kwargs)
        self.seen = True
        names = ("query", "key", "value", "attn_mask")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        rows = tuple(range(given["query"].shape[0]))
        mask = _per_row(given.get("attn_mask"), len(rows))
        return execute(self.op, Projections(given["query"], given["key"], given["value"], rows, rows, rows, mask))


def _per_row(mask: Tensor | None, rows: int) -> Tensor | None:
    return None if mask is None else mask.expand(rows, *mask.shape[1:])


def _native(
    attn: Any,
    op: Operation,
    hidden_states: Tensor,
    text: Tensor | None,
    attention_mask: Tensor | None,
    temb: Tensor | None,
) -> Tensor:
    """Diffusers' AttnProcessor2_0 with its attention replaced by `op` and unread projections left out."""
    residual = hidden_states
    if attn.spatial_norm is not None:
        hidden_states = attn.spatial_norm(hidden_states, temb)
    shape = hidden_states.shape
    if len(shape) == 4:
        hidden_states = hidden_states.view(shape[0], shape[1], -1).transpose(1, 2)
    batch = hidden_states.shape[0]
    keys = (hidden_states if text is None else text).shape[1]
    mask = None
    if attention_mask is not None:
        mask = attn.prepare_attention_mask(attention_mask, keys, batch)
        mask = _per_row(mask.view(batch, attn.heads, -1, mask.shape[-1]), batch)
    if attn.group_norm is not None:
        hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
    if text is None:
        text = hidden_states
    elif attn.norm_cross:
        text = attn.norm_encoder_hidden_states(text)
    out = execute(op, _project(attn, op, hidden_states, text, mask))
    out = out.transpose(1, 2).flatten(2).to(hidden_states.dtype)
    out = attn.to_out[1](attn.to_out[0](out))
    if len(shape) == 4:
        out = out.transpose(-1, -2).reshape(shape)
    if attn.residual_connection:
        out = out + residual
    return out / attn.rescale_output_factor  # type: ignore[no-any-return]


WORTH_LEAVING_OUT = 16
"""Rows with fewer tokens are projected although nobody reads them: leaving them out saves nothing, but matrices of a
few lines take other kernels, which round the rows that are read in another way."""


def _project(attn: Any, op: Operation, hidden_states: Tensor, text: Tensor, mask: Tensor | None) -> Projections:
    q_rows, k_rows, v_rows = (
        op.used(part) if x.shape[1] >= WORTH_LEAVING_OUT else tuple(range(x.shape[0]))
        for part, x in (("q", hidden_states), ("k", text), ("v", text))
    )
    q = _heads(attn.to_q(_rows(hidden_states, q_rows)), attn.heads)
    k = _heads(attn.to_k(_rows(text, k_rows)), attn.heads)
    v = _heads(attn.to_v(_rows(text, v_rows)), attn.heads)
    if attn.norm_q is not None:
        q = attn.norm_q(q)
    if attn.norm_k is not None:
        k = attn.norm_k(k)
    return Projections(q, k, v, q_rows, k_rows, v_rows, mask)


def _rows(x: Tensor, rows: tuple[int, ...]) -> Tensor:
    if len(rows) == x.shape[0]:
        return x
    if rows == tuple(range(rows[0], rows[0] + len(rows))):
        return x[rows[0] : rows[0] + len(rows)]
    return x[torch.tensor(rows, device=x.device)]


def _heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, H*D) -> (B, H, N, D)."""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


class FeatureTap:
    """Lets ``on_feature`` controllers replace what a residual block adds before its shortcut, (B, C, h, w).

    Installed as a forward hook on the block's last convolution for the duration of a run.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self.actions: list[RowAction] = []

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        """Forward hook: return the edited output, or None to leave it."""
        return apply_features(self.actions, output) if self.actions else None
