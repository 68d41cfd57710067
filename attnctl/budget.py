"""How much is allocated at most, said in one place and looked at before anything is allocated.

A number in a request, a file or a model's configuration decides how long a list, a tensor or a network becomes. Beyond
these limits nobody gets a picture; without them a slip of the keyboard, or a stranger's file, keeps a machine busy, or
fills its memory, without a word.
"""

from __future__ import annotations

from attnctl.errors import AttnctlError, InputError

MAX_SIDE = 8192
"""Pixels that a side of a picture to be made may have."""

MAX_PIXELS = 4096 * 4096
"""Pixels that a picture to be made may have."""

MAX_STEPS = 10_000
"""Denoising steps that a run may have; the schedules of the known models were trained with 1000."""

MAX_EDITS = 1024
"""Edit lanes that one run may have; more are several runs."""

MAX_PROMPT = 20_000
"""Characters that a prompt may have; the longest text that a known model reads is about a tenth of it."""

MAX_WORKERS = 1024
"""Processes, or actors of a cluster, that a comparison may be divided among."""


def within(what: str, found: int, limit: int, *, hint: str, error: type[AttnctlError] = InputError) -> None:
    """Refuse a number that is beyond its limit, before anything is made of that size.

    Args:
        what: What is counted, for example ``"the number of steps"``.
        found: The number.
        limit: The largest that is allowed.
        hint: What to do about it.
        error: The class to raise; a `ModelError` for a model's configuration.

    Raises:
        AttnctlError: It is larger.
    """
    if found > limit:
        raise error(f"{what} is {_short(found)}, at most {limit} is allowed", hint=hint)


def check_picture_size(size: tuple[int, int], *, error: type[AttnctlError] = InputError) -> None:
    """Refuse a picture (height, width) that is too large to be made.

    Raises:
        AttnctlError: A side or the area is beyond `MAX_SIDE` or `MAX_PIXELS`.
    """
    height, width = size
    shown = f"{_short(height)}x{_short(width)}"
    hint = f"choose at most {MAX_SIDE} pixels a side and {MAX_PIXELS / 1e6:.1f} megapixels"
    within(f"the longer side of a picture of {shown}", max(size), MAX_SIDE, hint=hint, error=error)
    within(f"the area in pixels of a picture of {shown}", height * width, MAX_PIXELS, hint=hint, error=error)


def check_steps(steps: int) -> None:
    """Refuse a number of denoising steps that no schedule has.

    Raises:
        InputError: It is beyond `MAX_STEPS`.
    """
    within("the number of steps", steps, MAX_STEPS, hint="50 is the papers' number; models were trained with 1000")


def _short(number: int) -> str:
    """Write a number so that its own size does no harm."""
    return str(number) if abs(number) < 10**12 else "more than a million million"
