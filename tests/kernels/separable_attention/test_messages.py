"""Errors of the public functions: each names the argument, what was expected and what came."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cmsa_fast.kernels import backends, cross_modal_attention, received_word_attention


def arguments(**changed: Any) -> dict[str, Any]:
    """Two images of 5 places and expressions of 3 words, width 4, value width 6."""
    right = {
        "place_query": torch.zeros(2, 5, 4),
        "place_key": torch.zeros(2, 5, 4),
        "place_value": torch.zeros(2, 5, 6),
        "word_query": torch.zeros(2, 3, 4),
        "word_key": torch.zeros(2, 3, 4),
        "word_value": torch.zeros(2, 3, 6),
    }
    return right | changed


def mask(*rows: list[int]) -> Tensor:
    return torch.tensor(rows, dtype=torch.bool)


FEATURES = [
    ({"place_query": [[[0.0]]]}, TypeError, "place_query must be a tensor; got list."),
    ({"word_key": np.zeros((2, 3, 4))}, TypeError, "word_key must be a tensor; got ndarray."),
    (
        {"place_query": torch.zeros(2, 5, 4, dtype=torch.int64)},
        TypeError,
        "place_query must have one of the dtypes float64, float32, bfloat16, float16; got torch.int64.",
    ),
    (
        {"word_query": torch.zeros(2, 3, 4, dtype=torch.complex64)},
        TypeError,
        "word_query must have one of the dtypes float64, float32, bfloat16, float16; got torch.complex64.",
    ),
    (
        {"word_key": torch.zeros(2, 3, 4, dtype=torch.float64)},
        TypeError,
        "word_key must have the dtype of place_query, torch.float32; got torch.float64.",
    ),
    (
        {"word_query": torch.zeros(2, 3, 4, device="meta")},
        ValueError,
        "word_query must be on the device of place_query, cpu; got meta.",
    ),
    (
        {"place_query": torch.zeros(5, 4)},
        ValueError,
        "place_query must have shape [batch, places, channels] with at least one of each; got [5, 4].",
    ),
    (
        {"word_query": torch.zeros(2, 3, 4, 1)},
        ValueError,
        "word_query must have shape [batch, words, channels] with at least one of each; got [2, 3, 4, 1].",
    ),
    (
        {"place_query": torch.zeros(2, 0, 4)},
        ValueError,
        "place_query must have shape [batch, places, channels] with at least one of each; got [2, 0, 4].",
    ),
    (
        {"word_key": torch.zeros(2, 3, 0)},
        ValueError,
        "word_key must have shape [batch, words, channels] with at least one of each; got [2, 3, 0].",
    ),
    (
        {"word_key": torch.zeros(2, 2, 4)},
        ValueError,
        "word_key must begin with the shape of word_query, [2, 3]; got [2, 2, 4].",
    ),
    (
        {"word_query": torch.zeros(2, 3, 7)},
        ValueError,
        "word_query must have the width of place_query, 4; got 7.",
    ),
    (
        {"word_key": torch.zeros(2, 3, 7)},
        ValueError,
        "word_key must have the width of place_query, 4; got 7.",
    ),
    ({"word_mask": [[True] * 3] * 2}, TypeError, "word_mask must be a bool tensor; got list."),
    (
        {"word_mask": torch.ones(2, 3)},
        TypeError,
        "word_mask must be a bool tensor; got torch.float32.",
    ),
    (
        {"word_mask": torch.ones(2, 4, dtype=torch.bool)},
        ValueError,
        "word_mask must have shape [batch, words] = [2, 3]; got [2, 4].",
    ),
    (
        {"word_mask": torch.ones(3, dtype=torch.bool)},
        ValueError,
        "word_mask must have shape [batch, words] = [2, 3]; got [3].",
    ),
    (
        {"word_mask": torch.ones(2, 3, dtype=torch.bool, device="meta")},
        ValueError,
        "word_mask must be on the device of word_query, cpu; got meta.",
    ),
    (
        {"word_mask": mask([1, 0, 1], [0, 0, 0])},
        ValueError,
        "word_mask must have a true word in every expression; expressions [1] of 2 have none.",
    ),
    (
        {"image_index": [0, 1]},
        TypeError,
        "image_index must be an int64 tensor; got list.",
    ),
    (
        {"image_index": torch.zeros(2, dtype=torch.int32)},
        TypeError,
        "image_index must be an int64 tensor; got torch.int32.",
    ),
    (
        {"image_index": torch.zeros(3, dtype=torch.int64)},
        ValueError,
        "image_index must have shape [batch] = [2]; got [3].",
    ),
    (
        {"image_index": torch.zeros(2, 1, dtype=torch.int64)},
        ValueError,
        "image_index must have shape [batch] = [2]; got [2, 1].",
    ),
    (
        {"image_index": torch.tensor([0, 2])},
        ValueError,
        "image_index must lie in 0..1; got values from 0 to 2.",
    ),
    (
        {"image_index": torch.tensor([-1, 1])},
        ValueError,
        "image_index must lie in 0..1; got values from -1 to 1.",
    ),
    (
        {"image_index": torch.zeros(2, dtype=torch.int64, device="meta")},
        ValueError,
        "image_index must be on the device of word_query, cpu; got meta.",
    ),
    (
        {"place_query": torch.zeros(0, 5, 4), "image_index": torch.zeros(2, dtype=torch.int64)},
        ValueError,
        "place_query must hold at least one image for 2 expressions; got 0.",
    ),
]

ATTENTION_ONLY = [
    (
        {"place_value": torch.zeros(2, 4, 6)},
        ValueError,
        "place_value must begin with the shape of place_query, [2, 5]; got [2, 4, 6].",
    ),
    (
        {"place_key": torch.zeros(3, 5, 4)},
        ValueError,
        "place_key must begin with the shape of place_query, [2, 5]; got [3, 5, 4].",
    ),
    (
        {"place_key": torch.zeros(2, 5, 7)},
        ValueError,
        "place_key must have the width of place_query, 4; got 7.",
    ),
    (
        {"word_value": torch.zeros(2, 3, 4)},
        ValueError,
        "word_value must have the width of place_value, 6; got 4.",
    ),
    (
        {"backend": "cuda"},
        ValueError,
        "backend must be one of auto, reference, torch, triton; got 'cuda'.",
    ),
    (
        {"backend": None},
        ValueError,
        "backend must be one of auto, reference, torch, triton; got None.",
    ),
]


def follows(changed: dict[str, Any]) -> dict[str, Any]:
    """Give the other places the batch of a changed place_query, so that only what is meant is wrong."""
    query = changed.get("place_query")
    if isinstance(query, Tensor) and query.ndim == 3 and len(query) == 0:
        return changed | {
            "place_key": torch.zeros(0, 5, 4),
            "place_value": torch.zeros(0, 5, 6),
        }
    return changed


@pytest.mark.parametrize(("changed", "kind", "expression"), [*FEATURES, *ATTENTION_ONLY])
def test_attention(changed: dict[str, Any], kind: type[Exception], expression: str) -> None:
    with pytest.raises(kind, match=f"^{re.escape(expression)}$"):
        cross_modal_attention(**arguments(**follows(changed)))


@pytest.mark.parametrize(("changed", "kind", "expression"), FEATURES)
def test_received(changed: dict[str, Any], kind: type[Exception], expression: str) -> None:
    given = arguments(**changed)
    for name in ("place_key", "place_value", "word_value"):
        del given[name]
    with pytest.raises(kind, match=f"^{re.escape(expression)}$"):
        received_word_attention(**given)


@pytest.mark.parametrize("expressions", [1, 3])
def test_as_many_expressions_as_images(expressions: int) -> None:
    words = {
        "word_query": torch.zeros(expressions, 3, 4),
        "word_key": torch.zeros(expressions, 3, 4),
        "word_value": torch.zeros(expressions, 3, 6),
    }
    expected = (
        f"place_query has 2 images and word_query {expressions} expressions; they must be equal unless "
        "image_index says which image each expression belongs to."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        cross_modal_attention(**arguments(**words))


@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
def test_right_arguments_pass(backend: str) -> None:
    result = cross_modal_attention(
        **arguments(word_mask=mask([1, 0, 1], [0, 0, 1]), image_index=torch.tensor([1, 1])),
        backend=backend,
    )
    assert result.shape == (2, 5, 6)


@pytest.fixture
def fresh_checks() -> Iterator[None]:
    backends._obstacle.cache_clear()
    yield
    backends._obstacle.cache_clear()


@pytest.mark.usefixtures("fresh_checks")
@pytest.mark.parametrize(
    ("installed", "device", "capability", "kind", "expression"),
    [
        (False, "cuda", (9, 0), ImportError, "needs the package triton, which is not installed."),
        (
            True,
            "cpu",
            (9, 0),
            ValueError,
            "runs on NVIDIA GPUs (and on the CPU in Triton's interpreter, TRITON_INTERPRET=1); got cpu.",
        ),
        (
            True,
            "cuda:1",
            (7, 5),
            ValueError,
            "needs compute capability 8.0 or newer; cuda:1 has 7.5.",
        ),
    ],
)
def test_where_triton_cannot_run(
    monkeypatch: pytest.MonkeyPatch,
    installed: bool,
    device: str,
    capability: tuple[int, int],
    kind: type[Exception],
    expression: str,
) -> None:
    """Asked for by name it never gives way to another backend; "auto" does."""
    triton = pytest.importorskip("triton")
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    if not installed:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    where = torch.device(device)
    tensor: Any = SimpleNamespace(is_cuda=where.type == "cuda", dtype=torch.float32, device=where)
    expected = f'backend="triton" {expression} Use backend="torch" instead.'
    with pytest.raises(kind, match=f"^{re.escape(expected)}$"):
        backends.check_triton(tensor)
    assert backends.automatic_backend(tensor) == "torch"


@pytest.mark.usefixtures("fresh_checks")
def test_float64_is_for_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    tensor: Any = SimpleNamespace(is_cuda=True, dtype=torch.float64, device=torch.device("cuda"))
    with pytest.raises(
        TypeError, match=r"float32, bfloat16 or float16 on a GPU; got torch\.float64"
    ):
        backends.check_triton(tensor)
