"""Parts of tokens: coordinates."""

import pytest
import torch

from cmsa_fast.nn import spatial_coordinates


def test_coordinates_by_hand() -> None:
    grid = spatial_coordinates(2, 4, dtype=torch.float64)
    assert grid.shape == (8, 2, 4)
    expected = [0.0, 0.0, 0.5, 1.0, 0.25, 0.5, 0.25, 0.5]
    assert grid[:, 1, 2].tolist() == expected
    with pytest.raises(ValueError, match="at least 1"):
        spatial_coordinates(0, 3)
