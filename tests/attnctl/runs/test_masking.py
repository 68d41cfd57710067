"""Masks in every way that people store them: the same square, or a clear refusal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attnctl.errors import InputError
from attnctl.masks import load_mask

SQUARE = np.zeros((32, 32), bool)
SQUARE[8:24, 8:24] = True


def numbers(low: float, high: float, kind: type) -> Image.Image:
    return Image.fromarray(np.where(SQUARE, high, low).astype(kind))


def palette(labels: np.ndarray, colours: list[tuple[int, int, int]]) -> Image.Image:
    image = Image.fromarray(labels.astype(np.uint8)).convert("L")
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette([c for colour in colours for c in colour])
    return image


def strokes(mode: str, colour: tuple[int, ...], strength: int = 255) -> Image.Image:
    """Paint with a half transparent rim of one pixel: outside of the square it is fainter than inside."""
    alpha = np.zeros((32, 32), np.uint8)
    alpha[7:25, 7:25] = strength // 3
    alpha[SQUARE] = strength
    image = Image.new(mode[:-1], (32, 32), colour if len(colour) > 1 else colour[0])
    image.putalpha(Image.fromarray(alpha))
    return image


VOC = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]
LABELS = np.where(SQUARE, 1, 0) + np.where(SQUARE & (np.arange(32) > 15), 1, 0)
RAMP = np.clip(np.where(SQUARE, 200, 40) + (np.arange(32) % 7) * 5, 0, 255)

KINDS = {
    "0-255": numbers(0, 255, np.uint8),
    "0-1": numbers(0, 1, np.uint8),
    "17-18": numbers(17, 18, np.uint8),
    "bits": numbers(0, 255, np.uint8).convert("1"),
    "16-bit 0-1": numbers(0, 1, np.uint16),
    "16-bit 0-255": numbers(0, 255, np.uint16),
    "16-bit 0-65535": numbers(0, 65535, np.uint16),
    "int32 0-1": numbers(0, 1, np.int32),
    "float 0-1": numbers(0, 1, np.float32),
    "float 0-255": numbers(0, 255, np.float32),
    "soft": Image.fromarray(RAMP.astype(np.uint8)),
    "soft float": Image.fromarray((RAMP / 255).astype(np.float32)),
    "soft 16-bit": Image.fromarray((RAMP * 257).astype(np.uint16)),
    "int32 soft, 8-bit levels": Image.fromarray(RAMP.astype(np.int32)),
    "rgb": numbers(0, 255, np.uint8).convert("RGB"),
    "red on black": Image.merge("RGB", [numbers(0, 255, np.uint8), *[Image.new("L", (32, 32))] * 2]),
    "two labels": palette(SQUARE, VOC),
    "two labels, bright first": palette(~SQUARE, [(255, 255, 255), (0, 0, 0)]),
    "two labels, far": palette(np.where(SQUARE, 200, 7), [(n, n, n) for n in range(256)]),
    "voc": palette(LABELS, VOC),
    "label numbers": Image.fromarray(LABELS.astype(np.uint8)),
    "rgba strokes": strokes("RGBA", (255, 255, 255)),
    "la strokes": strokes("LA", (255,)),
    "red strokes": strokes("RGBA", (255, 0, 0)),
    "black strokes": strokes("RGBA", (0, 0, 0)),
    "faint strokes": strokes("RGBA", (255, 255, 255), 90),
    "opaque alpha": numbers(0, 1, np.uint8).convert("RGBA"),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_the_same_square(name: str, tmp_path: Path) -> None:
    image = KINDS[name]
    path = tmp_path / ("a.tif" if image.mode in ("I", "F") else "a.png")
    image.save(path)
    assert np.array_equal(load_mask(path).values, SQUARE)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_jpeg_rings_and_is_read_all_the_same(mode: str, tmp_path: Path) -> None:
    square = np.zeros((32, 32), np.uint8)
    square[5:21, 5:21] = 255  # not on the borders of the format's blocks
    Image.fromarray(square).convert(mode).save(tmp_path / "a.jpg", quality=60)
    assert len(np.unique(np.asarray(Image.open(tmp_path / "a.jpg")))) > 20
    assert np.array_equal(load_mask(tmp_path / "a.jpg").values, square > 0)


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (Image.new("L", (8, 8), 0), "lets nothing change"),
        (Image.new("L", (8, 8), 255), "lets everything change"),
        (Image.new("1", (8, 8), 1), "lets everything change"),
        (Image.new("RGBA", (8, 8), (255, 255, 255, 0)), "transparent throughout"),
        (Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)), "many colours"),
        (Image.fromarray(np.array([[0, 15, 15, 255]], np.uint8)), "labels or levels"),
        (palette(LABELS, [(9, 9, 9), (128, 0, 0), (0, 128, 0)]), "label 0 is not black"),
        (Image.fromarray(np.array([[0, float("nan"), 1]], np.float32)), "not finite"),
        (Image.fromarray(np.array([[100, 101, 102, 120]], np.uint8)), "lets nothing change"),
    ],
)
def test_what_is_no_mask_is_refused(image: Image.Image, why: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.tif" if image.mode == "F" else "a.png")
    image.save(path)
    with pytest.raises(InputError, match=why):
        load_mask(path)


def test_a_photograph_with_a_hole_is_refused(tmp_path: Path) -> None:
    """Editors mark what to edit by a hole, others cut what to edit out: it cannot be told which is meant."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))
    image.putalpha(Image.fromarray(np.where(SQUARE, 0, 255).astype(np.uint8)))
    image.save(tmp_path / "a.png")
    with pytest.raises(InputError, match="many colours"):
        load_mask(tmp_path / "a.png")


def test_a_mask_is_turned_as_its_picture_is(tmp_path: Path) -> None:
    wide = np.zeros((16, 32), np.uint8)
    wide[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(wide).save(tmp_path / "a.png", exif=exif)
    found = load_mask(tmp_path / "a.png")
    assert found.original_size == (32, 16)
    assert found.values[:8].all()
    assert not found.values[8:].any()
