import pytest
import torch

from attnctl.errors import InputError
from attnctl.masks import check_users, fit_mask


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
