"""The public attention functions: argument checks, choice of backend, documentation."""

from collections.abc import Callable

from torch import Tensor

from .. import reference
from ..validation import (
    BACKENDS,
    autocast,
    automatic_backend,
    check_alike,
    check_backend,
    check_floating,
    check_image_index,
    check_range,
    check_triton,
    check_word_mask,
)
from . import eager as separable

__all__ = ["BACKENDS", "cross_modal_attention", "received_word_attention"]

# The most words of the Triton kernels: wider tiles of the words' factors were not compiled.
MAX_TRITON_WORDS = 64


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

    Token (p, n) has query place_query[p] + word_query[n], and its key and value are sums in the same way (what a
    linear map of CMSA's concatenated feature, Eq. 1, comes to). The softmax runs over all tokens (p', n') whose
    word is real, without a 1/sqrt(d) scale (Eq. 2-3 of Ye et al., CVPR 2019); the attended values are then
    averaged over the real words n (the mean of Eq. 4).

    Args:
        place_query: [B, P, d]. With image_index [B_images, P, d], as the next two.
        place_key: [B, P, d].
        place_value: [B, P, e]; the value width e may differ from d.
        word_query: [B, N, d].
        word_key: [B, N, d].
        word_value: [B, N, e].
        word_mask: bool [B, N], True where a word is real. Padded words are neither attended to nor averaged
            over; what stands in them has no influence and gets gradient zero. None: all are real.
        image_index: int64 [B], which of the B_images images each expression belongs to. None: expression b
            belongs to image b.
        backend: "reference" is the literal form with its [B, P*N, P*N] array; "torch" the exact factorisation
            in plain PyTorch; "triton" the same by Triton kernels, for up to 64 words; "auto" is "triton" for CUDA
            tensors in float32, bfloat16 or float16 where Triton is installed, else "torch". A backend asked for
            by name never gives way to another.

    Returns:
        [B, P, e], in the inputs' dtype (under autocast in autocast's).

    Raises:
        TypeError: an argument is no tensor or has the wrong dtype.
        ValueError: shapes or devices do not fit, an expression has no real word, image_index is out of range, or
            backend is unknown; or "triton" is asked for by name where it cannot run.
        ImportError: "triton" is asked for by name and not installed.
        RuntimeError: the gradient of "torch" or "triton" is differentiated again.
    """
    check_backend(backend)
    places = {"place_query": place_query, "place_key": place_key, "place_value": place_value}
    words = {"word_query": word_query, "word_key": word_key, "word_value": word_value}
    _check_features({**places, **words})
    _check_places_and_words(places, words)
    _check_expressions(place_query, word_query, word_mask, image_index)

    features = autocast(*places.values(), *words.values())
    if backend == "auto":
        backend = (
            automatic_backend(features) if word_query.shape[1] <= MAX_TRITON_WORDS else "torch"
        )
    elif backend == "triton":
        check_triton(features[0])
        if word_query.shape[1] > MAX_TRITON_WORDS:
            raise ValueError(
                f'backend="triton" takes up to {MAX_TRITON_WORDS} words; got {word_query.shape[1]}. '
                'Use backend="torch" instead.'
            )
    return _implementation(backend)(*features, word_mask, image_index=image_index)


def received_word_attention(
    place_query: Tensor,
    word_query: Tensor,
    word_key: Tensor,
    word_mask: Tensor | None = None,
    *,
    image_index: Tensor | None = None,
) -> Tensor:
    """How much attention each word receives from all tokens of its image.

    The paper's Fig. 4 describes an average over (p, p', n') of a softmax over (p', n'), which is constant; what
    can be drawn is the weight that arrives at word n': the softmax summed over p' and averaged over places p
    and real words n.

    Args:
        place_query: [B, P, d], or [B_images, P, d] with image_index.
        word_query: [B, N, d].
        word_key: [B, N, d].
        word_mask: bool [B, N], True where a word is real. None: all are.
        image_index: int64 [B], which image each expression belongs to.

    Returns:
        [B, N], summing to 1 over real words, 0 on padding.

    Raises:
        TypeError, ValueError: as `cross_modal_attention`.
    """
    words = {"word_query": word_query, "word_key": word_key}
    _check_features({"place_query": place_query, **words})
    _check_places_and_words({"place_query": place_query}, words)
    _check_expressions(place_query, word_query, word_mask, image_index)

    place_query, word_query, word_key = autocast(place_query, word_query, word_key)
    return separable.received_word_attention(
        place_query, word_query, word_key, word_mask, image_index=image_index
    )


def _implementation(backend: str) -> Callable[..., Tensor]:
    if backend == "reference":
        return reference.cross_modal_attention
    if backend == "triton":
        from . import ops

        return ops.separable_attention
    return separable.separable_attention


def _check_features(features: dict[str, Tensor]) -> None:
    """Tensors of rank 3 with one floating dtype and one device."""
    first_name, first = next(iter(features.items()))
    for name, part in features.items():
        check_floating(name, part)
        check_alike(name, part, first_name, first)
        if part.ndim != 3 or 0 in part.shape[1:]:
            axis = "places" if name.startswith("place") else "words"
            raise ValueError(
                f"{name} must have shape [batch, {axis}, channels] with at least one of each; "
                f"got {list(part.shape)}."
            )


def _check_places_and_words(places: dict[str, Tensor], words: dict[str, Tensor]) -> None:
    """Equal counts among places and among words; query and key share a width, and so do the values."""
    for group in (places, words):
        first_name, first = next(iter(group.items()))
        for name, part in group.items():
            if part.shape[:2] != first.shape[:2]:
                raise ValueError(
                    f"{name} must begin with the shape of {first_name}, {list(first.shape[:2])}; "
                    f"got {list(part.shape)}."
                )
    for names in (
        ("place_query", "place_key", "word_query", "word_key"),
        ("place_value", "word_value"),
    ):
        parts = {name: part for name, part in {**places, **words}.items() if name in names}
        if not parts:
            continue
        first_name, first = next(iter(parts.items()))
        for name, part in parts.items():
            if part.shape[2] != first.shape[2]:
                raise ValueError(
                    f"{name} must have the width of {first_name}, {first.shape[2]}; "
                    f"got {part.shape[2]}."
                )


def _check_expressions(
    place_query: Tensor, word_query: Tensor, word_mask: Tensor | None, image_index: Tensor | None
) -> None:
    expressions, images = len(word_query), len(place_query)
    if word_mask is not None:
        check_word_mask(word_mask, word_query.shape[:2], "word_query", word_query.device)
    if image_index is None:
        if expressions != images:
            raise ValueError(
                f"place_query has {images} images and word_query {expressions} expressions; "
                "they must be equal unless image_index says which image each expression belongs to."
            )
        return
    check_image_index(image_index, expressions, "word_query", word_query.device)
    if expressions and not images:
        raise ValueError(
            f"place_query must hold at least one image for {expressions} expressions; "
            f"got {list(place_query.shape)}."
        )
    check_range("image_index", image_index, images)
