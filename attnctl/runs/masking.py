"""What counts as white in a mask file, whichever way it is stored.

Masks are stored in many ways, and a reader for photographs shows most of them black, or white. The rules, in order:

1. *Transparency*: paint of one colour on a transparent ground is white where it is at least half as opaque as its most
   opaque part. Else transparent parts count as black.
2. *Two values* anywhere in the picture: the brighter one is white, whatever their numbers: 0 and 1, 0 and 65535.
3. *A colour palette* of more values whose label 0 is black: all other labels are white, as in Pascal VOC.
4. *A few small numbers* with 0 among them (at most 63): labels too.
5. *Grey* of more values, as in soft masks and JPEG files: white from half of the range up. The range is that of the
   numbers: up to 1, 255 or 65535, the smallest that holds them all.
6. *Two colours with shades between them*: white from half of the way to the brighter one up.

Everything else is refused, and so is a mask of one value.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attnctl.errors import InputError

_MOST_LABEL = 63
"""Largest number that is taken for a label rather than for a dark level."""

_OFF_LINE = 48
"""How far a colour may lie from the line between the two that a mask has; JPEG files stray from it."""

_STRAY = 0.01
"""Share of the pixels that may lie further."""

Levels = NDArray[np.float64]


def white_parts(image: Image.Image, where: str, notes: list[str]) -> NDArray[np.bool_]:
    """Return where a mask is white.

    Args:
        image: The decoded file in the mode that it is stored in.
        where: What messages call it.
        notes: Gets a sentence for each reading that may surprise.

    Returns:
        Bool (H, W).

    Raises:
        InputError: It has one value throughout, or is no mask.
    """
    white = _by_transparency(image, where, notes)
    if white is None:
        white = _by_palette(image, where, notes) if image.mode == "P" else None
    if white is None:
        values = _values(image, where)
        white = _two_values(values)
        if white is None:
            white = _grey(values, where, notes) if values.ndim == 2 else _colours(values, where, notes)
    return white


def _one_colour(where: str, values: NDArray[np.float64]) -> InputError:
    first = values.reshape(-1, *values.shape[2:])[0]
    shown = ", ".join(f"{v:g}" for v in np.atleast_1d(first))
    state = "everything" if np.all(first > 0) else "nothing"
    return InputError(
        f"the mask lets {state} change: {where} has one value throughout ({shown})",
        hint="paint white what may change, and black what stays; leave the mask out where everything may change",
    )


def _by_transparency(image: Image.Image, where: str, notes: list[str]) -> NDArray[np.bool_] | None:
    """Read a mask that has transparent parts; None where it has none."""
    if not image.has_transparency_data:
        return None
    rgba = np.asarray(image.convert("RGBA")).astype(np.float64)
    colours, alpha = rgba[..., :3], rgba[..., 3]
    if alpha.min() == alpha.max():
        if alpha.max() == 0:
            raise InputError(f"the mask {where} is transparent throughout", hint="paint white what may change")
        return None if alpha.max() == 255 else _opaque(colours, where, notes)
    painted = colours[alpha >= 0.9 * alpha.max()]
    if np.ptp(painted, axis=0).max() <= 16:
        notes.append("transparent parts of the mask stay, painted ones may change")
        return np.asarray(alpha >= alpha.max() / 2)
    notes.append("transparent parts of the mask count as black")
    return _opaque(colours * (alpha / 255)[..., None], where, notes)


def _opaque(colours: Levels, where: str, notes: list[str]) -> NDArray[np.bool_]:
    values = _grey_of(colours)
    white = _two_values(values)
    if white is not None:
        return white
    return _grey(values, where, notes) if values.ndim == 2 else _colours(values, where, notes)


def _by_palette(image: Image.Image, where: str, notes: list[str]) -> NDArray[np.bool_] | None:
    """Read a label map with a colour palette; None for a palette of greys or of two colours."""
    labels = np.asarray(image)
    used = np.unique(labels)
    colours = np.asarray(image.convert("RGB"))
    grey = bool((np.ptp(colours, axis=2) == 0).all())
    if len(used) < 3 or grey or len(np.unique(colours.reshape(-1, 3), axis=0)) < 3:
        return None
    if 0 not in used or colours[labels == 0].max() > 0:
        raise InputError(
            f"the mask {where} has {len(used)} colours, and its label 0 is not black: which are to change is not clear",
            hint="save it in black and white",
        )
    notes.append(f"a label map: label 0 stays, the other {len(used) - 1} may change")
    return np.asarray(labels > 0)


def _values(image: Image.Image, where: str) -> Levels:
    """Return the stored numbers: (H, W) for grey, (H, W, 3) for colour."""
    if image.mode in ("1", "L", "I", "F") or image.mode.startswith("I;"):
        values = np.asarray(image).astype(np.float64)
        if not np.isfinite(values).all() or values.min() < 0:
            raise InputError(f"the mask {where} holds numbers that are negative or not finite", hint="save it as a PNG")
        return values
    if image.mode == "LAB":
        raise InputError(f"the mask {where} is stored as L*a*b*", hint="save it as an 8-bit PNG")
    return _grey_of(np.asarray(image.convert("RGB")).astype(np.float64))


def _grey_of(colours: Levels) -> Levels:
    """Return one channel of three that are equal."""
    return colours[..., 0] if not np.ptp(colours, axis=2).any() else colours


def _two_values(values: Levels) -> NDArray[np.bool_] | None:
    """Return where the brighter of two values is; None where there are not two."""
    flat = values.reshape(values.shape[0] * values.shape[1], -1)
    first = flat[0]
    others = flat[(flat != first).any(axis=1)]
    if not len(others) or (others != others[0]).any():
        return None
    bright, second = _brightness(first), _brightness(others[0])
    if bright == second:
        return None
    is_first = (values.reshape(*values.shape[:2], -1) == first).all(axis=2)
    return np.asarray(is_first if bright > second else ~is_first)


def _brightness(colour: NDArray[np.float64]) -> float:
    return float(colour[0]) if len(colour) == 1 else float(colour @ np.array([0.299, 0.587, 0.114]))


def _grey(values: Levels, where: str, notes: list[str]) -> NDArray[np.bool_]:
    """Read a grey mask of more than two values, or refuse one of a single value."""
    levels = np.unique(values)
    if len(levels) == 1:
        raise _one_colour(where, values)
    whole = bool((levels == np.floor(levels)).all())
    if whole and levels[0] == 0 and 1 < levels[-1] <= _MOST_LABEL:
        notes.append(f"a label map: label 0 stays, the other {len(levels) - 1} may change")
        return np.asarray(values > 0)
    top = next((t for t in (1.0, 255.0, 65535.0) if levels[-1] <= t), None)
    if top is None:
        raise InputError(f"the mask {where} holds numbers up to {levels[-1]:g}", hint="save it as an 8-bit PNG")
    if whole and top > 1 and levels[-2] <= top / 4:
        raise InputError(
            f"the mask {where} holds the numbers {', '.join(f'{v:g}' for v in levels[:3])} ... {levels[-1]:g}: "
            "labels or levels?",
            hint="save it in black and white",
        )
    notes.append(f"a soft mask: what is at least half white, {top / 2:g} of {top:g}, may change")
    return np.asarray(values >= top / 2)


def _colours(values: Levels, where: str, notes: list[str]) -> NDArray[np.bool_]:
    """Read a mask of two colours and shades between them; anything else is a picture."""
    flat = values.reshape(-1, 3)
    bright = flat @ np.array([0.299, 0.587, 0.114])
    low, high = flat[bright.argmin()], flat[bright.argmax()]
    way = high - low
    length = float(way @ way)
    share = (flat - low) @ way / length if length else np.zeros(len(flat))
    distance = np.linalg.norm(flat - low - share[:, None] * way, axis=1)
    if not length or np.ptp(bright) < 16 or (distance > _OFF_LINE).mean() > _STRAY:
        raise InputError(
            f"the mask {where} has many colours: what is to change is not clear",
            hint="save it in black and white; was the picture given in its place?",
        )
    notes.append("two colours with shades between them: the brighter one may change")
    return np.asarray((share >= 0.5).reshape(values.shape[:2]))
