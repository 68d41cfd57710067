"""The only file that speaks diffusers' attention-processor protocol."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from attnctl.engine.fused import Projections, execute
from attnctl.engine.operation import Operation, RowAction, apply_features
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
# In the names of processors that attend to the prompt's tokens first and then to those of image prompts.
IMAGE_PROMPTS = "IPAdapter"
NATIVE_ARGUMENTS = {"encoder_hidden_states", "attention_mask", "temb"}


def reject_unhookable(attn: Any, site: Site) -> None:
    """Refuse an attention layer whose processor cannot be controlled, or would be wrong by itself.

    Raises:
        ModelError: The processor never calls fused attention, or leaves out the model's norms of queries and keys.
    """
    name = type(attn.processor).__name__
    if name in UNHOOKABLE:
        raise ModelError(
            f"{site.path} uses {name}, whose attention cannot be controlled",
            hint="switch attention slicing and xformers off (pipe.unet.set_attn_processor(AttnProcessor2_0()))",
        )
    if name == "FusedJointAttnProcessor2_0" and getattr(attn, "norm_q", None) is not None:
        raise ModelError(
            f"{site.path} uses {name}, which leaves out this model's norms of queries and keys",
            hint="undo it with pipe.transformer.unfuse_qkv_projections()",
        )


class ControlledProcessor:
    """Runs a layer's own processor, except in steps for which the loop has set `op`.

    The loop sets `op` once per denoiser call; nothing here counts calls or knows what step it is. diffusers' stock
    processor of UNets is re-implemented so that projections nobody reads are never computed; any other processor
    (of transformers, IP-Adapter, fused projections, a stranger's) runs itself and only its attention call is replaced.

    diffusers reads the signature of a processor's ``__call__`` and drops every argument that it does not name, with
    no more than a line in the log. So an instance belongs to a subclass that shows the signature of the processor that
    it stands for, and it passes on exactly what came.

    Attributes:
        original: The processor found on the layer, put back after the run.
        op: What to do in the next call; None delegates to `original`.
    """

    def __new__(cls, original: Any, site: Site) -> ControlledProcessor:  # noqa: D102
        kind: Any = type(original)
        return object.__new__(_standing_for(kind))

    def __init__(self, original: Any, site: Site) -> None:
        self.original = original
        self.site = site
        self.op: Operation | None = None
        self._native = type(original).__name__ == "AttnProcessor2_0"

    def __call__(self, attn: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Attend for one layer; hidden_states (B, N, C) or (B, C, h, w), text (B, M, C')."""
        if self.op is None:
            return self.original(attn, *args, **kwargs)
        if self._native and len(args) <= 1 + len(NATIVE_ARGUMENTS) and set(kwargs) <= NATIVE_ARGUMENTS:
            return _native(attn, self.op, *args, **kwargs)
        catcher = _FirstAttention(self.op, self.site)
        with catcher:
            out = self.original(attn, *args, **kwargs)
        self._check(catcher.seen)
        return out

    def _check(self, calls: int) -> None:
        """Hold that a layer attends once, so that the call that was replaced is all there is."""
        name = type(self.original).__name__
        if calls == 0:
            raise ModelError(
                f"{name} at {self.site.path} never called scaled dot-product attention, so the edit could not act",
                hint="use the stock attention processor (set_attn_processor) or another model; if another attention "
                "backend was set, run within diffusers' attention_backend('native')",
            )
        if calls > 1 and IMAGE_PROMPTS not in name:
            raise ModelError(
                f"{name} at {self.site.path} called scaled dot-product attention {calls} times, of which the edit "
                "would act on the first alone",
                hint="use the stock attention processor (set_attn_processor)",
            )

    @property
    def _attention_backend(self) -> Any:
        """The original's; diffusers sets it in place, and means the processor that will be there after the run."""
        return self.original._attention_backend

    @_attention_backend.setter
    def _attention_backend(self, backend: Any) -> None:
        self.original._attention_backend = backend

    @property
    def _parallel_config(self) -> Any:
        return self.original._parallel_config

    @_parallel_config.setter
    def _parallel_config(self, config: Any) -> None:
        self.original._parallel_config = config


@cache
def _standing_for(original: type) -> type[ControlledProcessor]:
    """Make the subclass that shows the call signature of a class of processors."""

    def call(self: ControlledProcessor, attn: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return ControlledProcessor.__call__(self, attn, *args, **kwargs)

    call.__signature__ = inspect.signature(original.__call__)  # type: ignore[attr-defined]
    return type(
        f"Controlled{original.__name__}", (ControlledProcessor,), {"__call__": call, "__doc__": original.__doc__}
    )


class _FirstAttention(TorchFunctionMode):
    """Replaces the first fused attention call inside a foreign processor: the text's, for IP-Adapter."""

    def __init__(self, op: Operation, site: Site) -> None:
        super().__init__()
        self.op = op
        self.site = site
        self.seen = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        self.seen += 1
        if self.seen > 1:
            return func(*args, **kwargs)
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        width = given["query"].shape[-1]
        if given.get("is_causal") or given.get("enable_gqa") or given.get("scale") not in (None, width**-0.5):
            raise ModelError(
                f"{self.site.path} attends with a causal mask, shared key heads or a scale of its own",
                hint="edits know plain attention only; use another model",
            )
        found = (given["query"].shape[2], given["key"].shape[2])
        if self.op.tokens is not None and self.op.tokens != found:
            raise ModelError(
                f"{self.site.path} attends with {found[0]} queries to {found[1]} keys, expected {self.op.tokens[0]} "
                f"and {self.op.tokens[1]} ({' and '.join(self.site.queries)} tokens)",
                hint="the model has tokens that attnctl does not know of; use another checkpoint",
            )
        rows = tuple(range(given["query"].shape[0]))
        mask = _per_row(given.get("attn_mask"), len(rows))
        return execute(self.op, Projections(given["query"], given["key"], given["value"], rows, rows, rows, mask))


def _per_row(mask: Tensor | None, rows: int) -> Tensor | None:
    return None if mask is None else mask.expand(rows, *mask.shape[1:])


def _native(
    attn: Any,
    op: Operation,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor | None = None,
    attention_mask: Tensor | None = None,
    temb: Tensor | None = None,
) -> Tensor:
    """Diffusers' AttnProcessor2_0 with its attention replaced by `op` and unread projections left out."""
    residual, text = hidden_states, encoder_hidden_states
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
