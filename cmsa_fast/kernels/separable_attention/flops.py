"""Floating-point operations of the separable attention's products, by the shapes of its operators' arguments."""

from typing import Any


def _separable_products(keys: int, shapes: tuple[Any, ...]) -> tuple[int, int]:
    """FLOP of the products over one set of keys: forward, and backward with the logits computed anew."""
    (_, places, width), (_, _, value_width), (batch, words, _) = shapes
    pairs = 2 * batch * places * keys
    of_words = 2 * batch * words * keys * width
    forward = pairs * (width + value_width + 2 * words) + of_words
    backward = pairs * (3 * width + 2 * value_width + 6 * words) + 2 * of_words
    return forward, backward


def separable_forward_flop(
    place_query: Any, place_key: Any, place_value: Any, word_query: Any, *_: Any, **__: Any
) -> int:
    """Of the products forward: logits, sums and weights over places and over words, and the words' own logits."""
    shapes = (place_query, place_value, word_query)
    return sum(_separable_products(keys, shapes)[0] for keys in (place_query[1], word_query[1]))


def separable_backward_flop(
    grad: Any,
    place_query: Any,
    place_key: Any,
    place_value: Any,
    word_query: Any,
    *_: Any,
    **__: Any,
) -> int:
    """Of the products backward, with the logits computed anew."""
    shapes = (place_query, place_value, word_query)
    return sum(_separable_products(keys, shapes)[1] for keys in (place_query[1], word_query[1]))
