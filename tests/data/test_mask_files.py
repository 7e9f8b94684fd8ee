"""Masks in PNG files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cmsa_fast.data.mask_files import PngMask


def png(folder: Path, pixels: np.ndarray) -> PngMask:
    Image.fromarray(pixels).save(folder / "5.png")
    return PngMask((folder / "absent", folder), "5.png")


def test_whatever_is_not_black_belongs_to_the_mask(tmp_path: Path) -> None:
    values = np.zeros((5, 9), np.uint8)
    values[1, 2:6] = [1, 127, 254, 255]
    expected = torch.from_numpy(values != 0)
    assert torch.equal(png(tmp_path, values).decode(5, 9), expected)
    assert torch.equal(png(tmp_path, values.astype(np.uint16)).decode(5, 9), expected)
    assert torch.equal(png(tmp_path, values != 0).decode(5, 9), expected)
    colours = np.zeros((5, 9, 3), np.uint8)
    colours[..., 2] = values
    assert torch.equal(png(tmp_path, colours).decode(5, 9), expected)
    opaque = np.full((5, 9, 1), 255, np.uint8)
    with_alpha = np.concatenate((colours, opaque), axis=2)
    assert torch.equal(png(tmp_path, with_alpha).decode(5, 9), expected)
    grey_alpha = np.concatenate((values[..., None], opaque), axis=2)
    assert torch.equal(png(tmp_path, grey_alpha).decode(5, 9), expected)


def test_palette_masks_go_by_their_index(tmp_path: Path) -> None:
    values = np.zeros((3, 4), np.uint8)
    values[2, 1] = 1
    image = Image.frombytes("P", (4, 3), values.tobytes())
    image.putpalette([0, 0, 0, 128, 0, 0])
    image.save(tmp_path / "5.png")
    mask = PngMask((tmp_path,), "5.png").decode(3, 4)
    assert torch.equal(mask, torch.from_numpy(values != 0))
