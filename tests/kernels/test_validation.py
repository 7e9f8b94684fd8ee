"""Error messages of the public functions: each names the argument, what was expected and what came."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cmsa_fast.kernels import (
    cross_modal_attention,
    joint_attention,
    joint_attention_tail,
    level_tail,
    received_place_attention,
    received_word_attention,
)

zeros, ones = torch.zeros, torch.ones
Row = tuple[str, dict[str, Any]]


def mask(*rows: list[int]) -> Tensor:
    return torch.tensor(rows, dtype=torch.bool)


# Two images of 5 places, expressions of 3 words, width 4, value width 6.
PLACES = {"place_query": zeros(2, 5, 4), "place_key": zeros(2, 5, 4), "word_query": zeros(2, 3, 4)}
RECEIVED = {"place_query": zeros(2, 5, 4), "word_query": zeros(2, 3, 4), "word_key": zeros(2, 3, 4)}
CROSS_MODAL = {
    "place_query": zeros(2, 5, 4),
    "place_key": zeros(2, 5, 4),
    "place_value": zeros(2, 5, 6),
    "word_query": zeros(2, 3, 4),
    "word_key": zeros(2, 3, 4),
    "word_value": zeros(2, 3, 6),
}
JOINT = {"query": zeros(2, 5, 4), "key": zeros(2, 3, 4), "value": zeros(2, 3, 6)}
JOINT_TAIL = {"attended": zeros(2, 5, 3, 4), "weight": zeros(6, 4), "bias": zeros(6)}
LEVEL_TAIL = {
    "attended": zeros(2, 6, 4),
    "output_weight": zeros(13, 4),
    "unit_visual": zeros(2, 6, 3),
    "mean_word": zeros(2, 2),
    "coordinates": zeros(8, 6),
}
NO_IMAGES = {name: CROSS_MODAL[name][:0] for name in ("place_query", "place_key", "place_value")}
INDEX = zeros(2, dtype=torch.int64)

_DTYPES = "must have one of the dtypes float64, float32, bfloat16, float16; got"
_SHAPE = "with at least one of each; got"
_BACKENDS = "backend must be one of auto, reference, torch, triton; got"
_IMAGES = "they must be equal unless image_index says which image each expression belongs to."

# Errors of received_word_attention and of cross_modal_attention.
TOKEN_TYPES: list[Row] = [
    ("place_query must be a tensor; got list.", {"place_query": [[[0.0]]]}),
    ("word_key must be a tensor; got ndarray.", {"word_key": np.zeros((2, 3, 4))}),
    (f"place_query {_DTYPES} torch.int64.", {"place_query": zeros(2, 5, 4, dtype=torch.int64)}),
    (f"word_query {_DTYPES} torch.complex64.", {"word_query": zeros(2, 3, 4, dtype=torch.complex64)}),
    ("word_key must have the dtype of place_query, torch.float32; got torch.float64.",
     {"word_key": zeros(2, 3, 4, dtype=torch.float64)}),
    ("word_mask must be a bool tensor; got list.", {"word_mask": [[True] * 3] * 2}),
    ("word_mask must be a bool tensor; got torch.float32.", {"word_mask": ones(2, 3)}),
    ("image_index must be an int64 tensor; got list.", {"image_index": [0, 1]}),
    ("image_index must be an int64 tensor; got torch.int32.",
     {"image_index": zeros(2, dtype=torch.int32)}),
]  # fmt: skip
TOKEN_VALUES: list[Row] = [
    ("word_query must be on the device of place_query, cpu; got meta.",
     {"word_query": zeros(2, 3, 4, device="meta")}),
    (f"place_query must have shape [batch, places, channels] {_SHAPE} [5, 4].", {"place_query": zeros(5, 4)}),
    (f"word_query must have shape [batch, words, channels] {_SHAPE} [2, 3, 4, 1].",
     {"word_query": zeros(2, 3, 4, 1)}),
    (f"place_query must have shape [batch, places, channels] {_SHAPE} [2, 0, 4].",
     {"place_query": zeros(2, 0, 4)}),
    (f"word_key must have shape [batch, words, channels] {_SHAPE} [2, 3, 0].", {"word_key": zeros(2, 3, 0)}),
    ("word_key must begin with the shape of word_query, [2, 3]; got [2, 2, 4].", {"word_key": zeros(2, 2, 4)}),
    ("word_query must have the width of place_query, 4; got 7.", {"word_query": zeros(2, 3, 7)}),
    ("word_key must have the width of place_query, 4; got 7.", {"word_key": zeros(2, 3, 7)}),
    ("word_mask must have shape [batch, words] = [2, 3]; got [2, 4].",
     {"word_mask": ones(2, 4, dtype=torch.bool)}),
    ("word_mask must have shape [batch, words] = [2, 3]; got [3].", {"word_mask": ones(3, dtype=torch.bool)}),
    ("word_mask must be on the device of word_query, cpu; got meta.",
     {"word_mask": ones(2, 3, dtype=torch.bool, device="meta")}),
    ("word_mask must have a true word in every expression; expressions [1] of 2 have none.",
     {"word_mask": mask([1, 0, 1], [0, 0, 0])}),
    ("image_index must have shape [batch] = [2]; got [3].", {"image_index": zeros(3, dtype=torch.int64)}),
    ("image_index must have shape [batch] = [2]; got [2, 1].", {"image_index": INDEX[:, None]}),
    ("image_index must lie in 0..1; got values from 0 to 2.", {"image_index": torch.tensor([0, 2])}),
    ("image_index must lie in 0..1; got values from -1 to 1.", {"image_index": torch.tensor([-1, 1])}),
    ("image_index must be on the device of word_query, cpu; got meta.", {"image_index": INDEX.to("meta")}),
]  # fmt: skip
CROSS_MODAL_VALUES: list[Row] = [
    ("place_value must begin with the shape of place_query, [2, 5]; got [2, 4, 6].",
     {"place_value": zeros(2, 4, 6)}),
    ("place_key must begin with the shape of place_query, [2, 5]; got [3, 5, 4].",
     {"place_key": zeros(3, 5, 4)}),
    ("place_key must have the width of place_query, 4; got 7.", {"place_key": zeros(2, 5, 7)}),
    ("word_value must have the width of place_value, 6; got 4.", {"word_value": zeros(2, 3, 4)}),
    ("place_query must hold at least one image for 2 expressions; got 0.", {**NO_IMAGES, "image_index": INDEX}),
    (f"place_query has 0 images and word_query 2 expressions; {_IMAGES}", NO_IMAGES),
    (f"{_BACKENDS} 'cuda'.", {"backend": "cuda"}),
    (f"{_BACKENDS} None.", {"backend": None}),
]  # fmt: skip
JOINT_TYPES: list[Row] = [
    ("value must be a tensor; got ndarray.", {"value": np.zeros((2, 3, 6))}),
    (f"key {_DTYPES} torch.int64.", {"key": zeros(2, 3, 4, dtype=torch.int64)}),
    ("key must have the dtype of query, torch.float32; got torch.float64.",
     {"key": zeros(2, 3, 4, dtype=torch.float64)}),
    ("key_mask must be a bool tensor; got list.", {"key_mask": [[True] * 3] * 2}),
    ("scale must be a number; got str.", {"scale": "1"}),
    ("scale must be a number; got bool.", {"scale": True}),
    ("scale must be a number; got Tensor.", {"scale": ones(())}),
]  # fmt: skip
JOINT_VALUES: list[Row] = [
    ("value must be on the device of query, cpu; got meta.", {"value": zeros(2, 3, 6, device="meta")}),
    (f"query must have shape [batch, tokens, channels] {_SHAPE} [5, 4].", {"query": zeros(5, 4)}),
    (f"key must have shape [batch, tokens, channels] {_SHAPE} [2, 0, 4].", {"key": zeros(2, 0, 4)}),
    ("key must have the batch of query, 1; got 2.", {"query": zeros(1, 5, 4)}),
    ("key must have the width of query, 4; got 7.", {"key": zeros(2, 3, 7)}),
    ("value must begin with the shape of key, [2, 3]; got [2, 2, 6].", {"value": zeros(2, 2, 6)}),
    ("key_mask must have shape [batch, keys] = [2, 3]; got [2, 5].", {"key_mask": ones(2, 5, dtype=torch.bool)}),
    ("key_mask must have a true key in every batch entry; entries [1] of 2 have none.",
     {"key_mask": mask([1, 0, 1], [0, 0, 0])}),
    ("scale must be finite; got nan.", {"scale": float("nan")}),
    ("scale must be finite; got -inf.", {"scale": float("-inf")}),
    (f"{_BACKENDS} 'cuda'.", {"backend": "cuda"}),
]  # fmt: skip
JOINT_TAIL_TYPES: list[Row] = [
    ("weight must be a tensor; got NoneType.", {"weight": None}),
    ("bias must be a tensor; got float.", {"bias": 0.0}),
    ("weight must have the dtype of attended, torch.float32; got torch.bfloat16.",
     {"weight": zeros(6, 4, dtype=torch.bfloat16)}),
    ("word_mask must be a bool tensor; got torch.float32.", {"word_mask": ones(2, 3)}),
    ("relu must be a bool; got str.", {"relu": "yes"}),
]  # fmt: skip
JOINT_TAIL_VALUES: list[Row] = [
    ("bias must be on the device of attended, cpu; got meta.", {"bias": zeros(6, device="meta")}),
    (f"attended must have shape [batch, places, words, channels] {_SHAPE} [2, 5, 0, 4].",
     {"attended": zeros(2, 5, 0, 4)}),
    ("weight must have shape [channels, 4] with at least one channel; got [4, 6].", {"weight": zeros(4, 6)}),
    ("weight must have shape [channels, 4] with at least one channel; got [0, 4].", {"weight": zeros(0, 4)}),
    ("weight must have shape [channels, 4] with at least one channel; got [4].", {"weight": zeros(4)}),
    ("bias must have shape [channels] = [6]; got [4].", {"bias": zeros(4)}),
    ("word_mask must have shape [batch, words] = [2, 3]; got [2, 5].",
     {"word_mask": ones(2, 5, dtype=torch.bool)}),
    ("word_mask must have a true word in every expression; expressions [0] of 2 have none.",
     {"word_mask": mask([0, 0, 0], [0, 1, 0])}),
    (f"{_BACKENDS} None.", {"backend": None}),
]  # fmt: skip
LEVEL_TAIL_TYPES: list[Row] = [
    (f"mean_word {_DTYPES} torch.int32.", {"mean_word": zeros(2, 2, dtype=torch.int32)}),
    ("coordinates must have the dtype of attended, torch.float32; got torch.float64.",
     {"coordinates": zeros(8, 6).double()}),
    ("image_index must be an int64 tensor; got torch.float32.", {"image_index": zeros(2)}),
]  # fmt: skip
LEVEL_TAIL_VALUES: list[Row] = [
    ("unit_visual must be on the device of attended, cpu; got meta.",
     {"unit_visual": zeros(2, 6, 3, device="meta")}),
    (f"attended must have shape [batch, places, width] {_SHAPE} [6, 4].", {"attended": zeros(6, 4)}),
    (f"coordinates must have shape [coordinates, places] {_SHAPE} [0, 6].", {"coordinates": zeros(0, 6)}),
    ("output_weight must have shape [channels, width] = [13, 4], channels being the sum of those of "
     "unit_visual, mean_word and coordinates; got [12, 4].", {"output_weight": zeros(12, 4)}),
    ("unit_visual must have the places of attended, 6; got 5.", {"unit_visual": zeros(2, 5, 3)}),
    ("mean_word must have the batch of attended, 2; got 3.", {"mean_word": zeros(3, 2)}),
    ("coordinates must have the places of attended, 6; got 7.", {"coordinates": zeros(8, 7)}),
    (f"unit_visual has 1 images and attended 2 expressions; {_IMAGES}", {"unit_visual": zeros(1, 6, 3)}),
    ("image_index must lie in 0..1; got values from 0 to 2.", {"image_index": torch.tensor([0, 2])}),
    ("unit_visual must hold at least one image for 2 expressions; got 0.",
     {"image_index": INDEX, "unit_visual": zeros(0, 6, 3)}),
    (f"{_BACKENDS} 'numpy'.", {"backend": "numpy"}),
]  # fmt: skip

# Of received_place_attention, which has no word keys.
PLACE_TYPES, PLACE_VALUES = (
    [(message, changed) for message, changed in rows if "word_key" not in changed]
    for rows in (TOKEN_TYPES, TOKEN_VALUES)
)
TABLES = [
    (received_place_attention, PLACES, PLACE_TYPES, PLACE_VALUES),
    (received_word_attention, RECEIVED, TOKEN_TYPES, TOKEN_VALUES),
    (cross_modal_attention, CROSS_MODAL, TOKEN_TYPES, TOKEN_VALUES + CROSS_MODAL_VALUES),
    (joint_attention, JOINT, JOINT_TYPES, JOINT_VALUES),
    (joint_attention_tail, JOINT_TAIL, JOINT_TAIL_TYPES, JOINT_TAIL_VALUES),
    (level_tail, LEVEL_TAIL, LEVEL_TAIL_TYPES, LEVEL_TAIL_VALUES),
]


@pytest.mark.parametrize(
    ("function", "arguments", "kind", "message"),
    [
        pytest.param(function, right | changed, kind, message, id=f"{function.__name__}: {message}")
        for function, right, types, values in TABLES
        for kind, rows in ((TypeError, types), (ValueError, values))
        for message, changed in rows
    ],
)
def test_wrong_argument_is_named(
    function: Callable[..., Tensor],
    arguments: dict[str, Any],
    kind: type[Exception],
    message: str,
) -> None:
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        function(**arguments)


@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
def test_valid_arguments_pass(backend: str) -> None:
    words = mask([1, 0, 1], [0, 0, 1])
    index = torch.tensor([1, 1])
    result = cross_modal_attention(**CROSS_MODAL, word_mask=words, image_index=index, backend=backend)
    assert result.shape == (2, 5, 6)
    assert received_word_attention(**RECEIVED, word_mask=words, image_index=index).shape == (2, 3)
    assert received_place_attention(**PLACES, word_mask=words, image_index=index).shape == (2, 5)
    attended = joint_attention(**JOINT, key_mask=words, scale=2, backend=backend)
    assert attended.shape == (2, 5, 6)
    for options in ({}, {"bias": None, "word_mask": words, "relu": True}):
        result = joint_attention_tail(**(JOINT_TAIL | options), backend=backend)
        assert result.shape == (2, 5, 6)
    assert level_tail(**LEVEL_TAIL, image_index=index, backend=backend).shape == (2, 13, 6)
