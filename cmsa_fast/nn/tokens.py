"""The parts of CMSA's tokens: vectors of length 1, the mean word, coordinates as rows."""

from torch import Tensor
from torch.nn import functional as F

from .coordinates import spatial_coordinates

# The floor under a vector's length (the published code's 1e-12 under its square): zero stays zero.
_LENGTH_FLOOR = 1e-6


def unit_places(visual: Tensor) -> Tensor:
    """[B, Cv, H, W] -> [B, P, Cv], each place's features divided by their length."""
    return F.normalize(visual.flatten(2).mT, dim=2, eps=_LENGTH_FLOOR)


def unit_words(words: Tensor, word_mask: Tensor | None) -> Tensor:
    """[B, N, Cl], each word divided by its length; zero on padding, whatever stands there."""
    if word_mask is not None:
        words = words.masked_fill(~word_mask[..., None], 0)
    return F.normalize(words, dim=2, eps=_LENGTH_FLOOR)


def coordinate_rows(visual: Tensor) -> Tensor:
    """[P, 8], the coordinates of the places of [B, Cv, H, W], in its dtype and on its device."""
    height, width = visual.shape[2:]
    spatial = spatial_coordinates(height, width, dtype=visual.dtype, device=visual.device)
    return spatial.flatten(1).T


def mean_word(unit_words: Tensor, word_mask: Tensor | None) -> Tensor:
    """[B, N, Cl] -> [B, Cl], the mean over real words; padded ones are zero already."""
    if word_mask is None:
        return unit_words.mean(1)
    return unit_words.sum(1) / word_mask.sum(1, keepdim=True).to(unit_words.dtype)


def of_expressions(places: Tensor, image_index: Tensor | None) -> Tensor:
    """[B_images, ...] -> [B, ...]."""
    if image_index is None:
        return places
    # Which of the two has a gradient without atomics depends on the device.
    return places[image_index] if places.is_cuda else places.index_select(0, image_index)
