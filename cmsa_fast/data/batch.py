"""Collates samples into batches in which every distinct image appears once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .transforms import Letterbox
from .types import Sample
from .vocabulary import Vocabulary

_logger = logging.getLogger(__name__)


@dataclass
class Batch:
    """B expressions about B_images distinct images, at the network's input size S."""

    # float32 `[B_images, 3, S, S]` in [0, 1], RGB, in the order in which the expressions refer to them first.
    images: Tensor
    words: Tensor  # int64 `[B, N]`, word ids, padded at the front with `<pad>` as in the published code
    word_mask: Tensor  # bool `[B, N]`, True where a word is real; at least one per expression
    masks: Tensor  # bool `[B, S, S]`
    ignore: Tensor | None  # bool `[B, S, S]`, True where no pixel counts; None if all pixels count
    image_index: Tensor  # int64 `[B]`, the image of each expression
    # Original samples, one per expression, for evaluation at the image's own size. They are not moved by `to`.
    samples: list[Sample]
    letterboxes: list[Letterbox]  # geometry of each expression's image in the square, one per expression

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """Returns a batch with its tensors on `device`; see `torch.Tensor.to`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Returns a batch with its tensors in pinned memory; called by `DataLoader(pin_memory=True)`."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        mapped: dict[str, Any] = {name: function(tensor) for name, tensor in tensors.items()}
        return replace(self, **mapped)


class Collate:
    """The `collate_fn` of a `DataLoader`: makes a `Batch` of a list of samples.

    Samples with the same `image_id` share one image in the batch.

    Args:
        vocabulary: Word list.
        size: Side of the square network input in pixels, at least 1.
        max_words: Largest number of words kept of an expression, at least 1.

    Raises:
        ValueError: `size` or `max_words` is below 1.
    """

    def __init__(self, vocabulary: Vocabulary, size: int, max_words: int = 20) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1 pixel, but it is {size}.")
        if max_words < 1:
            raise ValueError(f"max_words must be at least 1, but it is {max_words}.")
        self.vocabulary = vocabulary
        self.size = size
        self.max_words = max_words
        self._has_warned = False

    def __call__(self, samples: list[Sample]) -> Batch:
        """Collates at least one sample; N is the number of words of the longest expression.

        Raises:
            TypeError: An image is not uint8, a mask is not bool or an expression is not a string.
            ValueError: There is no sample, an image is not `[3, H, W]`, a mask differs in size from its
                image, samples with the same `image_id` have different images, or an expression has no word.
                A note names the sample.
        """
        if not samples:
            raise ValueError("samples must have at least one sample, but the list is empty.")
        places: dict[int, int] = {}
        originals: list[Tensor] = []
        boxes: list[Letterbox] = []
        images: list[Tensor] = []
        masks: list[Tensor] = []
        ignored: list[Tensor | None] = []
        encoded: list[list[int]] = []
        for sample in samples:
            try:
                place = places.setdefault(sample.image_id, len(images))
                if place == len(images):
                    if sample.image.ndim != 3:
                        shape = list(sample.image.shape)
                        raise ValueError(f"image must be [3, H, W], but its shape is {shape}.")
                    height, width = sample.image.shape[1:]
                    boxes.append(Letterbox(height, width, self.size))
                    originals.append(sample.image)
                    images.append(boxes[place].image(sample.image))
                elif sample.image is not originals[place] and not torch.equal(sample.image, originals[place]):
                    raise ValueError("samples with the same image_id must have the same image, but two differ.")
                masks.append(self._mask(boxes[place], sample))
                ignored.append(None if sample.ignore is None else boxes[place].mask(sample.ignore))
                encoded.append(self.vocabulary.encode(sample.expression, self.max_words))
            except (TypeError, ValueError) as error:
                error.add_note(
                    f"In the sample with image_id {sample.image_id}, ref_id {sample.ref_id}, "
                    f"sent_id {sample.sent_id}."
                )
                raise
        image_index = [places[sample.image_id] for sample in samples]
        words, word_mask = pad_words(encoded)
        return Batch(
            images=torch.stack(images),
            words=words,
            word_mask=word_mask,
            masks=torch.stack(masks),
            ignore=_stack_or_none(ignored, masks[0]),
            image_index=torch.tensor(image_index),
            samples=list(samples),
            letterboxes=[boxes[index] for index in image_index],
        )

    def _mask(self, letterbox: Letterbox, sample: Sample) -> Tensor:
        mask = letterbox.mask(sample.mask)
        if not self._has_warned and not mask.any() and sample.mask.any():
            _logger.warning(
                "The mask of ref_id %d (image_id %d) is empty after resizing to %d pixels: the object is too "
                "small. Further cases are not logged.",
                sample.ref_id,
                sample.image_id,
                self.size,
            )
            self._has_warned = True
        return mask


def _stack_or_none(ignored: list[Tensor | None], mask: Tensor) -> Tensor | None:
    """Ignored regions `[B, S, S]`, empty where a sample has none; None if no sample has any."""
    if all(region is None for region in ignored):
        return None
    return torch.stack([torch.zeros_like(mask) if region is None else region for region in ignored])


def pad_words(encoded: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Word ids of some expressions as int64 and mask as bool, `[B, N]`; padding comes first."""
    longest = max(len(ids) for ids in encoded)
    words = torch.full((len(encoded), longest), Vocabulary.PAD_ID)
    word_mask = torch.zeros(len(encoded), longest, dtype=torch.bool)
    for row, ids in enumerate(encoded):
        words[row, longest - len(ids) :] = torch.tensor(ids)
        word_mask[row, longest - len(ids) :] = True
    return words, word_mask
