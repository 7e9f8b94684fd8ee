"""The literal form against the printed equations, worked out one number at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cmsa_fast.kernels import reference

Array = np.ndarray


def softmax(logits: list[float]) -> list[float]:
    powers = [math.exp(logit - max(logits)) for logit in logits]
    return [power / sum(powers) for power in powers]


def feature(visual: Array, word: Array, y: int, x: int, height: int, width: int) -> Array:
    """Eq. 1 for the cell in row y and column x of a map [Cv, H, W], and one word [Cl]."""
    v, e = visual[:, y, x], word
    place = [
        -1 + 2 * x / width,
        -1 + 2 * y / height,
        -1 + 2 * (x + 1) / width,
        -1 + 2 * (y + 1) / height,
        -1 + (2 * x + 1) / width,
        -1 + (2 * y + 1) / height,
        1 / width,
        1 / height,
    ]
    unit_v = v / math.sqrt(sum(number * number for number in v))
    unit_e = e / math.sqrt(sum(number * number for number in e))
    return np.array([*unit_v, *unit_e, *place])


def by_hand(visual: Array, words: Array, mask: Array, matrices: list[Array]) -> Array:
    """Eq. 1-4 for one image and one expression: loops over p, n and p', n'. -> [C, H, W]."""
    w_query, w_key, w_value, w_output = matrices
    _, height, width = visual.shape
    cells = [(y, x) for y in range(height) for x in range(width)]
    true = [n for n in range(len(words)) if mask[n]]
    fused = np.zeros((len(w_output), height, width))
    for y, x in cells:
        for n in true:
            f = feature(visual, words[n], y, x, height, width)
            others = [
                feature(visual, words[other], row, column, height, width)
                for row, column in cells
                for other in true
            ]
            logits = [float((w_query @ f) @ (w_key @ other)) for other in others]
            attended = np.zeros(len(w_value))
            for weight, other in zip(softmax(logits), others, strict=True):
                attended += weight * (w_value @ other)
            fused[:, y, x] += (w_output @ attended + f) / len(true)
    return fused


@pytest.mark.parametrize(("height", "width"), [(2, 3), (3, 1)])
def test_cmsa_as_printed(height: int, width: int) -> None:
    generator = np.random.default_rng(7)
    visual_channels, word_channels, channels, batch = 5, 4, 6, 3
    total = visual_channels + word_channels + 8
    visual = generator.normal(size=(batch, visual_channels, height, width))
    words = generator.normal(size=(batch, 4, word_channels))
    mask = np.array([[0, 1, 1, 1], [1, 0, 1, 0], [1, 1, 1, 1]], dtype=bool)
    words[~mask] = np.nan
    matrices = [generator.normal(size=(channels, total)) for _ in range(3)]
    matrices.append(generator.normal(size=(total, channels)))

    found = reference.cmsa(
        torch.from_numpy(visual),
        torch.from_numpy(words),
        torch.from_numpy(mask),
        *(torch.from_numpy(matrix) for matrix in matrices),
    )
    assert found.shape == (batch, total, height, width)
    for image in range(batch):
        expected = by_hand(visual[image], words[image], mask[image], matrices)
        np.testing.assert_allclose(found[image].numpy(), expected, rtol=1e-11, atol=1e-12)


def attention_by_hand(place: list[Array], word: list[Array], mask: Array) -> tuple[Array, Array, Array]:
    """Query, key and value of places and words -> attended values [P, e], weight received by words [N]."""
    places, words = len(place[0]), len(word[0])
    true = [n for n in range(words) if mask[n]]
    attended = np.zeros((places, place[2].shape[1]))
    received = np.zeros(words)
    for p in range(places):
        for n in true:
            pairs = [(q, m) for q in range(places) for m in true]
            query = place[0][p] + word[0][n]
            weights = softmax([float(query @ (place[1][q] + word[1][m])) for q, m in pairs])
            for weight, (q, m) in zip(weights, pairs, strict=True):
                attended[p] += weight * (place[2][q] + word[2][m]) / len(true)
                received[m] += weight / (places * len(true))
    return attended, received, np.array(true)


@pytest.mark.parametrize("scale", [0.5, 5.0])
def test_attention_over_pairs(scale: float) -> None:
    generator = np.random.default_rng(11)
    place = [scale * generator.normal(size=(2, 5, size)) for size in (3, 3, 4)]
    word = [scale * generator.normal(size=(2, 4, size)) for size in (3, 3, 4)]
    mask = np.array([[0, 1, 0, 1], [1, 1, 1, 0]], dtype=bool)
    tensors = [torch.from_numpy(part) for part in (*place, *word, mask)]
    found = reference.cross_modal_attention(*tensors)
    received = reference.received_word_attention(tensors[0], tensors[1], tensors[3], tensors[4], tensors[6])
    for number in range(2):
        attended, weight, _ = attention_by_hand(
            [part[number] for part in place], [part[number] for part in word], mask[number]
        )
        np.testing.assert_allclose(found[number].numpy(), attended, rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(received[number].numpy(), weight, rtol=1e-11, atol=1e-13)


def test_zero_vectors_stay_zero() -> None:
    visual, words = torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 4)
    weights = [torch.ones(5, 15), torch.ones(5, 15), torch.ones(5, 15), torch.ones(15, 5)]
    fused = reference.cmsa(visual, words, None, *weights)
    assert fused.isfinite().all()
