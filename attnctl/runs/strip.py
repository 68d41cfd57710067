"""Pictures side by side with captions, to be looked at by people.

Captions are set in the font that Pillow carries, so that a strip looks the same on every machine; only text
with letters which that font lacks takes a font of the machine.
"""

from __future__ import annotations

import functools
import math
import unicodedata
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

MIN_SIDE = 256
"""Pictures whose shorter sides all have fewer pixels than this are enlarged, all by one whole factor."""

MAX_COLUMNS = 5
MAX_LINES = 3
_INK, _PAPER = (40, 40, 40), (255, 255, 255)
_FALLBACK_FONTS = (
    "DejaVuSans.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSans-Regular.ttf",
    "Arial Unicode.ttf",
    "msyh.ttc",
    "msgothic.ttc",
    "malgun.ttf",
    "Hiragino Sans GB.ttc",
    "AppleSDGothicNeo.ttc",
    "unifont.otf",
)

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def side_by_side(
    images: Sequence[Image.Image], labels: Sequence[str] | None = None, *, columns: int | None = None
) -> Image.Image:
    """Lay pictures out in rows, each with its caption below, on white.

    Pictures smaller than `MIN_SIDE` are enlarged by one whole factor for all, with a smooth filter. A caption
    is wrapped to its picture's width and cut with an ellipsis after `MAX_LINES` lines.

    Args:
        images: At least one picture; sizes may differ, each is centred in its cell.
        labels: One caption for each picture, any text; None for no captions.
        columns: Pictures in a row; by default all up to `MAX_COLUMNS`, more are spread evenly over rows.

    Raises:
        ValueError: If there are no pictures, or not as many labels as pictures, or `columns` is below 1.
    """
    if not images:
        raise ValueError("side_by_side needs at least one picture")
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"{len(images)} pictures need as many labels, found {len(labels)}")
    if columns is not None and columns < 1:
        raise ValueError(f"columns must be 1 or more, found {columns}")
    rows = math.ceil(len(images) / MAX_COLUMNS)
    across = min(columns or math.ceil(len(images) / rows), len(images))
    pictures = _enlarged([_on_white(image) for image in images])
    width = max(p.width for p in pictures)
    height = max(p.height for p in pictures)
    gap = max(8, width // 32)
    size = max(15, min(width, height) // 20)
    line = round(size * 1.3)
    captions = [caption(label, width, size) for label in labels or [""] * len(images)]
    grid = [range(i, min(i + across, len(images))) for i in range(0, len(images), across)]
    heights = [height + (gap // 2 + line * n if (n := max(len(captions[i][0]) for i in row)) else 0) for row in grid]
    sheet = Image.new("RGB", (across * (width + gap) + gap, sum(heights) + gap * (len(grid) + 1)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    top = gap
    for row, used in zip(grid, heights, strict=True):
        for column, i in enumerate(row):
            left, picture = gap + column * (width + gap), pictures[i]
            sheet.paste(picture, (left + (width - picture.width) // 2, top + (height - picture.height) // 2))
            lines, font = captions[i]
            for n, text in enumerate(lines):
                x = left + (width - draw.textlength(text, font=font)) / 2
                draw.text((x, top + height + gap // 2 + n * line), text, fill=_INK, font=font)
        top += used + gap
    return sheet


def caption(label: str, width: int, size: int, max_lines: int = MAX_LINES) -> tuple[list[str], Font]:
    """Wrap a caption to a width, cutting it with an ellipsis when it needs too many lines.

    Args:
        label: Any text; line breaks, control characters and the like become spaces.
        width: Width in pixels that no line exceeds (save a single character that is wider).
        size: Font size in pixels.
        max_lines: Lines at most.

    Returns:
        The lines, and the font they are meant for.
    """
    text = _printable(label)
    font = _font_for(text, size)
    lines: list[str] = []
    rest = text
    while rest and len(lines) < max_lines:
        taken = _fitting(rest, width, font)
        lines.append(rest[:taken].rstrip())
        rest = rest[taken:].lstrip()
    if rest and lines:
        last = lines[-1]
        while last and font.getlength(last + "...") > width:
            last = last[:-1].rstrip()
        lines[-1] = last + "..."
    return lines, font


def _fitting(text: str, width: int, font: Font) -> int:
    """Return how many characters of `text` fit in `width`, up to a space if there is one; at least one."""
    low, high = 1, min(len(text), width)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(text[:middle]) <= width else (low, middle - 1)
    if low == len(text) or text[low] == " ":
        return low
    space = text.rfind(" ", 0, low)
    return space if space > 0 else low


def _printable(label: str) -> str:
    """Return the label on one line, without what cannot be drawn, such as control characters."""
    joiners = "\u200c\u200d"  # these shape letters in several scripts
    kept = "".join(c if c in joiners or unicodedata.category(c)[0] != "C" else " " for c in label)
    return " ".join(kept.split())


def _on_white(image: Image.Image) -> Image.Image:
    """Return the image as RGB, transparency laid on white."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _enlarged(images: list[Image.Image]) -> list[Image.Image]:
    """Enlarge all by one whole factor, so that the largest reaches `MIN_SIDE` pixels, at most 16 times."""
    factor = min(16, math.ceil(MIN_SIDE / max(min(image.size) for image in images)))
    if factor <= 1:
        return images
    return [i.resize((i.width * factor, i.height * factor), Image.Resampling.BICUBIC) for i in images]


def _font_for(text: str, size: int) -> Font:
    """Return the first font that can draw all of `text`, else the one that lacks the fewest characters."""
    own = _bundled(size)
    letters = sorted(set(text) - {" "})
    best, fewest = own, _lacking(letters, own)
    for name in _FALLBACK_FONTS if fewest else ():
        other = _installed(name, size)
        if other is not None and (lacking := _lacking(letters, other)) < fewest:
            best, fewest = other, lacking
        if not fewest:
            break
    return best


def _lacking(letters: Sequence[str], font: Font) -> int:
    """Count the characters that a font draws as its 'missing' box."""
    # U+FFFE is no character, so what a font draws for it is what it draws for everything that it lacks.
    missing = bytes(font.getmask("\ufffe"))
    return sum(bytes(font.getmask(letter)) == missing for letter in letters)


@functools.lru_cache
def _bundled(size: int) -> Font:
    return ImageFont.load_default(size)


@functools.lru_cache
def _installed(name: str, size: int) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None
