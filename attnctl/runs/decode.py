"""Decoding picture files of every common kind to 8-bit RGB, refusing what is damaged or dangerously large."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageCms, ImageOps, JpegImagePlugin, UnidentifiedImageError

from attnctl.errors import InputError, nearest_first
from attnctl.files import irregular, reason, shown

MAX_PIXELS = 89_478_485
"""Pixels a picture may be decoded to (Pillow's own threshold, 256 MiB as RGB)."""

MAX_JPEG_PIXELS = 4 * MAX_PIXELS
"""Pixels a sequential JPEG may state: it can be decoded at 1/2, 1/4 or 1/8 scale, never held whole."""

_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "TGA", "JPEG2000", "ICO")
"""Formats that are tried. Some that Pillow knows start other programs (PostScript), so the list is closed."""

_READABLE = "PNG, JPEG, WebP, AVIF, GIF, BMP, TIFF, PPM, TGA or JPEG 2000"
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".tga"}
_ORIENTATION = 0x0112
_TURNED = "rotated as its EXIF orientation says"
_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class PictureData:
    """A picture file that lies inside another file.

    Attributes:
        data: Its bytes.
        where: What messages call it, for example ``'/data/a.parquet', row 3``.
    """

    data: bytes
    where: str


def named(source: Path | PictureData) -> str:
    """Return what messages call a picture."""
    return source.where if isinstance(source, PictureData) else shown(source)


def regular_file(path: str | os.PathLike[str]) -> Path:
    """Return `path` if it is a regular file with content.

    Raises:
        InputError: If it is missing, empty, a folder, a device, an address, or cannot be looked at.
    """
    given = os.fspath(path)
    if "://" in given:
        raise InputError(f"{given!r} is an address, not a file", hint="download the picture first")
    try:
        found = Path(given).expanduser()
        status = found.stat()
    except FileNotFoundError as error:
        raise InputError(f"there is no picture {shown(given)}", hint=_nearby(Path(given))) from error
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"cannot read the picture {shown(given)}: {reason(error)}", hint="check the path") from error
    if kind := irregular(status):
        if kind == "a folder":
            raise InputError(f"{shown(given)} is a folder, not a picture", hint="name one picture file in it")
        raise InputError(f"{shown(given)} is {kind}, not a regular file", hint="save the picture to a file first")
    if status.st_size == 0:
        raise InputError(f"the picture {shown(given)} is empty (0 bytes)", hint="copy or download it again")
    return found


def decode(
    source: Path | PictureData, size: tuple[int, int] | None = None, *, as_stored: bool = False
) -> tuple[Image.Image, list[str]]:
    """Read a picture file as 8-bit RGB.

    Normally as a viewer shows it: EXIF rotation applied, an embedded colour profile converted to sRGB,
    transparency laid on white, 16 bits scaled to 8, the first frame of an animation. `as_stored` takes the
    first three channels as they lie in the file instead.

    Args:
        source: A regular file, see `regular_file`, or one inside another file.
        size: The (height, width) it will be brought to, if known; lets a very large JPEG be read at reduced
            scale.
        as_stored: See above.

    Returns:
        The image, and a short sentence for each change that its owner may want to know of.

    Raises:
        InputError: If it is damaged, no picture, larger than `MAX_PIXELS` (sequential JPEG:
            `MAX_JPEG_PIXELS`), or needs more memory than there is.
    """
    notes: list[str] = []

    def use(image: Image.Image) -> Image.Image:
        _reduce_while_decoding(image, None if as_stored else size, source, notes)
        if image.format == "TIFF" and _orientation(image) > 1:
            # This decoder turns the picture itself, and then forgets that it did.
            notes.append(_TURNED)
        image.load()
        return _stored_rgb(image, source, notes) if as_stored else _as_seen(image, source, notes)

    return _guarded(source, use), notes


def decode_stored(source: Path | PictureData, *, upright: bool = True) -> tuple[Image.Image, list[str]]:
    """Read a picture file in the mode that it is stored in: palette, transparency and all bits are kept.

    Args:
        source: A regular file, see `regular_file`, or one inside another file.
        upright: Whether the EXIF rotation is applied.

    Returns:
        The image, and a short sentence for each change that its owner may want to know of.

    Raises:
        InputError: As `decode`.
    """
    notes: list[str] = []

    def use(image: Image.Image) -> Image.Image:
        _reduce_while_decoding(image, None, source, notes)
        turned = image.format == "TIFF" and _orientation(image) > 1
        image.load()
        _note_frames(image, notes)
        if upright and _orientation(image) > 1:
            image, turned = ImageOps.exif_transpose(image), True
        if turned:
            notes.append(_TURNED)
        return image.copy()

    return _guarded(source, use), notes


def upright_size(source: Path | PictureData) -> tuple[int, int]:
    """Return the (height, width) of a picture as a viewer shows it; reads the header alone.

    Raises:
        InputError: It is damaged, no picture, or too large.
    """

    def use(image: Image.Image) -> tuple[int, int]:
        # The TIFF decoder turns the picture when it is loaded, the header states it as stored.
        width, height = image.size
        return (width, height) if _orientation(image) >= 5 else (height, width)

    return _guarded(source, use)


def _guarded(source: Path | PictureData, use: Callable[[Image.Image], _T]) -> _T:
    """Open a picture, use it and close it, turning whatever decoders raise into one kind of error."""
    try:
        with warnings.catch_warnings():
            # Pillow warns about large pictures and odd metadata; what matters of that is checked here
            # instead.
            warnings.simplefilter("ignore")
            with contextlib.closing(_opened(source)) as image:
                return use(image)
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"not enough memory to read {named(source)}", hint="make the picture smaller first") from error
    except Exception as error:  # on damaged files decoders raise nearly anything, SyntaxError too
        raise _unreadable(source, error) from error


def _nearby(path: Path) -> str:
    """Advise on a missing file: the pictures beside it that are named most alike."""
    with contextlib.suppress(OSError):
        beside = [p.name for p in path.parent.iterdir() if p.suffix.lower() in _SUFFIXES]
        if beside:
            return f"pictures in that folder: {', '.join(nearest_first(path.name, beside)[:3])}"
        return f"there are no pictures in {shown(path.parent)}; check the path"
    return f"the folder {shown(path.parent)} does not exist; check the path"


def _opened(source: Path | PictureData) -> Image.Image:
    """Read a picture's header, and refuse what would take too much memory to decode."""
    Image.init()
    known = [f for f in _FORMATS if f in Image.OPEN]
    file = io.BytesIO(source.data) if isinstance(source, PictureData) else source
    try:
        image: Image.Image = Image.open(file, formats=known)
    except Image.DecompressionBombError:
        with io.BytesIO(source.data) if isinstance(source, PictureData) else source.open("rb") as stream:
            if stream.read(3) != b"\xff\xd8\xff":
                raise _too_large(source, None, MAX_PIXELS) from None
        if isinstance(file, io.BytesIO):
            file.seek(0)
        image = JpegImagePlugin.JpegImageFile(file)
    sequential_jpeg = isinstance(image, JpegImagePlugin.JpegImageFile) and "progressive" not in image.info
    limit = MAX_JPEG_PIXELS if sequential_jpeg else MAX_PIXELS
    found = image.size
    if 0 < found[0] * found[1] <= limit:
        return image
    image.close()
    if all(found):
        raise _too_large(source, found, limit)
    raise ValueError(f"states a size of {found[0]} x {found[1]}")


def _too_large(source: Path | PictureData, size: tuple[int, int] | None, limit: int) -> InputError:
    """Build the error for a picture with too many pixels."""
    found = f" {size[0]} x {size[1]} pixels," if size else ""
    return InputError(
        f"the picture {named(source)} is too large:{found} more than {limit / 1e6:.0f} megapixels",
        hint="make it smaller first; a model reads about one megapixel of it at most",
    )


def _unreadable(source: Path | PictureData, error: Exception) -> InputError:
    """Build the error for a file that cannot be decoded."""
    if isinstance(error, PermissionError):
        return InputError(f"no permission to read the picture {named(source)}", hint="check the file's permissions")
    if isinstance(error, UnidentifiedImageError):
        return InputError(
            f"{named(source)} is not a picture that can be read",
            hint=f"convert it to PNG first; readable are {_READABLE}",
        )
    return InputError(
        f"the picture {named(source)} is damaged or incomplete: {reason(error)}",
        hint="copy or download it again",
    )


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) where there is none or it is damaged."""
    with contextlib.suppress(Exception):  # damaged metadata must not make a readable picture unreadable
        value = image.getexif().get(_ORIENTATION, 1)
        return value if value in range(2, 9) else 1
    return 1


def _reduce_while_decoding(
    image: Image.Image, size: tuple[int, int] | None, source: Path | PictureData, notes: list[str]
) -> None:
    """Have a very large JPEG decoded at 1/2, 1/4 or 1/8 scale, which needs a fraction of the memory.

    Twice the target size is kept, so that the filter of the later resize still decides how the result looks.
    """
    before = image.size
    if before[0] * before[1] <= MAX_PIXELS:
        return
    if size is not None:
        side = 2 * max(size)  # for both sides, since an EXIF rotation may still exchange them
        image.draft(None, (side, side))
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(source, before, MAX_PIXELS)
    notes.append(f"very large ({before[0]} x {before[1]}), read at {image.width} x {image.height}")


def _as_seen(image: Image.Image, source: Path | PictureData, notes: list[str]) -> Image.Image:
    """Convert a decoded picture to 8-bit RGB as a viewer shows it, noting each change."""
    _note_frames(image, notes)
    profile = image.info.get("icc_profile")
    if _wide(image):
        image = _scaled_to_8_bit(image, source, notes)
    if _orientation(image) > 1:
        image = ImageOps.exif_transpose(image)
        notes.append(_TURNED)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        if rgba.getchannel("A").histogram()[255] < rgba.width * rgba.height:
            notes.append("transparent parts laid on white")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    if profile and image.mode in ("RGB", "CMYK"):
        image = _to_srgb(image, profile, notes)
    return _plain_rgb(image, source, notes)


def _stored_rgb(image: Image.Image, source: Path | PictureData, notes: list[str]) -> Image.Image:
    """Return the first three channels as stored, without rotation or colour profile."""
    _note_frames(image, notes)
    if _orientation(image) > 1:
        notes.append("its EXIF orientation was ignored, as this fit does")
    if _wide(image):
        image = _scaled_to_8_bit(image, source, notes)
    if image.has_transparency_data:
        notes.append("transparency was dropped, as this fit does")
        image = image.convert("RGBA").convert("RGB")
    return _plain_rgb(image, source, notes)


def _note_frames(image: Image.Image, notes: list[str]) -> None:
    # MPO is what many phones write for one photograph: the other frames are previews and depth maps.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        notes.append("several frames, the first was used")


def _plain_rgb(image: Image.Image, source: Path | PictureData, notes: list[str]) -> Image.Image:
    """Convert an 8-bit image without transparency to RGB."""
    if image.mode == "LAB":
        raise InputError(f"the picture {named(source)} is stored as L*a*b*", hint="save it as an RGB PNG first")
    if image.mode == "CMYK":
        notes.append("converted from CMYK to RGB")
    elif image.mode in ("1", "L"):
        notes.append("grayscale, used for red, green and blue alike")
    return image.convert("RGB")


def _wide(image: Image.Image) -> bool:
    """Tell whether the values are more than 8 bits wide; Pillow's own conversion would clip those."""
    return image.mode in ("I", "F") or image.mode.startswith("I;")


def _scaled_to_8_bit(image: Image.Image, source: Path | PictureData, notes: list[str]) -> Image.Image:
    """Map grayscale values of 16-bit integers or floats to 8 bits by their full range, never by clipping."""
    values = np.asarray(image).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if image.mode == "F":
        top, kind = (1.0, "floats in [0, 1]") if high <= 1 else (255.0, "floats in [0, 255]")
    else:
        bits = getattr(image, "tag_v2", {}).get(258, (16,))[0]  # TIFF's BitsPerSample: 12 and 32 occur
        top, kind = (float(2**bits - 1) if bits < 16 else 65535.0), f"{min(bits, 16)}-bit values"
        if 1 < high <= 255 and bits > 8:
            # Arrays of levels 0 to 255 that were saved as they were: read by their full range, all of it were black.
            top, kind = 255.0, "levels up to 255 in a wider file"
    if not (low >= 0 and high <= top):  # written so that NaN fails too
        raise InputError(
            f"the values of {named(source)} reach from {low:g} to {high:g}, expected 0 to {top:g} ({kind})",
            hint="save it as an 8-bit PNG first",
        )
    notes.append(f"{kind} scaled to 8 bits")
    scaled = Image.fromarray(np.floor(values * (255.0 / top) + 0.5).astype(np.uint8))
    scaled.info.update({k: v for k, v in image.info.items() if k == "exif"})
    return scaled


def _to_srgb(image: Image.Image, profile: bytes, notes: list[str]) -> Image.Image:
    """Convert colours by the embedded profile; one that is sRGB already, or unusable, changes nothing."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        name = ImageCms.getProfileDescription(source).strip() or "unnamed"
        if image.mode == "RGB" and "srgb" in name.lower():
            return image
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, ImportError):
        return image
    if converted is None:
        return image
    notes.append(f"colours converted from the profile {name!r} to sRGB")
    return converted
