"""What a network in memory is: a digest of its numbers, its structure and whatever was hung into it.

Files say what was loaded; what runs may be something else by then (merged adapters, weights changed in place, another
storage type, another attention). So the network itself is looked at, each time, and where it holds something that
cannot be described it has no fingerprint.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from attnctl.files import sha256_of

if TYPE_CHECKING:
    from torch import Tensor, nn

ROW = 1 << 15
"""Words of 64 bits that one sum stands for."""

BLOCK = 1 << 8
"""Rows that are multiplied at a time: 64 MiB."""

DEPTH = 6
"""How deep settings may be nested."""

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)
_MACHINERY = frozenset(
    {
        *("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_is_full_backward_hook"),
        *("_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs", *_HOOKS),
        *("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
    }
)


class IndescribableError(Exception):
    """Something in the network has no description by plain data."""


def fingerprint(network: nn.Module) -> str | None:
    """Return the SHA-256 of a network as it would run now; None where that cannot be told.

    It covers parameters and buffers to the bit, every module's class with its code and plain settings (FreeU's, for
    example) and attention processors. Hooks, replaced ``forward`` methods and weights that are not in memory
    (offloading, layerwise casting) make it None.

    The numbers are read at about the speed of memory: each row of 64-bit words is multiplied by odd weights and summed
    modulo 2^64, on the network's own device, and the sums are hashed. One changed bit always changes its row's sum.
    """
    try:
        structure = [(name, _module(module)) for name, module in network.named_modules()]
        numbers = _numbers({**dict(network.named_parameters()), **dict(network.named_buffers())})
    except (
        IndescribableError,
        RuntimeError,
        TypeError,
        ValueError,
        NotImplementedError,
        AttributeError,
        RecursionError,
    ):
        return None  # quantised and lazy tensors refuse to be read in ways of their own
    text = json.dumps([structure, numbers], sort_keys=True)
    return sha256_of(text.encode())


def plain(value: Any, depth: int = 0) -> Any:
    """Return a setting as plain data.

    Raises:
        IndescribableError: It is none.
    """
    import torch

    if depth > DEPTH:
        raise IndescribableError(type(value).__name__)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, list | tuple | torch.Size):
        return [plain(v, depth + 1) for v in value]
    if isinstance(value, set | frozenset):
        return sorted(json.dumps(plain(v, depth + 1)) for v in value)
    if isinstance(value, Mapping):
        return {str(k): plain(v, depth + 1) for k, v in value.items() if not str(k).startswith("_")}
    if isinstance(value, torch.dtype | torch.device):
        return str(value)
    if isinstance(value, torch.nn.Module):
        return _name(type(value))  # one that is registered is described in its own place
    if isinstance(value, torch.Tensor):
        return _numbers({"": value})
    if isinstance(value, type) or inspect.isfunction(value) or inspect.isbuiltin(value):
        return _name(value)
    return _object(value, depth)


def _object(value: Any, depth: int) -> Any:
    """Describe an attention processor and the like: a class and its settings."""
    settings = getattr(value, "__dict__", None)
    if settings is None or not type(value).__module__ or callable(settings.get("__call__")):
        raise IndescribableError(type(value).__name__)
    if type(value).__module__ == "builtins" or type(value) is object:
        raise IndescribableError(type(value).__name__)
    return [
        _name(type(value)),
        _code(vars(type(value)).get("__call__")),
        {k: plain(v, depth + 1) for k, v in sorted(settings.items())},
    ]


def _module(module: nn.Module) -> Any:
    if any(getattr(module, hooks, None) for hooks in _HOOKS):
        raise IndescribableError("hooks")
    own = {k: v for k, v in vars(module).items() if k not in _MACHINERY}
    if "forward" in own or "__call__" in own or own.get("_compiled_call_impl") is not None:
        raise IndescribableError("a replaced forward")
    held = [(name, plain(value)) for name, value in sorted(own.items())]
    buffers = sorted(module._non_persistent_buffers_set)
    return [_name(type(module)), _code(type(module).forward), held, buffers]


def _name(value: Any) -> str:
    """Name a class or a function; one that was made inside another could be any."""
    name = f"{getattr(value, '__module__', '')}.{value.__qualname__}"
    if inspect.isfunction(value):
        if value.__closure__ or "<locals>" in name:
            raise IndescribableError(name)
        return f"{name} {_code(value)}"
    return name


def _code(function: Any) -> str:
    """Digest what a function does: people exchange methods of classes, too."""
    digests = []
    while function is not None:  # wrappers count as well as what they wrap
        code = getattr(function, "__code__", None)
        if code is not None:
            consts = [c for c in code.co_consts if isinstance(c, str | int | float | bool)]
            said = repr([getattr(function, "__qualname__", ""), consts, code.co_names]).encode()
            digests.append(sha256_of(code.co_code + said)[:16])
        function = getattr(function, "__wrapped__", None)
    return " ".join(digests)


def _numbers(tensors: Mapping[str, Tensor]) -> Any:
    """Digest tensors: per tensor its name, type, shape, and the sums of its rows."""
    import torch

    described, sums = [], []
    weights: dict[torch.device, Tensor] = {}
    for name, tensor in tensors.items():
        described.append([name, str(tensor.dtype), list(tensor.shape), type(tensor).__name__])
        if tensor.is_meta:
            raise IndescribableError("weights that are not in memory")
        if tensor.numel():
            if tensor.device not in weights:
                weights[tensor.device] = _weights().to(tensor.device)
            sums.append(_sums(tensor.detach(), weights[tensor.device]))
    places = {s.device for s in sums}
    data = b"".join(
        torch.cat([s for s in sums if s.device == p]).cpu().numpy().tobytes() for p in sorted(places, key=str)
    )
    return [described, sha256_of(data)]


def _weights() -> Tensor:
    """Odd numbers, the same in every process."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return torch.randint(-(2**62), 2**62, (ROW,), generator=generator, dtype=torch.int64) * 2 + 1


def _sums(tensor: Tensor, weights: Tensor) -> Tensor:
    import torch

    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
    if flat.numel() % 8 or flat.storage_offset() % 8:
        flat = torch.nn.functional.pad(flat, (0, -flat.numel() % 8))
        flat = flat.clone() if flat.storage_offset() % 8 else flat
    words = flat.view(torch.int64)
    full = words.numel() // ROW * ROW
    rows = words[:full].view(-1, ROW)
    found = [(rows[i : i + BLOCK] * weights).sum(1) for i in range(0, rows.shape[0], BLOCK)]
    rest = words[full:]
    return torch.cat([*found, (rest * weights[: rest.numel()]).sum()[None]])
