"""Peak memory, and telling an out-of-memory error from others."""

from __future__ import annotations

import sys

import torch

from attnctl.errors import AttnctlError

_SHORTAGE = ("out of memory", "not enough memory", "can't allocate memory", "bad_alloc")
"""How CUDA and MPS, and torch's CPU allocator on Windows, on Linux and in C++ say it, as plain `RuntimeError`."""


class MemoryShortageError(AttnctlError):
    """The device has too little memory for even the smallest piece of the run."""


def reset_peak(device: torch.device) -> None:
    """Start a new peak on CUDA; elsewhere the process's high-water mark cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """Return the allocator's peak on CUDA, the process's high-water mark elsewhere (0 where unknown), in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return 0
    mark = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(mark if sys.platform == "darwin" else mark * 1024)


def is_shortage(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(words in text for words in _SHORTAGE)
