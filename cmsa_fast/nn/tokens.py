"""Parts of CMSA's tokens f_pn (Eq. 1): unit vectors, coordinates and packed words."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

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
    return _constant(spatial_coordinates, visual, *visual.shape[2:]).flatten(1).T


def unit_places(visual: Tensor) -> Tensor:
    """[B, Cv, H, W] -> [B, P, Cv], each place's features divided by their length."""
    return _unit(visual.flatten(2).mT)[0]


def unit_words(words: Tensor, word_mask: Tensor | None = None) -> Tensor:
    """[B, N, Cl], each word divided by its length; zero on padding, whatever its values are."""
    return _unit(_clear_padding(words, word_mask))[0]


def unit_vectors(visual: Tensor, words: Tensor, word_mask: Tensor | None) -> list[Tensor]:
    """`unit_places` and `unit_words`, with one kernel less than both."""
    return _unit(visual.flatten(2).mT, _clear_padding(words, word_mask))


def _clear_padding(words: Tensor, word_mask: Tensor | None) -> Tensor:
    if word_mask is None:
        return words
    # One kernel; masked_fill takes three, and a number in place of the tensor would be copied from the host.
    return torch.where(word_mask[..., None], words, _constant(torch.zeros, words, ()))


def _unit(*vectors: Tensor) -> list[Tensor]:
    lengths = [torch.linalg.vector_norm(part, dim=2, keepdim=True) for part in vectors]
    floored = torch._foreach_clamp_min(lengths, _LENGTH_FLOOR)  # one kernel for all
    return [part / length for part, length in zip(vectors, floored, strict=True)]


def mean_word(unit_words: Tensor, weight: Tensor) -> Tensor:
    """[B, N, Cl] -> [B, Cl], the mean over real words with `word_weights`; padded words must be finite."""
    return torch.bmm(weight[:, None].to(unit_words.dtype), unit_words)[:, 0]


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


def _constant(make: Callable[..., Tensor], like: Tensor, *arguments: Any) -> Tensor:
    """make(*arguments, dtype, device), kept for later calls, which must not write to it.

    Kept tensors are made anew while a graph is traced or captured, which would outlive them, and belong to one
    stream, which orders their writing before every reading.
    """
    dtype, device, stream = like.dtype, like.device, 0
    if torch.compiler.is_compiling() or isinstance(like, FakeTensor):
        return make(*arguments, dtype=dtype, device=device)
    if like.is_cuda:
        if torch.cuda.is_current_stream_capturing():
            return make(*arguments, dtype=dtype, device=device)
        stream = torch.cuda.current_stream(device).cuda_stream
    return _kept(make, arguments, dtype, device, stream)


@functools.lru_cache(maxsize=32)
def _kept(
    make: Callable[..., Tensor], arguments: Any, dtype: torch.dtype, device: torch.device, stream: int
) -> Tensor:
    with torch.inference_mode(False):  # autograd does not save inference tensors
        return make(*arguments, dtype=dtype, device=device)
