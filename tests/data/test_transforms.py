"""Tests of `Letterbox`: images and masks resized to a square, and maps resized back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cmsa_fast.data.masks import parse_segmentation
from cmsa_fast.data.transforms import Letterbox

SIZES = [
    # height, width, size: odd, square, extreme, growing and shrinking
    (37, 53, 33),
    (53, 37, 33),
    (11, 17, 64),
    (480, 640, 320),
    (427, 640, 161),
    (45, 45, 45),
    (1, 500, 320),
    (500, 1, 320),
    (1, 1, 7),
    (3, 2000, 65),
    (2, 1, 1),
]


def photo(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height * 10007 + width)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def ellipse(height: int, width: int) -> Tensor:
    rows = (torch.arange(height)[:, None] + 0.5) / height
    columns = (torch.arange(width)[None] + 0.5) / width
    return ((rows - 0.45) / 0.3) ** 2 + ((columns - 0.55) / 0.35) ** 2 < 1


def iou(first: Tensor, second: Tensor) -> float:
    return float((first & second).sum() / (first | second).sum())


def restored(box: Letterbox, mask: Tensor) -> Tensor:
    return box.restore(box.mask(mask).float()) >= 0.5


def inside(box: Letterbox) -> tuple[slice, slice]:
    rows = slice(box.top, box.top + box.scaled_height)
    return rows, slice(box.left, box.left + box.scaled_width)


@pytest.mark.parametrize(
    ("height", "width", "size", "box"),
    [
        # (scaled height, scaled width, top, left), computed by hand
        (480, 640, 320, (240, 320, 40, 0)),
        (640, 480, 320, (320, 240, 0, 40)),
        (427, 640, 320, (214, 320, 53, 0)),  # 213.5: a half goes up
        (11, 17, 64, (41, 64, 11, 0)),  # 41.41
        (17, 11, 64, (64, 41, 0, 11)),
        (1, 500, 320, (1, 320, 159, 0)),  # 0.64
        (1, 2000, 320, (1, 320, 159, 0)),  # 0.16: at least one pixel
        (2000, 1, 321, (321, 1, 0, 160)),
        (45, 45, 45, (45, 45, 0, 0)),
        (1, 1, 7, (7, 7, 0, 0)),
    ],
)
def test_box(height: int, width: int, size: int, box: tuple[int, int, int, int]) -> None:
    one = Letterbox(height, width, size)
    assert (one.scaled_height, one.scaled_width, one.top, one.left) == box


@pytest.mark.parametrize(("height", "width", "size"), SIZES)
def test_image_agrees_with_pillow(height: int, width: int, size: int) -> None:
    box = Letterbox(height, width, size)
    image = photo(height, width)
    square = box.image(image)
    assert square.shape == (3, size, size)
    assert square.dtype == torch.float32
    expected = torch.zeros(3, size, size)
    for channel in range(3):
        plane = Image.fromarray(image[channel].numpy().astype(np.float32))
        scaled = plane.resize((box.scaled_width, box.scaled_height), Image.Resampling.BILINEAR)
        expected[channel][inside(box)] = torch.from_numpy(np.array(scaled)) / 255
    torch.testing.assert_close(square, expected, atol=1e-5, rtol=0)
    assert square.min() >= 0
    assert square.max() <= 1


def test_white_image_has_ones_inside_and_zeros_in_the_padding() -> None:
    # At these sizes the resized image exceeds 1 by up to 4e-7 before it is clamped.
    box = Letterbox(427, 640, 161)
    square = box.image(torch.full((3, 427, 640), 255, dtype=torch.uint8))
    assert square.max() == 1
    assert (square[(slice(None), *inside(box))] > 1 - 1e-6).all()
    assert (square > 0).sum() == 3 * box.scaled_height * box.scaled_width


def test_same_size_is_the_identity() -> None:
    box = Letterbox(45, 45, 45)
    image, mask = photo(45, 45), ellipse(45, 45)
    assert torch.equal(box.image(image), image / 255)
    assert torch.equal(box.mask(mask), mask)
    logits = torch.randn(2, 45, 45)
    torch.testing.assert_close(box.restore(logits), logits)


def test_arguments_are_not_modified() -> None:
    box, image, logits = Letterbox(45, 45, 45), photo(45, 45), torch.ones(45, 45)
    box.image(image).zero_()
    box.restore(logits).zero_()
    assert torch.equal(image, photo(45, 45))
    assert (logits == 1).all()


@pytest.mark.parametrize(("height", "width", "size"), SIZES)
def test_full_and_empty_masks_stay_full_and_empty(height: int, width: int, size: int) -> None:
    box = Letterbox(height, width, size)
    full = torch.ones(height, width, dtype=torch.bool)
    square = box.mask(full)
    assert square.dtype == torch.bool
    assert square[inside(box)].all()
    assert square.sum() == box.scaled_height * box.scaled_width
    assert torch.equal(restored(box, full), full)
    assert not box.mask(~full).any()


@pytest.mark.parametrize(
    ("height", "width", "size", "least"),
    [
        (37, 53, 161, 0.99),
        (53, 37, 161, 0.99),
        (480, 640, 320, 0.99),
        (427, 640, 161, 0.98),
        (301, 97, 65, 0.93),
        (45, 45, 45, 1.0),
    ],
)
def test_mask_round_trip(height: int, width: int, size: int, least: float) -> None:
    mask = ellipse(height, width)
    assert iou(restored(Letterbox(height, width, size), mask), mask) >= least


def test_mask_threshold_is_half_a_pixel() -> None:
    # Four columns to two; the filter has the weights 1 3 3 1 (cropped at the border).
    box = Letterbox(4, 4, 2)
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[:, :2] = True  # left column of the square: 6/7, right one: 1/7
    assert box.mask(mask).tolist() == [[True, False], [True, False]]
    mask[:, 1] = False  # 3/7
    assert not box.mask(mask).any()


def test_shrinking_keeps_the_area_of_a_mask() -> None:
    # If every non-zero value were set, the area would be a tenth too large here.
    height, width, size = 480, 640, 80
    mask = ellipse(height, width)
    area = float(mask.sum())
    box = Letterbox(height, width, size)
    box_area = float(box.mask(mask).sum()) * (width / box.scaled_width) ** 2
    assert box_area == pytest.approx(area, rel=0.01)


@pytest.mark.parametrize(("height", "width", "size"), SIZES)
def test_restore_agrees_with_pillow_and_ignores_the_padding(height: int, width: int, size: int) -> None:
    box = Letterbox(height, width, size)
    rows = torch.linspace(-1, 1, box.scaled_height)[:, None].expand(-1, box.scaled_width)
    square = torch.full((size, size), 1e6)  # shows in the result if padding were used
    square[inside(box)] = rows
    back = box.restore(square)
    assert back.shape == (height, width)
    assert back.abs().max() <= 1 + 1e-5
    plane = Image.fromarray(rows.contiguous().numpy())
    expected = np.array(plane.resize((width, height), Image.Resampling.BILINEAR))
    torch.testing.assert_close(back, torch.from_numpy(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize("leading", [(), (2, 3), (0, 1)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_restore_keeps_leading_axes_and_the_dtype(leading: tuple[int, ...], dtype: torch.dtype) -> None:
    logits = torch.randn(*leading, 9, 9).to(dtype)
    box = Letterbox(11, 17, 9)
    back = box.restore(logits)
    assert (back.shape, back.dtype) == ((*leading, 11, 17), dtype)
    for index in np.ndindex(*leading):
        expected = box.restore(logits[index].double()).to(dtype)
        torch.testing.assert_close(back[index], expected, atol=1e-6, rtol=1e-2)


@pytest.mark.parametrize(("height", "width"), [(5, 8), (9, 1), (1, 9)])
def test_restore_is_differentiable(height: int, width: int) -> None:
    box = Letterbox(height, width, 6)
    logits = torch.randn(1, 6, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(box.restore, (logits,))


@pytest.mark.parametrize("name", ["height", "width", "size"])
@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (-3, ValueError), (4.0, TypeError)])
def test_sizes_must_be_positive_integers(name: str, value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"{name} must be"):
        Letterbox(**{"height": 3, "width": 4, "size": 5, name: value})


@pytest.mark.parametrize(
    ("method", "value", "message"),
    [
        ("image", torch.zeros(3, 11, 17), "image must be a torch.uint8 tensor"),
        ("image", np.zeros((3, 11, 17), np.uint8), "image must be a torch.uint8 tensor"),
        ("image", torch.zeros(11, 17, 3).byte(), r"image must be \[3, 11, 17\]"),
        ("mask", torch.zeros(11, 17).byte(), "mask must be a torch.bool tensor"),
        ("mask", torch.zeros(17, 11).bool(), r"mask must be \[11, 17\]"),
        ("restore", torch.zeros(9, 9).bool(), "logits must be a floating-point tensor"),
        ("restore", torch.zeros(1, 9, 8), r"logits must be \[..., 9, 9\]"),
        ("restore", torch.zeros(9), r"logits must be \[..., 9, 9\]"),
    ],
)
def test_invalid_tensors_are_refused(method: str, value: object, message: str) -> None:
    error = TypeError if message.endswith("tensor") else ValueError
    with pytest.raises(error, match=message):
        getattr(Letterbox(11, 17, 9), method)(value)


def test_round_trip_of_real_masks(real: Path) -> None:
    records = json.loads((real / "refer" / "refcoco" / "instances.json").read_text())
    sizes = {item["id"]: (item["height"], item["width"]) for item in records["images"]}
    scores = []
    for record in records["annotations"]:
        height, width = sizes[record["image_id"]]
        mask = parse_segmentation(record["segmentation"]).decode(height, width)
        scores.append(iou(restored(Letterbox(height, width, size=320), mask), mask))
    assert len(scores) >= 60
    assert sum(scores) / len(scores) > 0.99
    assert min(scores) > 0.95
