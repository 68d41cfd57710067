import numpy as np
import pytest
import torch
from PIL import Image

from attnctl.errors import InputError
from attnctl.masks import check_users, fit_mask, load_mask


def test_mask_at_the_latents_size_is_kept():
    mask = torch.zeros(6, 10, dtype=torch.bool)
    mask[1:3, 4:9] = True
    assert torch.equal(fit_mask(mask, (6, 10), 8), mask)


def test_mask_at_the_pictures_size_takes_the_majority_of_each_cell():
    mask = torch.zeros(8, 12)
    mask[:4, :4] = 1
    mask[4:, 8:10] = 1  # exactly half of the last cell
    mask[4, 4] = 1  # one pixel of the middle one
    assert fit_mask(mask, (2, 3), 4).tolist() == [[True, False, False], [False, False, True]]


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (torch.ones(7, 12), "7x12, expected 8x12 or 2x3"),
        (torch.full((8, 12), 255.0), "between 0 and 1"),
        (torch.full((8, 12), float("nan")), "between 0 and 1"),
        (torch.zeros(8, 12), "lets nothing change"),
        (torch.eye(8, 12), "at the latents' size 2x3"),
    ],
)
def test_masks_that_cannot_be_used_are_refused(mask, says):
    with pytest.raises(InputError, match=says):
        fit_mask(mask, (2, 3), 4)


def test_a_mask_that_nobody_uses_is_refused():
    check_users({"one": False, "other": True})
    with pytest.raises(InputError, match="but one and other can make no use of one"):
        check_users({"one": False, "other": False})


@pytest.mark.parametrize(("side", "size"), [(16, 64), (64, 16), (64, 64)])
def test_a_mask_of_another_size_comes_to_the_pictures_exactly(tmp_path, side, size):
    values = np.zeros((side, side), np.uint8)
    values[side // 4 : side // 2, side // 4 : side // 2] = 1
    Image.fromarray(values).save(tmp_path / "m.png")
    expected = np.zeros((size, size), bool)
    expected[size // 4 : size // 2, size // 4 : size // 2] = True
    assert np.array_equal(load_mask(tmp_path / "m.png", (size, size)).values, expected)


def test_a_mask_of_another_shape_than_its_picture_is_refused(tmp_path):
    values = np.zeros((20, 40), np.uint8)
    values[:, :12] = 255
    Image.fromarray(values).save(tmp_path / "m.png")
    Image.new("RGB", (40, 40)).save(tmp_path / "p.png")
    Image.new("RGB", (81, 41)).save(tmp_path / "rounded.png")
    with pytest.raises(InputError, match="is 40 x 20, its picture 40 x 40"):
        load_mask(tmp_path / "m.png", (8, 8), picture=tmp_path / "p.png")
    assert load_mask(tmp_path / "m.png", (8, 8), picture=tmp_path / "rounded.png").values[:, 0].all()


def test_a_mask_that_is_full_once_it_is_cropped_is_refused(tmp_path):
    values = np.zeros((20, 40), np.uint8)
    values[:, 5:35] = 255
    Image.fromarray(values).save(tmp_path / "m.png")
    with pytest.raises(InputError, match=r"everything change: .*brought to 8 x 8"):
        load_mask(tmp_path / "m.png", (8, 8))
