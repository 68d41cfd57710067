"""Masks that say where a picture may change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from attnctl.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


def check_users(uses: Mapping[str, bool]) -> None:
    """Refuse a mask that nobody heeds.

    Args:
        uses: Per method of a run, whether it uses masks.

    Raises:
        InputError: None of them does.
    """
    if not any(uses.values()):
        raise InputError(
            f"there is a mask, but {' and '.join(uses)} can make no use of one",
            hint="leave the mask out, or use a method whose page speaks of masks",
        )


def fit_mask(mask: Tensor, latent_size: tuple[int, int], scale: int) -> Tensor:
    """Bring a mask to the latents' size: a latent may change where at least half of its pixels may.

    Args:
        mask: (H, W) of the picture or (h, w) of the latents; true, or above 0.5, means may change.
        latent_size: (h, w) of the latents.
        scale: Picture side divided by latent side.

    Returns:
        Bool (h, w).

    Raises:
        InputError: The mask has another size, holds values outside [0, 1], or lets nothing change.
    """
    h, w = latent_size
    sizes = {(h, w), (h * scale, w * scale)}
    if tuple(mask.shape) not in sizes:
        wanted = " or ".join("x".join(map(str, s)) for s in sorted(sizes, reverse=True))
        raise InputError(
            f"the mask is {'x'.join(map(str, mask.shape))}, expected {wanted} (height x width)",
            hint="make the mask as large as the picture",
        )
    values = mask.detach().float()
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise InputError(
            f"mask values must lie between 0 and 1, found {float(values.min())} to {float(values.max())}",
            hint="white (1) may change, black (0) stays",
        )
    hard = (values > 0.5).float()
    fitted = hard.reshape(h, mask.shape[0] // h, w, mask.shape[1] // w).mean((1, 3)) >= 0.5
    if not bool(fitted.any()):
        raise InputError(
            "the mask lets nothing change" + ("" if not bool(hard.any()) else f" at the latents' size {h}x{w}"),
            hint="paint white what may change, at least one latent wide" if bool(hard.any()) else "white may change",
        )
    return fitted
