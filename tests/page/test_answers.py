"""What the page answers, without a browser and without Gradio: masks, limits, and a sentence for wrong input."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.small_models import build
from support.small_training import CONFIG, VOCABULARY, new_model
from torch import Tensor

from cmsa_fast.data.scenes.dataset import ScenesDataset
from cmsa_fast.evaluation.drawing import PALETTE, as_pillow, draw_heat_map, overlay
from cmsa_fast.models.checkpoint import ModelConfig
from cmsa_fast.page.answers import MOST_EXPRESSIONS, Answer, Answers
from cmsa_fast.predictor import EncodedImage, Predictor

MOST_PIXELS = 100_000


class Counting(Predictor):
    """A predictor that counts the images it encodes."""

    encoded = 0

    def encode(self, image: Any) -> EncodedImage:
        """As in the base class, after a pause in which other threads run."""
        self.encoded += 1
        threading.Event().wait(0.05)
        return super().encode(image)


@pytest.fixture
def answers() -> Answers:
    return Answers(Counting(new_model(), CONFIG), MOST_PIXELS)


@pytest.fixture
def photograph(tmp_path: Path) -> str:
    return saved(tmp_path / "photograph.png", noise(60, 90))


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def saved(path: Path, image: Image.Image, **options: Any) -> str:
    image.save(path, **options)
    return str(path)


def encoded(answers: Answers) -> int:
    assert isinstance(answers.predictor, Counting)
    return answers.predictor.encoded


def sentence(html: str) -> str:
    """The text of a wrong input's message, which is one paragraph."""
    (text,) = re.findall(r'<p class="wrong" role="alert">(.*?)</p>', html)
    return str(text)


def still_answers(answers: Answers, photograph: str) -> None:
    answer = answers.segment(photograph, "left dog")
    assert answer.marked is not None
    assert "left dog" in answer.legend


def test_masks_and_heat_maps_are_those_of_the_predictor(tmp_path: Path) -> None:
    scenes = ScenesDataset(1, split="test", size=512, expressions_per_scene=2)
    samples = [scenes[0], scenes[1]]
    image = samples[0].image
    path = saved(tmp_path / "scene.png", as_pillow(image))
    predictor = Predictor.from_pretrained("demo")
    predictor.set_image(image)
    predictions = [predictor.predict(sample.expression) for sample in samples]
    assert all(prediction.mask.any() for prediction in predictions)
    answer = Answers(predictor, 512 * 512).segment(path, "\n".join(sample.expression for sample in samples))
    marks = [(prediction.mask, color) for prediction, color in zip(predictions, PALETTE, strict=False)]
    assert torch.equal(pixels(answer).permute(2, 0, 1), overlay(image, marks))
    for (heat_map, caption), prediction in zip(answer.heat_maps, predictions, strict=True):
        assert prediction.heat_map is not None
        assert caption == prediction.expression
        expected = draw_heat_map(image, prediction.heat_map)
        assert torch.equal(torch.from_numpy(np.array(heat_map)).permute(2, 0, 1), expected)


def test_an_image_is_encoded_once_for_all_its_expressions(answers: Answers, photograph: str) -> None:
    assert "90 × 60 pixels" in answers.receive(photograph)
    for text in ("left dog", "right dog\nthe cat", "left dog"):
        assert answers.segment(photograph, text).marked is not None
    assert encoded(answers) == 1


def test_simultaneous_requests_encode_an_image_once(answers: Answers, photograph: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: answers.segment(photograph, "left dog"), range(8)))
    assert encoded(answers) == 1
    assert len({pixels(answer).numpy().tobytes() for answer in results}) == 1


def pixels(answer: Answer) -> Tensor:
    assert answer.marked is not None
    return torch.from_numpy(np.asarray(answer.marked).copy())


def truncated(folder: Path) -> str:
    path = Path(saved(folder / "half.jpg", noise(200, 200)))
    path.write_bytes(path.read_bytes()[:2000])
    return str(path)


def text_file(folder: Path) -> str:
    (folder / "notes.png").write_text("no image")
    return str(folder / "notes.png")


def vector(folder: Path) -> str:
    (folder / "drawing.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')
    return str(folder / "drawing.svg")


def empty(folder: Path) -> str:
    (folder / "empty.jpg").touch()
    return str(folder / "empty.jpg")


def floating(folder: Path) -> str:
    return saved(folder / "depth.tiff", Image.fromarray(np.zeros((9, 9), np.float32)))


def large(folder: Path) -> str:
    return saved(folder / "large.png", Image.new("1", (401, 250)))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (truncated, "half.jpg cannot be read as an image: it is truncated, damaged"),
        (text_file, "notes.png cannot be read as an image"),
        (vector, "drawing.svg cannot be read as an image"),
        (empty, "empty.jpg cannot be read as an image"),
        (floating, "depth.tiff has pixels of mode"),
        (large, "large.png is refused as an image: its 401 x 250 pixels are more than the 100000"),
        (lambda folder: str(folder / "gone.png"), "The image is no longer on the server; choose it again."),
    ],
)
def test_an_unusable_image_gets_a_sentence(
    make: Any, expected: str, answers: Answers, photograph: str, tmp_path: Path
) -> None:
    path = make(tmp_path)
    answer = answers.segment(path, "left dog")
    assert sentence(answers.receive(path)) == sentence(answer.message)
    assert expected in sentence(answer.message)
    assert str(tmp_path) not in answer.message  # where the server keeps files is not the client's business
    assert answer == Answer(answer.message)
    assert encoded(answers) == 0
    still_answers(answers, photograph)


def animation(folder: Path) -> str:
    return saved(folder / "a.gif", noise(60, 90), save_all=True, append_images=[noise(60, 90, 1)])


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda folder: saved(folder / "dot.png", noise(1, 1)), (512, 512)),
        (lambda folder: saved(folder / "line.png", noise(1, 700)), (1, 700)),
        (lambda folder: saved(folder / "column.png", noise(2000, 1)), (1280, 1)),
        (animation, (341, 512)),
        (lambda folder: saved(folder / "grey.jpg", noise(60, 90).convert("L")), (341, 512)),
        (lambda folder: saved(folder / "cut-out.png", noise(60, 90).convert("RGBA")), (341, 512)),
        (lambda folder: saved(folder / "wide.png", noise(50, 2000)), (32, 1280)),
    ],
)
def test_unusual_images_are_answered(make: Any, size: tuple[int, int], answers: Answers, tmp_path: Path) -> None:
    path = make(tmp_path)
    answer = answers.segment(path, "left dog\nthe cat")
    assert pixels(answer).shape == (*size, 3)
    assert [heat_map.size for heat_map, _ in answer.heat_maps] == [size[::-1]] * 2


def test_a_missing_image_gets_a_sentence(answers: Answers) -> None:
    assert answers.receive(None) == ""
    assert sentence(answers.segment(None, "left dog").message) == "Choose an image first."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "Type what the image shows, one expression a line."),
        (" \n\t\n", "Type what the image shows"),
        ("dog\n" * (MOST_EXPRESSIONS + 1), f"There are {MOST_EXPRESSIONS + 1} expressions; at most"),
        ("dog " * 6000, "The expressions have 24000 characters; at most 20000 are read."),
    ],
)
def test_an_unusable_text_gets_a_sentence(text: str, expected: str, answers: Answers, photograph: str) -> None:
    answer = answers.segment(photograph, text)
    assert expected in sentence(answer.message)
    assert answer == Answer(answer.message)
    still_answers(answers, photograph)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("dog " * 1000, "Only the first 20 of 1000 words were read."),
        ("🐕🦴 dog", "Unknown to the model: “🐕🦴”."),
        ("הכלב משמאל", "Unknown to the model: “הכלב”, “משמאל”."),
        ("\ud83d dog", "Unknown to the model"),
        ("dog\0", "dog\0"),
    ],
)
def test_unusual_expressions_are_answered(
    expression: str, expected: str, answers: Answers, photograph: str
) -> None:
    answer = answers.segment(photograph, expression)
    assert expected in answer.legend
    answer.legend.encode()
    assert len(answer.heat_maps) == 1
    still_answers(answers, photograph)


def test_an_expression_without_a_word_does_not_stop_the_others(answers: Answers, photograph: str) -> None:
    answer = answers.segment(photograph, "left dog\n.\nthe cat")
    entries = answer.legend.split("<section>")[1:]
    assert [("wrong" in entry) for entry in entries] == [False, True, False]
    assert "must have at least one word" in entries[1]
    assert [caption for _, caption in answer.heat_maps] == ["left dog", "the cat"]
    assert "2 expressions in " in answer.message


def test_expressions_are_escaped(answers: Answers, photograph: str) -> None:
    answer = answers.segment(photograph, '<img src=x onerror="alert(1)"> dog')
    assert "<img" not in answer.legend
    assert "&lt;img" in answer.legend


def test_words_are_as_strong_as_their_attention(answers: Answers, photograph: str) -> None:
    predictor = answers.predictor
    (prediction,) = predictor.segment(predictor.encode(photograph), ["a brown cat"])
    assert prediction.word_attention is not None
    rows = re.findall(r'<div class="words">(.*?)</div>', answers.segment(photograph, "a brown cat").legend)
    assert len(rows) == 3
    for row, level, weights in zip(rows, ("Res3", "Res4", "Res5"), prediction.word_attention, strict=True):
        assert level in row
        shares = [float(share) for share in re.findall(r"--share: ([\d.]+)", row)]
        assert shares == pytest.approx((weights / weights.max()).tolist(), abs=1e-3)


def test_a_model_without_attention_is_answered_without_words(photograph: str) -> None:
    config = ModelConfig("cmsa-released", {}, VOCABULARY.tokens, 32, 20)
    model = build("cmsa-released", vocabulary_size=len(VOCABULARY))
    answer = Answers(Predictor(model, config), MOST_PIXELS).segment(photograph, "left dog")
    assert answer.marked is not None
    assert "left dog" in answer.legend
    assert 'class="words"' not in answer.legend
