"""Masks that say where a picture may change."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attnctl.errors import InputError, unknown
from attnctl.files import reason, sha256_of_file, shown
from attnctl.pictures import FITS, Fit, crop_box
from attnctl.runs.decode import decode_stored, named, regular_file, upright_size
from attnctl.runs.masking import white_parts

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class LoadedMask:
    """A mask file that was read.

    Attributes:
        values: Bool (H, W), true where the picture may change; neither empty nor full.
        notes: How it was understood, where that may surprise its owner, one short sentence each.
        sha256: SHA-256 of the file as it lies on disk.
        original_size: (height, width) before it was brought to a size.
    """

    values: NDArray[np.bool_]
    notes: tuple[str, ...]
    sha256: str
    original_size: tuple[int, int]


def load_mask(
    path: str | os.PathLike[str],
    size: tuple[int, int] | None = None,
    *,
    fit: Fit = "crop",
    picture: str | os.PathLike[str] | None = None,
) -> LoadedMask:
    """Read a mask of any common kind; `attnctl.runs.masking.white_parts` says what counts as white.

    It comes to `size` as its picture does (`attnctl.pictures.load_picture`): enlarged by its nearest pixel, made
    smaller by the majority of the pixels.

    Args:
        path: A regular file.
        size: Target (height, width) in pixels; None keeps the mask's own.
        fit: How the picture comes to the size.
        picture: The picture that the mask belongs to; the two must have one aspect ratio.

    Raises:
        InputError: It cannot be read, is of one colour, is no mask, or has another shape than the picture.
    """
    if fit not in FITS:
        raise unknown("fit", fit, FITS)
    file = regular_file(path)
    image, notes = decode_stored(file, upright=fit != "nearest-stretch")
    if picture is not None:
        _check_shape(file, (image.height, image.width), Path(picture).expanduser())
    values = white_parts(image, named(file), notes)
    check_mixed(values, shown(path))
    original = (image.height, image.width)
    if size is not None and size != original:
        values = _brought_to(values, size, fit)
        check_mixed(values, f"{shown(path)}, brought to {size[1]} x {size[0]},")
    try:
        digest = sha256_of_file(file)
    except OSError as error:
        raise InputError(f"cannot read the mask {shown(path)}: {reason(error)}", hint="check the path") from error
    return LoadedMask(values, tuple(notes), digest, original)


def check_mixed(values: NDArray[np.bool_], where: str) -> None:
    """Refuse a mask that is white everywhere or nowhere.

    Raises:
        InputError: It is.
    """
    if values.all():
        raise InputError(
            f"the mask lets everything change: {where} is full", hint="leave the mask out where that is meant"
        )
    if not values.any():
        raise InputError(f"the mask lets nothing change: {where} is empty", hint="paint white what may change")


def _brought_to(values: NDArray[np.bool_], size: tuple[int, int], fit: Fit) -> NDArray[np.bool_]:
    height, width = size
    picture = Image.fromarray(values.astype(np.uint8) * 255)
    if fit == "crop":
        picture = picture.crop(crop_box(picture.height, picture.width, height, width))
    # A box filter takes the nearest pixel where it enlarges, and the mean of a pixel's part where it shrinks.
    levels = np.asarray(picture.resize((width, height), Image.Resampling.BOX))
    return np.asarray(levels >= 128)


def _check_shape(mask: Path, size: tuple[int, int], picture: Path) -> None:
    """Refuse a mask that shows another part than its picture; a pixel of rounding is allowed for."""
    try:
        found = upright_size(picture)
    except InputError:
        return  # the picture's own reader says what is wrong with it
    wanted = (found[1] * size[0] / found[0], found[0] * size[1] / found[1])
    if abs(size[1] - wanted[0]) > 1 and abs(size[0] - wanted[1]) > 1:
        raise InputError(
            f"the mask {shown(mask)} is {size[1]} x {size[0]}, its picture {found[1]} x {found[0]}",
            hint="give the mask the picture's width and height; a rotation in the picture's EXIF counts",
        )


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
