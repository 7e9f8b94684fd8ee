"""Overlays and heat maps, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from cmsa_fast.evaluation.drawing import MARK, PALETTE, draw_heat_map, draw_masks, font, overlay, wrap


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
    image = torch.full((3, 1, 4), 100, dtype=torch.uint8)
    drawn = draw_heat_map(image, torch.tensor([[0.0, 1 / 12, 0.5, 1.0]]))
    shades = ((65, 80, 200), (52.5, 134, 217.5), (164, 252, 60), (210, 40, 5))
    for x, (heat, shade) in enumerate(zip((0, 1 / 12, 0.5, 1), shades, strict=True)):
        share = 0.4 + 0.4 * heat  # over an image of one colour, which is drawn as 40
        expected = tuple(40 + share * (channel - 40) for channel in shade)
        assert color(drawn, 0, x) == pytest.approx(expected, abs=0.51)
    with pytest.raises(ValueError, match=r"heat must have the image's size \[1, 4\]; got \[4, 1\]"):
        draw_heat_map(image, torch.zeros(4, 1))


@pytest.mark.parametrize(("darkest", "brightest"), [(0, 40), (200, 255), (0, 255)])
def test_image_below_a_heat_map_is_visible(darkest: int, brightest: int) -> None:
    image = torch.full((3, 2, 2), darkest, dtype=torch.uint8)
    image[:, 0] = brightest
    drawn = draw_heat_map(image, torch.zeros(2, 2)).int()
    assert int((drawn[:, 0] - drawn[:, 1]).min()) >= 75


def test_legend_names_every_mask_in_its_color() -> None:
    image = torch.full((3, 300, 800), 100, dtype=torch.uint8)
    mask = torch.zeros(300, 800, dtype=torch.bool)
    masks = [(mask | (torch.arange(800) // 100 == place), f"text {place} " * 200) for place in range(8)]
    sheet = draw_masks(image, masks)
    assert sheet.width == 800
    assert torch.equal(
        torch.from_numpy(np.array(sheet.crop((0, 0, 800, 300)))).permute(2, 0, 1),
        overlay(image, [(part, paint) for (part, _), paint in zip(masks, PALETTE, strict=True)]),
    )
    colors = [sheet.getpixel((12, y)) for y in range(300, sheet.height)]
    assert list(dict.fromkeys(one for one in colors if one != (255,) * 3)) == list(PALETTE)
    assert (np.asarray(sheet)[300:, -8:] == 255).all()
    with pytest.raises(ValueError, match="masks must be at most 8, one for each colour; got 9"):
        draw_masks(image, [*masks, masks[0]])
    with pytest.raises(ValueError, match="mask must have the image's size"):
        draw_masks(image, [(mask.T, "")])


@pytest.mark.parametrize(
    ("size", "expected"),
    [((1, 1), (640, 640)), ((1, 5000), (1600, 1)), ((5000, 1), (640, 1600)), ((600, 700), (700, 600))],
)
def test_masks_of_images_of_any_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    image = torch.zeros(3, *size, dtype=torch.uint8)
    sheet = draw_masks(image, [(torch.ones(size, dtype=torch.bool), "все größer 犬 🐕 שלום")])
    assert (sheet.width, sheet.height - 8 - 31) == expected


def test_wrapped_text_fits_its_lines() -> None:
    assert wrap("a short text", 500, 20, 3) == ["a short text"]
    lines = wrap("some words " * 50, 300, 20, 3)
    assert len(lines) == 3
    assert all(font(20).getlength(line) <= 300 for line in lines)
    assert lines[2].endswith("…")
    assert not lines[1].endswith("…")
    (line,) = wrap("x" * 5000, 300, 20, 3)
    assert line.endswith("…")
    assert font(20).getlength(line) <= 300
    assert wrap("two\nlines", 500, 20, 3) == ["two lines"]
    assert wrap("", 500, 20, 3) == [""]
