"""Reading the pictures that people have, and writing the ones that a run makes.

Arrays are channels first: ``(3, H, W)``. What the model reads lies in [-1, 1], what it returns in [0, 1].
Needs numpy and Pillow alone.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attnctl.errors import InputError, NumericsError, unknown
from attnctl.files import reason, sha256_of, sha256_of_file, shown, write_atomic
from attnctl.runs.decode import MAX_PIXELS, PictureData, decode, regular_file

Fit = Literal["crop", "stretch", "nearest-stretch"]
Resample = Literal["lanczos", "bicubic", "bilinear"]

FITS: tuple[Fit, ...] = ("crop", "stretch", "nearest-stretch")
"""The names that ``fit`` takes."""

RESAMPLES: dict[Resample, Image.Resampling] = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}
"""The names that ``resample`` takes, and Pillow's filters for them."""


@dataclass(frozen=True, eq=False)
class LoadedPicture:
    """A picture ready for the model.

    Attributes:
        pixels: float32 of shape (3, H, W) in [-1, 1], RGB.
        notes: What was done to it that its owner may want to know, one short sentence each.
        sha256: SHA-256 of the file as it lies on disk.
        original_size: (height, width) of the decoded picture, upright, before fitting.
    """

    pixels: NDArray[np.float32]
    notes: tuple[str, ...]
    sha256: str
    original_size: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of `pixels`."""
        return int(self.pixels.shape[1]), int(self.pixels.shape[2])


def load_picture(
    path: str | os.PathLike[str] | PictureData,
    size: tuple[int, int] | None = None,
    *,
    fit: Fit = "crop",
    resample: Resample = "lanczos",
) -> LoadedPicture:
    """Read a picture of any common kind as RGB of a given size.

    The picture becomes 8-bit sRGB as a viewer shows it (`attnctl.runs.decode.decode`), is brought to `size`, and
    its levels are mapped to ``level / 127.5 - 1``. ``fit`` says how it comes to `size`:

    - ``"crop"``: the largest centred part with the target's aspect ratio, then resized.
    - ``"stretch"``: resized, the aspect ratio is not kept.
    - ``"nearest-stretch"``: the loader of several published real-image scripts, for parity with them: the
      stored 8-bit values (no EXIF rotation, no colour conversion, alpha dropped), stretched with
      nearest-neighbour sampling, equal to ``torch.nn.functional.interpolate``'s default. Aliases when it
      shrinks.

    Args:
        path: A regular file, or a picture that lies inside another file.
        size: Target (height, width) in pixels; None keeps the picture's own.
        fit: See above.
        resample: Filter for the first two fits.

    Raises:
        InputError: If there is no such file, if it is empty, damaged, no picture or too large, or if `size`,
            `fit` or `resample` are not valid.
    """
    _check_arguments(size, fit, resample)
    file = path if isinstance(path, PictureData) else regular_file(path)
    rgb, notes = decode(file, size, as_stored=fit == "nearest-stretch")
    original = (rgb.height, rgb.width)
    levels = _fitted(rgb, size or original, fit, RESAMPLES[resample], notes)
    pixels = np.ascontiguousarray(levels.transpose(2, 0, 1), dtype=np.float32)
    pixels = pixels / np.float32(127.5) - np.float32(1)
    try:
        digest = sha256_of(file.data) if isinstance(file, PictureData) else sha256_of_file(file)
    except OSError as error:
        raise InputError(
            f"cannot read the picture {shown(str(file))}: {reason(error)}", hint="check the path"
        ) from error
    return LoadedPicture(pixels, tuple(notes), digest, original)


def to_image(array: Any) -> Image.Image:
    """Turn a picture array into an 8-bit RGB image.

    Values are clamped to [0, 1] and rounded to nearest as ``floor(255 x + 0.5)`` in float32, which is
    torchvision's ``save_image``; code that truncates ``255 x`` instead is up to one level darker.

    Args:
        array: (3, H, W), RGB in [0, 1]: a numpy array or anything that numpy reads, such as a CPU tensor.

    Raises:
        NumericsError: If a value is NaN or infinite.
        ValueError: If the shape is another.
    """
    values = np.asarray(array, dtype=np.float32)
    if values.ndim != 3 or values.shape[0] != 3 or 0 in values.shape:
        raise ValueError(f"a picture array must have shape (3, H, W), found {values.shape}")
    finite = np.isfinite(values)
    if not finite.all():
        raise NumericsError(
            f"{np.count_nonzero(~finite)} of {values.size} values of the picture are NaN or infinite",
            hint="run in float32 (--dtype float32), or lower --guidance",
        )
    levels = np.clip(values * np.float32(255) + np.float32(0.5), 0, 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(levels.transpose(1, 2, 0)))


def save_png(image: Image.Image, path: str | os.PathLike[str]) -> str:
    """Write an image as PNG (see `png_bytes`), atomically, and return the SHA-256 of the file.

    Args:
        image: An image of a mode that PNG knows.
        path: Where to write; the folder must exist, an older file is replaced.

    Raises:
        InputError: If the place cannot be written to.
    """
    return write_atomic(path, png_bytes(image))


def png_bytes(image: Image.Image) -> bytes:
    """Return an image as a PNG file.

    The file holds pixels alone: no time, no metadata, so equal pictures give equal bytes (with the same
    zlib).

    Args:
        image: An image of a mode that PNG knows.
    """
    bare = image.copy()
    bare.info.clear()
    buffer = io.BytesIO()
    bare.save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


def crop_box(height: int, width: int, target_height: int, target_width: int) -> tuple[int, int, int, int]:
    """Return the largest centred box of a picture with the target's aspect ratio, to the nearest pixel.

    Args:
        height: Height of the picture in pixels.
        width: Width of the picture in pixels.
        target_height: Height of the target; only its ratio to the width matters.
        target_width: Width of the target.

    Returns:
        (left, top, right, bottom) in pixels, right and bottom exclusive; never empty. An odd pixel of margin
        goes to the right or the bottom.
    """
    if width * target_height > height * target_width:
        kept = max(1, round(height * target_width / target_height))
        left = (width - kept) // 2
        return left, 0, left + kept, height
    kept = max(1, round(width * target_height / target_width))
    top = (height - kept) // 2
    return 0, top, width, top + kept


def _check_arguments(size: tuple[int, int] | None, fit: str, resample: str) -> None:
    """Refuse a size that is not two positive numbers, and names that do not exist."""
    if fit not in FITS:
        raise unknown("fit", fit, FITS)
    if resample not in RESAMPLES:
        raise unknown("resample filter", resample, RESAMPLES)
    if size is None:
        return
    height, width = size
    if min(height, width) < 1 or height * width > MAX_PIXELS:
        raise InputError(
            f"a picture cannot be {height} x {width}: expected 1 pixel to {MAX_PIXELS / 1e6:.0f} megapixels",
            hint="give the height and width in pixels",
        )


def _fitted(
    image: Image.Image, size: tuple[int, int], fit: Fit, resample: Image.Resampling, notes: list[str]
) -> NDArray[np.uint8]:
    """Bring an RGB image to (height, width) as levels (H, W, 3), noting what was cut, distorted, enlarged."""
    height, width = size
    if fit == "crop":
        box = crop_box(image.height, image.width, height, width)
        if box != (0, 0, image.width, image.height):
            kept = f"{box[2] - box[0]} x {box[3] - box[1]}"
            notes.append(f"cropped from {image.width} x {image.height} to the centred {kept}")
            # A real crop, not resize's box: the filter must not see pixels outside, as in the published
            # loaders.
            image = image.crop(box)
    elif image.width * height != image.height * width:
        notes.append(f"stretched from {image.width} x {image.height} to {width} x {height}, aspect ratio not kept")
    if width > image.width or height > image.height:
        notes.append(f"enlarged from {image.width} x {image.height} to {width} x {height}, so details are missing")
    if fit == "nearest-stretch":
        pixels = np.asarray(image)
        return pixels[_nearest(image.height, height)][:, _nearest(image.width, width)]
    if image.size != (width, height):
        image = image.resize((width, height), resample)
    return np.asarray(image)


def _nearest(size_in: int, size_out: int) -> NDArray[np.intp]:
    """Return the input index that each output index takes, in float32 as torch: floor(i * in / out)."""
    scale = np.float32(size_in) / np.float32(size_out)
    index: NDArray[np.intp] = np.floor(np.arange(size_out, dtype=np.float32) * scale).astype(np.intp)
    return np.minimum(index, np.intp(size_in - 1))
