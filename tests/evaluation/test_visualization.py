"""Example images and overviews, pixel by pixel."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.small_evaluation import random_results

from cmsa_fast.evaluation.drawing import MARK, overlay
from cmsa_fast.evaluation.visualization import Example, draw_example, extremes, save_examples


def example(height: int = 37, width: int = 53, expression: str = "left dog", words: int = 2) -> Example:
    generator = torch.Generator().manual_seed(height)
    image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    truth = torch.zeros(height, width, dtype=torch.bool)
    truth[: height // 2 + 1, : width // 2 + 1] = True
    prediction = truth.roll(1, 0)
    tokens = [f"word{index}" for index in range(words)]
    return Example(image, truth, prediction, expression, tokens, torch.full((3, words), 1 / words))


def test_iou_of_an_example() -> None:
    one = example(8, 9)
    both = int((one.truth & one.prediction).sum())
    assert one.iou == both / int((one.truth | one.prediction).sum())
    empty = torch.zeros(8, 9, dtype=torch.bool)
    assert replace(one, truth=empty, prediction=empty).iou == 1.0
    assert replace(one, prediction=empty).iou == 0.0


def test_panels_show_image_truth_and_prediction() -> None:
    one = example(64, 128)
    sheet = np.asarray(draw_example(one))
    truth, prediction = (overlay(one.image, [(mask, MARK)]) for mask in (one.truth, one.prediction))
    for panel, pixels in enumerate([one.image, truth, prediction]):
        top, left = 52 + 64, 8 + panel * 264  # 256 wide and 128 high, centred in a square of 256
        shown = sheet[top : top + 128, left : left + 256]
        expected = pixels.permute(1, 2, 0).numpy().repeat(2, 0).repeat(2, 1)
        np.testing.assert_array_equal(shown, expected)


def test_background_of_a_word_shows_its_attention() -> None:
    attention = torch.tensor([[0.75, 0.25], [0.0, 1.0], [0.2, 0.8]])
    for tokens, weights in ((["a", "b"], attention), (["b", "a"], attention.flip(1))):
        sheet = draw_example(replace(example(), tokens=tokens, attention=weights))
        for level, row in enumerate(weights.tolist()):
            background = sheet.getpixel((58, 52 + 256 + 8 + level * 30 + 1))  # of the first word
            share = row[0] / max(row)
            assert background == tuple(round(255 + share * (c - 255)) for c in (255, 176, 0))


def test_without_attention_words_are_drawn_once_on_white() -> None:
    with_attention = draw_example(example(words=3))
    sheet = draw_example(replace(example(words=3), attention=None))
    assert (sheet.width, sheet.height) == (800, with_attention.height - 2 * 30)
    words = np.asarray(sheet)[52 + 256 + 8 :]
    assert (np.ptp(words, 2) == 0).all()  # no colour
    assert (words < 128).any()


def test_any_number_of_levels_is_drawn() -> None:
    one = example(words=3)
    sheet = draw_example(replace(one, attention=torch.full((2, 3), 1 / 3)))
    assert sheet.height == draw_example(one).height - 30


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (3, 1000), (999, 7), (300, 256)])
def test_extreme_image_shapes(size: tuple[int, int]) -> None:
    assert draw_example(example(*size)).width == 800


@pytest.mark.parametrize(
    "expression", ["", "two\nlines\r\nof it", "dog " * 5000, "x" * 20_000, "größer als 犬 🐕"]
)
def test_expressions_of_any_length(expression: str) -> None:
    sheet = draw_example(example(expression=expression))
    assert sheet.size == draw_example(example()).size


def test_line_breaks_are_drawn_as_spaces() -> None:
    broken, plain = (replace(example(), expression=text) for text in ("two\r\nlines", "two lines"))
    assert draw_example(broken).tobytes() == draw_example(plain).tobytes()
    broken, plain = (replace(example(), tokens=["dog", text]) for text in ('"\n"', '" "'))
    assert draw_example(broken).tobytes() == draw_example(plain).tobytes()


def test_many_and_long_words_stay_on_the_sheet() -> None:
    many = example(words=20)
    assert draw_example(many).height > draw_example(example()).height
    tokens = ["x" * 3000, '"\n"', "short"]
    long = replace(many, tokens=tokens, attention=torch.full((3, 3), 1 / 3))
    sheet = np.asarray(draw_example(long))
    assert (sheet[:, -8:] == 255).all()


def test_attention_must_fit_the_tokens() -> None:
    one = example()
    for tokens, shape in ((["a"], (3, 2)), (["a", "b"], (3, 1)), ([], (3, 0))):
        with pytest.raises(ValueError, match="attention must be"):
            draw_example(replace(one, tokens=tokens, attention=torch.zeros(shape)))


def test_saved_files(tmp_path: Path) -> None:
    examples = [example(20 + 7 * index, 40, words=1 + 9 * index) for index in range(3)]
    overview = save_examples(examples, tmp_path / "new" / "examples")
    assert overview == tmp_path / "new" / "examples" / "overview.png"
    names = sorted(path.name for path in overview.parent.iterdir())
    assert names == ["000.png", "001.png", "002.png", "overview.png"]
    sheets = [draw_example(one) for one in examples]
    for index, sheet in enumerate(sheets):
        with Image.open(overview.parent / f"{index:03d}.png") as read:
            np.testing.assert_array_equal(np.asarray(read), np.asarray(sheet))
    with Image.open(overview) as read:
        assert read.size == (1600, max(sheets[0].height, sheets[1].height) + sheets[2].height)
        np.testing.assert_array_equal(np.asarray(read)[: sheets[0].height, :800], sheets[0])


def test_overview_has_the_first_forty(tmp_path: Path) -> None:
    one = example(5, 7, words=1)
    save_examples([one] * 43, tmp_path)
    assert len(list(tmp_path.iterdir())) == 44
    with Image.open(tmp_path / "overview.png") as read:
        assert read.size == (1600, 20 * draw_example(one).height)


def test_number_of_examples(tmp_path: Path) -> None:
    with Image.open(save_examples([example()], tmp_path)) as read:
        assert read.width == 800
    with pytest.raises(ValueError, match="at least one example"):
        save_examples([], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_extremes_share_no_expression() -> None:
    results = random_results(1, images=2)
    worst, best = extremes(results, 2)
    ordered = sorted(results, key=lambda result: result.iou)
    assert worst == ordered[:2]
    assert best == ordered[:-3:-1]
    worst, best = extremes(results, 9)
    assert len(worst) == len(best) == 3
    assert not set(worst) & set(best)
    assert extremes(results[:1], 5) == ([], results[:1])
