"""The 8-D coordinates that stand beside each place's visual feature."""

import torch
from torch import Tensor

COORDINATE_CHANNELS = 8


def spatial_coordinates(
    height: int,
    width: int,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """[xmin, ymin, xmax, ymax, xctr, yctr, 1/W, 1/H] of each cell of a grid, the first six in [-1, 1].

    The paper's section 3.1 names "3 horizontal, 3 vertical" and two sizes; the order here is that of the code
    it cites for them (Hu et al., ECCV 2016).

    Args:
        height: rows of the grid.
        width: columns of the grid.
        dtype: of the result; default torch's default dtype.
        device: of the result.

    Returns:
        [8, height, width].

    Raises:
        ValueError: height or width is below 1.
    """
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be at least 1; got {height} and {width}.")
    # Edges in float64, so that a grid of any size in any dtype is rounded once.
    x = torch.linspace(-1, 1, width + 1, dtype=torch.float64, device=device)
    y = torch.linspace(-1, 1, height + 1, dtype=torch.float64, device=device)
    xmin, xmax, ymin, ymax = x[:-1], x[1:], y[:-1], y[1:]
    columns = {0: xmin, 2: xmax, 4: (xmin + xmax) / 2}
    rows = {1: ymin, 3: ymax, 5: (ymin + ymax) / 2}
    grid = torch.empty(COORDINATE_CHANNELS, height, width, dtype=torch.float64, device=device)
    for channel, column in columns.items():
        grid[channel] = column
    for channel, row in rows.items():
        grid[channel] = row[:, None]
    grid[6], grid[7] = 1 / width, 1 / height
    return grid.to(dtype or torch.get_default_dtype())
