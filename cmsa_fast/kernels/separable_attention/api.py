"""Public functions of the separable attention: documentation, argument checks and choice of backend.

Functions whose names begin with `unchecked` are the same functions without the checks, for callers that have
checked what the arguments are computed from (`cmsa_fast.nn`). They take `numerics.word_weights` in place of a
mask.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .. import reference
from ..backends import autocast, check_backend, choose_backend, without_autocast
from ..validation import (
    check_features,
    check_images,
    check_leading_shape,
    check_shape,
    check_size,
    check_word_mask,
)
from . import eager, received
from .numerics import word_weights

# The Triton kernels are compiled and tested for up to this many words.
MAX_TRITON_WORDS = 64
_MOST_EXPONENTIALS = 2**22  # elements that `place_exponentials` returns for an image


def cross_modal_attention(
    place_query: Tensor,
    place_key: Tensor,
    place_value: Tensor,
    word_query: Tensor,
    word_key: Tensor,
    word_value: Tensor,
    word_mask: Tensor | None = None,
    *,
    image_index: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Softmax attention of every (place, word) token over every other, averaged over words.

    Token (p, n) has query place_query[p] + word_query[n], and its key and value are sums in the same way (a
    linear map of CMSA's concatenated feature, Eq. 1, is such a sum). The softmax runs over all tokens (p', n')
    whose word is real, without a 1/sqrt(d) scale (Eq. 2-3 of Ye et al., CVPR 2019); the attended values are then
    averaged over the real words n (the mean of Eq. 4).

    Args:
        place_query: [B, P, d]. With image_index [B_images, P, d], as the next two.
        place_key: [B, P, d].
        place_value: [B, P, e]; the value width e may differ from d.
        word_query: [B, N, d].
        word_key: [B, N, d].
        word_value: [B, N, e].
        word_mask: bool [B, N], True where a word is real. Padded words are neither attended to nor averaged
            over; their contents, NaN included, have no influence and get gradient zero. None: All are real.
        image_index: int64 [B], the image of each expression among B_images. None: Expression b belongs to
            image b.
        backend: "reference" is the literal form with its [B, P*N, P*N] array; "torch" the exact factorisation
            in plain PyTorch; "triton" the same in Triton kernels, for up to 64 words; "auto" is described in
            `cmsa_fast.kernels.backends`. A backend other than "auto" is never replaced by another.

    Returns:
        [B, P, e], in the inputs' dtype (under autocast in autocast's).

    Raises:
        TypeError: An argument is no tensor or has the wrong dtype.
        ValueError: Shapes or devices do not fit, backend is unknown, or "triton" cannot run on the inputs; on the
            CPU also if an expression has no real word or image_index is out of range. On a GPU both are assertions
            of the device, and no argument check waits for it.
        ImportError: backend is "triton" and Triton is not installed.
        RuntimeError: The gradient of "torch" or "triton" is differentiated again.
    """
    check_backend(backend)
    places = {"place_query": place_query, "place_key": place_key, "place_value": place_value}
    words = {"word_query": word_query, "word_key": word_key, "word_value": word_value}
    _check_tensors(places, words)
    _check_expressions(place_query, word_query, word_mask, image_index)
    return unchecked_cross_modal_attention(
        place_query,
        place_key,
        place_value,
        word_query,
        word_key,
        word_value,
        word_weights(word_mask, word_query),
        image_index=image_index,
        backend=backend,
    )


def unchecked_cross_modal_attention(
    place_query: Tensor,
    place_key: Tensor,
    place_value: Tensor,
    word_query: Tensor,
    word_key: Tensor,
    word_value: Tensor,
    weight: Tensor,
    *,
    image_index: Tensor | None = None,
    backend: str = "auto",
    exponentials: Tensor | None = None,
) -> Tensor:
    """`cross_modal_attention` of `word_weights`, without argument checks.

    With `exponentials`, which are those of `place_exponentials`, there is no gradient, and the result is equal up
    to rounding.
    """
    features = autocast(place_query, place_key, place_value, word_query, word_key, word_value)
    # In this order, because a graph for backend="torch" may take any number of words.
    if backend in ("auto", "triton") and word_query.shape[1] > MAX_TRITON_WORDS:
        if backend == "triton":
            raise ValueError(
                f'backend="triton" takes up to {MAX_TRITON_WORDS} words; got {word_query.shape[1]}. '
                'Use backend="torch" instead.'
            )
        backend = "torch"
    backend = choose_backend(backend, features[0])
    if backend == "reference":
        literal: Callable[..., Tensor] = reference.cross_modal_attention
        return literal(*features, weight > 0, image_index=image_index)
    if backend == "triton":
        from . import ops  # noqa: F401  defines the operator

        return torch.ops.cmsa_fast.separable_forward(*features, weight, image_index)[0]
    if exponentials is not None:
        with without_autocast(features[0].device):
            forward: Callable[..., Tensor] = eager.forward
            return forward(*features, weight, image_index, exponentials)
    return torch.ops.cmsa_fast.factored_forward(*features, weight, image_index)


def place_exponentials(place_query: Tensor, place_key: Tensor, backend: str) -> Tensor | None:
    """What `unchecked_cross_modal_attention` computes from the places alone and can be given for further words.

    Returns:
        [B_images, P, P], or None where it is too large to keep or the backend computes it anew in each call.
    """
    if place_query.shape[1] ** 2 > _MOST_EXPONENTIALS or choose_backend(backend, place_query) != "torch":
        return None
    if place_query.dtype not in (torch.float32, torch.float64):
        return None
    with without_autocast(place_query.device):
        return eager.place_exponentials(place_query, place_key)


def received_word_attention(
    place_query: Tensor,
    word_query: Tensor,
    word_key: Tensor,
    word_mask: Tensor | None = None,
    *,
    image_index: Tensor | None = None,
) -> Tensor:
    """The attention that each word receives from all tokens of its image.

    The paper's Fig. 4 describes an average over (p, p', n') of a softmax over (p', n'), which is constant.
    This function returns the attention that word n' receives: the softmax summed over p' and averaged over
    places p and real words n.

    Args:
        place_query: [B, P, d], or [B_images, P, d] with image_index.
        word_query: [B, N, d].
        word_key: [B, N, d].
        word_mask: bool [B, N], True where a word is real. None: All are real.
        image_index: int64 [B], the image of each expression.

    Returns:
        [B, N], summing to 1 over real words, 0 on padding.

    Raises:
        TypeError, ValueError: As `cross_modal_attention`.
    """
    _check_tensors({"place_query": place_query}, {"word_query": word_query, "word_key": word_key})
    _check_expressions(place_query, word_query, word_mask, image_index)
    weight = word_weights(word_mask, word_query)
    return unchecked_received_word_attention(place_query, word_query, word_key, weight, image_index)


def unchecked_received_word_attention(
    place_query: Tensor, word_query: Tensor, word_key: Tensor, weight: Tensor, image_index: Tensor | None
) -> Tensor:
    """`received_word_attention` of `word_weights`, without argument checks."""
    place_query, word_query, word_key = autocast(place_query, word_query, word_key)
    return received.received_word_attention(place_query, word_query, word_key, weight, image_index)


def received_place_attention(
    place_query: Tensor,
    place_key: Tensor,
    word_query: Tensor,
    word_mask: Tensor | None = None,
    *,
    image_index: Tensor | None = None,
) -> Tensor:
    """The attention that each place receives from all tokens of its image.

    This is the softmax of Eq. 3 at (p', n'), summed over n' and averaged over places p and real words n. Word keys
    have no influence, because the softmax over words sums to one. It is computed by PyTorch,
    an expression at a time; on a GPU the call waits for the device.

    Args:
        place_query: [B, P, d], or [B_images, P, d] with image_index.
        place_key: [B, P, d], or [B_images, P, d] with image_index.
        word_query: [B, N, d].
        word_mask: bool [B, N], True where a word is real. None: All are real.
        image_index: int64 [B], the image of each expression.

    Returns:
        [B, P], summing to 1, without a gradient.

    Raises:
        TypeError, ValueError: As `cross_modal_attention`.
    """
    _check_tensors({"place_query": place_query, "place_key": place_key}, {"word_query": word_query})
    _check_expressions(place_query, word_query, word_mask, image_index)
    weight = word_weights(word_mask, word_query)
    return unchecked_received_place_attention(place_query, place_key, word_query, weight, image_index)


def unchecked_received_place_attention(
    place_query: Tensor,
    place_key: Tensor,
    word_query: Tensor,
    weight: Tensor,
    image_index: Tensor | None,
    exponentials: Tensor | None = None,
) -> Tensor:
    """`received_place_attention` of `word_weights` and `place_exponentials` or None, without argument checks."""
    place_query, place_key, word_query = autocast(place_query, place_key, word_query)
    return received.received_place_attention(place_query, place_key, word_query, weight, image_index, exponentials)


def _check_tensors(places: dict[str, Tensor], words: dict[str, Tensor]) -> None:
    """Check dtypes, devices and shapes; queries and keys share one width, values another."""
    features = places | words
    check_features(features)
    for name, part in features.items():
        check_shape(name, part, f"batch, {name.split('_')[0]}s, channels")
    for group in (places, words):
        first_name = next(iter(group))
        for name, part in group.items():
            check_leading_shape(name, part, first_name, group[first_name])
    for name, part in features.items():
        first_name = "place_value" if name.endswith("value") else "place_query"
        check_size(name, part.shape[2], "width", first_name, features[first_name].shape[2])


def _check_expressions(
    place_query: Tensor, word_query: Tensor, word_mask: Tensor | None, image_index: Tensor | None
) -> None:
    if word_mask is not None:
        check_word_mask(word_mask, word_query.shape[:2], "word_query", word_query.device)
    check_images("place_query", len(place_query), "word_query", len(word_query), image_index, word_query.device)
