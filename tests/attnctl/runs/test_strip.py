"""Strips of pictures with captions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from attnctl.runs.strip import MAX_LINES, caption, side_by_side

RED, BLUE = (200, 0, 0), (0, 0, 200)


def area(sheet: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the pixels of one colour."""
    rows, columns = np.nonzero((np.asarray(sheet) == colour).all(axis=2))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def ink_below(sheet: Image.Image, box: tuple[int, int, int, int]) -> int:
    """Dark pixels below a picture, within its width."""
    return int((np.asarray(sheet.crop((box[0], box[3], box[2], sheet.height)).convert("L")) < 128).sum())


def test_small_pictures_are_enlarged_and_stand_side_by_side_in_order():
    sheet = side_by_side([Image.new("RGB", (128, 128), RED), Image.new("RGB", (128, 128), BLUE)], ["one", "two"])
    red, blue = area(sheet, RED), area(sheet, BLUE)
    assert (red[2] - red[0], red[3] - red[1]) == (256, 256)
    assert (blue[2] - blue[0], blue[3] - blue[1]) == (256, 256)
    assert red[2] < blue[0]
    assert red[1] == blue[1]
    assert ink_below(sheet, red) > 20
    assert ink_below(sheet, blue) > 20


def test_large_pictures_keep_their_pixels():
    pixels = np.random.default_rng(0).integers(0, 250, (300, 270, 3), dtype=np.uint8)
    sheet = np.asarray(side_by_side([Image.fromarray(pixels)]))
    gap = (sheet.shape[1] - 270) // 2
    np.testing.assert_array_equal(sheet[gap : gap + 300, gap : gap + 270], pixels)
    assert sheet.shape[0] == 300 + 2 * gap  # no captions, no room for them


def test_pictures_of_different_sizes_do_not_overlap():
    images = [Image.new("RGB", (64, 64), RED), Image.new("RGB", (320, 256), BLUE)]
    sheet = side_by_side(images, ["small", "large"])
    red, blue = area(sheet, RED), area(sheet, BLUE)
    assert (red[2] - red[0], blue[2] - blue[0]) == (64, 320)
    assert red[2] < blue[0]


def test_many_pictures_are_spread_over_rows():
    images = [Image.new("RGB", (256, 256), (i, 0, 0)) for i in range(7)]
    sheet = side_by_side(images)
    boxes = [area(sheet, (i, 0, 0)) for i in range(7)]
    assert [box[1] for box in boxes] == [boxes[0][1]] * 4 + [boxes[4][1]] * 3
    assert boxes[4][0] == boxes[0][0]
    assert boxes[4][1] >= boxes[0][3]
    assert side_by_side(images, columns=1).width < 300


def test_transparency_is_laid_on_white():
    sheet = side_by_side([Image.new("RGBA", (256, 256), (*RED, 0))])
    assert np.asarray(sheet).min() == 255


def test_the_same_input_gives_the_same_pixels():
    image = Image.new("RGB", (128, 96), RED)
    first = side_by_side([image], ["a blue car, 一辆蓝色的汽车"])
    assert first.tobytes() == side_by_side([image], ["a blue car, 一辆蓝色的汽车"]).tobytes()


def test_a_long_prompt_is_wrapped_and_cut():
    words = "a photo of a red striped car on a wet road at night " * 6
    lines, font = caption(words, 256, 15)
    assert len(lines) == MAX_LINES
    assert lines[-1].endswith("...")
    assert all(font.getlength(line) <= 256 for line in lines)
    assert words.startswith(" ".join(lines)[:-3])
    whole, _ = caption("a photo of a red striped car on a wet road", 256, 15)
    assert " ".join(whole) == "a photo of a red striped car on a wet road"
    assert len(whole) > 1


def test_a_word_wider_than_its_picture_is_broken():
    lines, font = caption("x" * 60, 256, 15)
    assert "".join(lines) == "x" * 60
    assert all(font.getlength(line) <= 256 for line in lines)


def test_line_breaks_and_controls_become_spaces():
    assert caption("a\nb\tc\x00d\u202ee\ud800f", 256, 15)[0] == ["a b c d e f"]


@given(st.text(st.characters(codec=None, exclude_categories=()), max_size=80))
@settings(max_examples=60, deadline=None)
def test_any_text_can_be_drawn(text):
    lines, font = caption(text, 256, 15)
    assert len(lines) <= MAX_LINES
    assert all(font.getlength(line) <= 256 or len(line) == 1 for line in lines)
    sheet = side_by_side([Image.new("RGB", (64, 64), RED)], [text])
    assert area(sheet, RED)[2] - area(sheet, RED)[0] == 256


@pytest.mark.parametrize(("count", "labels", "columns"), [(0, [], None), (2, ["one"], None), (1, ["one"], 0)])
def test_wrong_calls(count, labels, columns):
    with pytest.raises(ValueError, match=r"picture|columns"):
        side_by_side([Image.new("RGB", (8, 8))] * count, labels, columns=columns)
