"""The 28 colour words of FPE's car set, with sRGB values that a viewer can tell apart.

The values were moved from their usual ones until every pair is at least 30 CIE76 units apart in
CIELAB, so that a picture shows which word was meant.
"""

from __future__ import annotations

from functools import cache

import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (245, 10, 28),
    "green": (8, 160, 52),
    "blue": (12, 78, 250),
    "yellow": (251, 246, 34),
    "orange": (252, 120, 8),
    "purple": (140, 10, 132),
    "pink": (252, 134, 203),
    "black": (10, 14, 16),
    "white": (248, 250, 250),
    "gray": (118, 114, 114),
    "brown": (124, 58, 8),
    "beige": (234, 228, 164),
    "cyan": (8, 212, 252),
    "magenta": (252, 13, 218),
    "teal": (8, 124, 118),
    "lime": (129, 252, 20),
    "olive": (78, 104, 8),
    "navy": (8, 31, 88),
    "maroon": (141, 8, 59),
    "silver": (186, 186, 206),
    "gold": (244, 181, 10),
    "bronze": (181, 135, 56),
    "peach": (252, 178, 158),
    "coral": (252, 100, 105),
    "indigo": (14, 8, 134),
    "violet": (168, 131, 252),
    "turquoise": (19, 231, 191),
    "chocolate": (60, 18, 8),
}
"""Word to sRGB, 0 to 255, in the order of FPE's Car_fake_edit set."""


def to_lab(rgb: np.ndarray) -> np.ndarray:
    """Turn sRGB values into CIELAB (D65).

    Args:
        rgb: Values from 0 to 255, shape (..., 3).

    Returns:
        L*, a*, b* in the same shape.
    """
    value = np.asarray(rgb, dtype=np.float64) / 255.0
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ matrix.T / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16.0 / 116.0)
    return np.stack(
        [116.0 * f[..., 1] - 16.0, 500.0 * (f[..., 0] - f[..., 1]), 200.0 * (f[..., 1] - f[..., 2])], axis=-1
    )


@cache
def distances() -> np.ndarray:
    """Give the CIE76 distance of every pair of colour words, shape (28, 28)."""
    lab = to_lab(np.array(list(COLOURS.values())))
    return np.asarray(np.linalg.norm(lab[:, None] - lab[None], axis=-1))


def _neighbours(count: int = 2) -> dict[str, tuple[str, ...]]:
    names = list(COLOURS)
    order = np.argsort(distances(), axis=1)[:, 1 : count + 1]
    return {name: tuple(names[i] for i in order[row]) for row, name in enumerate(names)}


NEIGHBOURS: dict[str, tuple[str, ...]] = _neighbours()
"""The two nearest shades of each colour word (CIE76); a mistake between them is counted apart."""
