"""Masks in PNG and MATLAB files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cmsa_fast.data.mask_files import MatlabMask, PngMask


def png(folder: Path, pixels: np.ndarray) -> PngMask:
    Image.fromarray(pixels).save(folder / "5.png")
    return PngMask((folder / "absent", folder), "5.png")


def test_every_pixel_that_is_not_black_is_in_the_mask(tmp_path: Path) -> None:
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


def test_palette_masks_use_the_index(tmp_path: Path) -> None:
    values = np.zeros((3, 4), np.uint8)
    values[2, 1] = 1
    image = Image.frombytes("P", (4, 3), values.tobytes())
    image.putpalette([0, 0, 0, 128, 0, 0])
    image.save(tmp_path / "5.png")
    mask = PngMask((tmp_path,), "5.png").decode(3, 4)
    assert torch.equal(mask, torch.from_numpy(values != 0))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float64, np.bool_])
@pytest.mark.parametrize("version", ["4", "5"])
def test_matlab_masks_of_every_number_type(tmp_path: Path, dtype: type, version: str) -> None:
    scipy_io = pytest.importorskip("scipy.io", reason="scipy reads the masks of ReferIt")
    values = (np.arange(15).reshape(3, 5) % 4 > 0).astype(dtype)
    stored = values.astype(np.uint8) if dtype is np.bool_ and version == "4" else values
    scipy_io.savemat(tmp_path / "1_1.mat", {"segimg_t": stored, "more": 3}, format=version)
    mask = MatlabMask((tmp_path / "absent", tmp_path), "1_1.mat").decode(3, 5)
    assert mask.dtype == torch.bool
    assert torch.equal(mask, torch.from_numpy(values == 0))
