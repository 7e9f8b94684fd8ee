"""The figure that explains a prediction: which parts it has, and where."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cmsa_fast.data.transforms import Letterbox
from cmsa_fast.data.vocabulary import tokenize
from cmsa_fast.evaluation.drawing import MARK, draw_heat_map, overlay, resized
from cmsa_fast.evaluation.explanation import draw_explanation

PANEL, GAP = 400, 16
# Heights of a line of the title, of a caption, and of a row of words at one level.
TITLE, CAPTION, WORDS = 45, 29, 35 + 8


@dataclass(frozen=True)
class Given:
    image: Tensor
    mask: Tensor
    expression: str
    tokens: tuple[str, ...]
    letterbox: Letterbox
    word_attention: Tensor | None
    place_attention: Tensor | None
    heat_map: Tensor | None


def given(height: int = 64, width: int = 128, words: int = 3, levels: int = 3) -> Given:
    generator = torch.Generator().manual_seed(height)
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[: height // 2 + 1, : width // 2 + 1] = True
    return Given(
        torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8),
        mask,
        " ".join(f"word{index}" for index in range(words)),
        tuple(f"word{index}" for index in range(words)),
        Letterbox(height, width, 32),
        torch.rand(levels, words, generator=generator).softmax(1),
        torch.rand(levels, 16, generator=generator).softmax(1).unflatten(1, (4, 4)),
        torch.rand(height, width, generator=generator),
    )


def panel(figure: Image.Image, column: int, top: int, height: int = 200) -> Tensor:
    left = GAP + column * (PANEL + GAP)
    return torch.from_numpy(np.array(figure.crop((left, top, left + PANEL, top + height)))).permute(2, 0, 1)


def test_parts_of_the_figure() -> None:
    one = given()
    figure = draw_explanation(one)
    first = GAP + TITLE + CAPTION
    words = first + 200 + GAP + CAPTION
    places = words + 3 * WORDS + 2 * CAPTION
    assert figure.size == (3 * PANEL + 4 * GAP, places + 200 + GAP + CAPTION + GAP)
    shown = resized(one.image, PANEL)
    assert torch.equal(panel(figure, 0, first), shown)
    mask = torch.zeros(200, 400, dtype=torch.bool)
    mask[:104, :204] = True  # 33 of 64 rows and 65 of 128 columns, to the nearest pixels
    drawn, expected = panel(figure, 1, first), overlay(shown, [(mask, MARK)])
    assert (drawn != expected).any(0).float().mean() < 0.01
    heat = torch.nn.functional.interpolate(one.heat_map[None, None], (200, 400), mode="bilinear")[0, 0]
    assert torch.equal(panel(figure, 2, first), draw_heat_map(shown, heat))
    for level, weights in enumerate(one.word_attention):
        share = float(weights[0] / weights.max())
        background = figure.getpixel((GAP + 64 + 2, words + level * WORDS + 2))
        assert background == tuple(round(255 + share * (channel - 255)) for channel in (255, 176, 0))
    for level, received in enumerate(one.place_attention):
        drawn = panel(figure, level, places)
        # The image covers rows 8 to 24 of the square: the places of rows 1 and 2, each 100 x 100 pixels here.
        inside = received[1:3]
        row, column = divmod(int(inside.argmax()), 4)
        hottest = drawn[:, 100 * row + 50, 100 * column + 50].tolist()
        assert hottest[0] > 150, hottest
        assert hottest[2] < 100, hottest


def test_what_the_model_does_not_provide_is_left_out() -> None:
    one = given()
    whole = draw_explanation(one).height
    without_words = draw_explanation(replace(one, word_attention=None))
    assert without_words.height == whole - 2 * WORDS
    words = np.asarray(without_words)[GAP + TITLE + CAPTION + 200 + GAP + CAPTION :][:35]
    assert (np.ptp(words, 2) == 0).all()  # on white
    assert (words < 128).any()
    assert draw_explanation(replace(one, place_attention=None)).height == whole - 2 * CAPTION - 200 - GAP
    least = draw_explanation(replace(one, word_attention=None, place_attention=None, heat_map=None))
    assert least.height == 2 * GAP + TITLE + CAPTION + 200 + GAP + CAPTION + WORDS


@pytest.mark.parametrize("levels", [1, 2, 5])
def test_any_number_of_levels(levels: int) -> None:
    rows = -(-levels // 3)
    height = draw_explanation(given(levels=levels)).height
    assert height == draw_explanation(given()).height + (levels - 3) * WORDS + (rows - 1) * (CAPTION + 200 + GAP)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (1000, 7), (300, 256)])
def test_images_of_any_size(size: tuple[int, int]) -> None:
    assert draw_explanation(given(*size)).width == 3 * PANEL + 4 * GAP


@pytest.mark.parametrize(
    "expression", ["two\nlines", "dog " * 1000, "x" * 20_000, "größer 犬 🐕 שלום", "some words " * 9]
)
def test_expressions_of_any_length(expression: str) -> None:
    words = tokenize(expression)[:20]
    one = replace(given(words=len(words)), expression=expression, tokens=tuple(words))
    figure = np.asarray(draw_explanation(one))
    assert (figure[:, -GAP:] == 255).all()
    assert figure.shape[0] < 1500


def test_unknown_words_are_drawn_with_what_the_model_saw() -> None:
    known = replace(given(words=2), expression="zebra dog", tokens=("zebra", "dog"))
    unknown = replace(known, tokens=("<unk>", "dog"))
    longer = replace(known, expression="a dog", tokens=("a", "dog"))
    drawn = [np.asarray(draw_explanation(one))[GAP + TITLE + CAPTION + 200 :] for one in (known, unknown, longer)]
    ends = [int((part[60 : 60 + 20] < 250).any((0, 2)).nonzero()[0].max()) for part in drawn]
    assert ends[1] > ends[0] > ends[2]  # "zebra <unk>", "zebra" and "a"


def test_one_attended_place_and_an_even_heat_map() -> None:
    one = given()
    places = torch.zeros(3, 4, 4)
    places[:, 0, 0] = 1  # outside the image
    figure = draw_explanation(replace(one, place_attention=places, heat_map=torch.zeros(64, 128)))
    assert figure.height == draw_explanation(one).height
