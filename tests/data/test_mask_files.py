"""Masks in PNG and MATLAB files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cmsa_fast.data.mask_files import MaskFile, MatlabMask, PngMask


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


@pytest.mark.parametrize("kind", ["png", "mat"])
def test_damaged_file_and_mask_of_another_size_are_errors_that_name_the_file(tmp_path: Path, kind: str) -> None:
    values = np.random.default_rng(0).integers(0, 2, (23, 37), np.uint8)
    file = tmp_path / f"5.{kind}"
    if kind == "png":
        mask: MaskFile = png(tmp_path, values)
    else:
        scipy_io = pytest.importorskip("scipy.io", reason="scipy reads the masks of ReferIt")
        scipy_io.savemat(file, {"segimg_t": values}, do_compression=True)
        mask = MatlabMask((tmp_path,), file.name)
    with pytest.raises(ValueError, match=rf"{file} is 23 x 37 \(height x width\) and its image 37"):
        mask.decode(37, 23)
    whole = file.read_bytes()
    Image.fromarray(values).save(tmp_path / "5.jpg")
    other = (tmp_path / "5.jpg").read_bytes()
    for damaged in (b"", b"no mask", whole[:40], whole[:-30], whole[:150] + b"\0" * 60, other):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{file} cannot be read as a mask"):
            mask.decode(23, 37)
