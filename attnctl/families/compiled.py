"""Compiled networks, in which a hook could be skipped without a sign."""

from __future__ import annotations

from typing import Any

from torch import jit, nn

from attnctl.errors import ModelError


def reject_compiled(network: nn.Module) -> None:
    """Refuse a denoiser that is compiled, as a whole or in part.

    Raises:
        ModelError: It, a module in it, a ``forward`` or an attention processor went through ``torch.compile`` or
            ``torch.jit``.
    """
    for path, module in [("", network), *network.named_modules()]:
        processor = getattr(module, "processor", None)
        if any(_compiled(part) for part in (module, getattr(module, "forward", None), processor)):
            where = f" at {path}" if path else ""
            raise ModelError(
                f"the denoiser is compiled{where} (torch.compile or torch.jit), so controllers could be skipped "
                "without a sign",
                hint="load the model without compiling it",
            )


def _compiled(part: Any) -> bool:
    """Whether torch replaced a module or a function."""
    if isinstance(part, nn.Module):
        marks = type(part).__name__ == "OptimizedModule" or isinstance(part, jit.ScriptModule)
        return marks or getattr(part, "_compiled_call_impl", None) is not None
    call = vars(type(part)).get("__call__")
    return any(hasattr(function, "_torchdynamo_orig_callable") for function in (part, call))
