"""Overlays and heat maps, pixel by pixel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cmsa_fast.evaluation.drawing import MARK, PALETTE, draw_heat_map, overlay


def color(pixels: Tensor, y: int, x: int) -> tuple[int, ...]:
    return tuple(pixels[:, y, x].tolist())


def tinted(below: float, paint: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(round(0.55 * below + 0.45 * channel) for channel in paint)


def rectangle(rows: slice, columns: slice) -> Tensor:
    mask = torch.zeros(21, 25, dtype=torch.bool)
    mask[rows, columns] = True
    return mask


def test_overlay_tints_and_outlines_the_object() -> None:
    image = torch.full((3, 21, 25), 100, dtype=torch.uint8)
    mask = rectangle(slice(5, 14), slice(6, 17))
    drawn = overlay(image, [(mask, MARK)])
    assert drawn.dtype == torch.uint8
    assert color(drawn, 9, 11) == tinted(100, MARK)
    assert color(drawn, 0, 0) == tinted(100, (255,) * 3)
    assert color(drawn, 4, 11) == color(drawn, 14, 11) == color(drawn, 0, 0)
    outline = mask & ~rectangle(slice(6, 13), slice(7, 16))
    marked = (drawn == torch.tensor(MARK, dtype=torch.uint8)[:, None, None]).all(0)
    assert torch.equal(marked, outline)
    assert torch.equal(image, torch.full_like(image, 100))


def test_every_mask_has_its_color_and_every_outline_is_visible() -> None:
    image = torch.full((3, 21, 25), 100, dtype=torch.uint8)
    first, second = rectangle(slice(2, 16), slice(2, 16)), rectangle(slice(8, 20), slice(8, 24))
    drawn = overlay(image, [(first, PALETTE[0]), (second, PALETTE[1])])
    assert color(drawn, 5, 5) == tinted(100, PALETTE[0])
    assert color(drawn, 18, 20) == tinted(100, PALETTE[1])
    below = [0.55 * 100 + 0.45 * channel for channel in PALETTE[0]]
    both = tuple(round(0.55 * part + 0.45 * paint) for part, paint in zip(below, PALETTE[1], strict=True))
    assert color(drawn, 12, 12) == both
    assert color(drawn, 12, 15) == PALETTE[0]  # the first outline, inside the second mask
    assert color(drawn, 8, 12) == PALETTE[1]
    assert color(drawn, 0, 24) == tinted(100, (255,) * 3)
    assert torch.equal(overlay(image, []), torch.full_like(image, tinted(100, (255,))[0]))


@pytest.mark.parametrize("size", [(1, 40), (33, 1), (2, 3), (7, 401)])
def test_overlay_of_one_pixel_none_and_all(size: tuple[int, int]) -> None:
    image = torch.full((3, *size), 40, dtype=torch.uint8)
    pale = torch.full_like(image, round(0.55 * 40 + 0.45 * 255))
    assert torch.equal(overlay(image, [(torch.zeros(size, dtype=torch.bool), MARK)]), pale)
    one = torch.zeros(size, dtype=torch.bool)
    one[-1, -1] = True
    drawn = overlay(image, [(one, MARK)])
    assert color(drawn, -1, -1) == MARK
    assert torch.equal(drawn[:, ~one], pale[:, ~one])
    # The border of the image is not an outline.
    full = overlay(image, [(torch.ones(size, dtype=torch.bool), MARK)])
    assert {color(full, 0, 0), color(full, -1, -1)} == {tinted(40, MARK)}


def test_overlay_needs_masks_of_the_image_size() -> None:
    image, mask = torch.zeros(3, 5, 7, dtype=torch.uint8), torch.zeros(7, 5, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"mask must have the image's size \[5, 7\]; got \[7, 5\]"):
        overlay(image, [(mask.T, MARK), (mask, MARK)])


def test_heat_map_goes_from_blue_to_red() -> None:
    image = torch.full((3, 1, 5), 100, dtype=torch.uint8)
    drawn = draw_heat_map(image, torch.tensor([[0.0, 0.125, 0.5, 0.75, 1.0]]))
    for x, shade in ((0, (48, 18, 59)), (1, (70, 107, 227)), (2, (164, 252, 60)), (4, (122, 4, 3))):
        assert color(drawn, 0, x) == tuple(round(0.35 * 100 + 0.65 * channel) for channel in shade)
    with pytest.raises(ValueError, match=r"heat must have the image's size \[1, 5\]; got \[5, 1\]"):
        draw_heat_map(image, torch.zeros(5, 1))
