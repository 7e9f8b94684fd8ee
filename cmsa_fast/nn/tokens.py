"""Parts of CMSA's tokens f_pn (Eq. 1): unit vectors, coordinates and packed words."""

import torch
from torch import Tensor
from torch.nn import functional as F

COORDINATE_CHANNELS = 8

# Lower bound of a vector's length (1e-12 for its square in the published code): zero stays zero.
_LENGTH_FLOOR = 1e-6


def spatial_coordinates(
    height: int,
    width: int,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Compute [xmin, ymin, xmax, ymax, xctr, yctr, 1/W, 1/H] of each cell of a grid, the first six in [-1, 1].

    Section 3.1 of the paper names "3 horizontal, 3 vertical" and two sizes; the order is that of the code it
    cites for them (Hu et al., ECCV 2016).

    Args:
        height: Rows of the grid.
        width: Columns of the grid.
        dtype: Of the result. None: torch's default dtype.
        device: Of the result.

    Returns:
        [8, height, width].

    Raises:
        ValueError: height or width is below 1.
    """
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be at least 1; got {height} and {width}.")
    # In float64, so that a grid of any size is rounded only once, to the dtype of the result. Every edge, centre
    # and size is one of these numbers, so that three kernels compute the grid.
    numbers = torch.linspace(-1, 1, 2 * height * width + 1, dtype=torch.float64, device=device)
    x, y = numbers[::height], numbers[::width, None]  # 2 * width + 1 and 2 * height + 1, edges and centres in turn
    column, row = numbers[height * (width + 1)], numbers[width * (height + 1)]
    parts = (x[:-1:2], y[:-1:2], x[2::2], y[2::2], x[1::2], y[1::2], column, row)
    return torch.stack([part.expand(height, width) for part in parts]).to(dtype or torch.get_default_dtype())


def coordinate_rows(visual: Tensor) -> Tensor:
    """[P, 8], the coordinates of the places of [B, Cv, H, W], in its dtype and on its device."""
    height, width = visual.shape[2:]
    spatial = spatial_coordinates(height, width, dtype=visual.dtype, device=visual.device)
    return spatial.flatten(1).T


def unit_places(visual: Tensor) -> Tensor:
    """[B, Cv, H, W] -> [B, P, Cv], each place's features divided by their length."""
    return F.normalize(visual.flatten(2).mT, dim=2, eps=_LENGTH_FLOOR)


def unit_words(words: Tensor, word_mask: Tensor | None = None) -> Tensor:
    """[B, N, Cl], each word divided by its length; zero on padding, whatever its values are."""
    if word_mask is not None:
        words = words.masked_fill(~word_mask[..., None], 0)
    return F.normalize(words, dim=2, eps=_LENGTH_FLOOR)


def mean_word(unit_words: Tensor, word_mask: Tensor | None) -> Tensor:
    """[B, N, Cl] -> [B, Cl], the mean over real words; padded words must be zero."""
    if word_mask is None:
        return unit_words.mean(1)
    return unit_words.sum(1) / word_mask.sum(1, keepdim=True)


def pack_words(words: Tensor, word_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """[B, N, C] with the real words of each expression at its front, in order, then zeros; and their mask."""
    if word_mask is None:
        return words, None
    order = (~word_mask).to(torch.uint8).argsort(dim=1, stable=True)  # [B, N]
    words = words.masked_fill(~word_mask[..., None], 0)
    packed = words.gather(1, order[..., None].expand(-1, -1, words.shape[2]))
    return packed, word_mask.gather(1, order)


def gather_images(features: Tensor, image_index: Tensor | None) -> Tensor:
    """[B_images, ...] -> [B, ...], the features of each expression's image."""
    if image_index is None:
        return features
    # Which of the two has a gradient without atomics depends on the device.
    return features[image_index] if features.is_cuda else features.index_select(0, image_index)
