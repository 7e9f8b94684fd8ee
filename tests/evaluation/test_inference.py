"""Inference: independence of the batch, and how often the backbone and the attention run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.small_evaluation import COLLATE, damaged, varied_model
from support.small_training import CONFIG, images, new_model

from cmsa_fast.data.errors import ErrorCollector
from cmsa_fast.evaluation.evaluate import evaluate
from cmsa_fast.evaluation.inference import segment_batch, segment_expressions
from cmsa_fast.evaluation.visualization import predict_examples, save_extremes
from cmsa_fast.nn import FoldedLevel
from cmsa_fast.predictor import Predictor

LEVELS = 3


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts calls of the backbone and of the folded attention."""
    count: Counter[str] = Counter()

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            count[name] += 1
            return function(*arguments, **options)

        return call

    backbone = type(new_model().backbone)
    monkeypatch.setattr(backbone, "forward", counted("backbone", backbone.forward))
    attend = FoldedLevel.unchecked_project
    monkeypatch.setattr(FoldedLevel, "unchecked_project", counted("attention", attend))
    return count


def test_drawing_encodes_each_image_once(calls: Counter[str], tmp_path: Path) -> None:
    data = images(3, 4)
    samples = [data[index] for index in (0, 5, 1, 3, 6)]  # of two images
    examples = predict_examples(new_model(), samples, COLLATE, "cpu")
    assert calls == {"backbone": 2, "attention": 2 * LEVELS}
    assert [example.expression for example in examples] == [one.expression for one in samples]
    for example in examples:
        assert example.attention is not None
        assert example.attention.shape == (LEVELS, len(example.expression.split()))
        torch.testing.assert_close(example.attention.sum(1), torch.ones(LEVELS))
    calls.clear()
    results = evaluate(new_model(), data, COLLATE).results
    assert calls == {"backbone": 3, "attention": 3 * LEVELS}
    calls.clear()
    save_extremes(results, 6, new_model(), data, COLLATE, "cpu", tmp_path)
    assert calls == {"backbone": 3, "attention": 3 * LEVELS}


def test_predictor_encodes_the_image_once_and_attends_once_per_expression(calls: Counter[str]) -> None:
    predictor = Predictor(new_model(), CONFIG)
    predictor.set_image(images(1)[0].image)
    assert calls == {"backbone": 1}
    assert predictor.predict("left dog").word_attention is not None
    predictor.draw(predictor.predict("dog"))
    assert calls == {"backbone": 1, "attention": 2 * LEVELS}


def test_word_attention_is_that_of_the_model() -> None:
    model, batch = varied_model(), COLLATE(images(3, 3).samples)
    with torch.no_grad():
        features, text = (model.encode_image(batch.images), model.encode_text(batch.words, batch.word_mask))
        expected = model.explain(features, text, batch.image_index).word_attention
    for row, output in enumerate(segment_batch(model, batch, "cpu", explain=True)):
        assert output.word_attention is not None
        real = batch.word_mask[row]
        torch.testing.assert_close(output.word_attention, expected[row][:, real])
    assert all(one.word_attention is None for one in segment_batch(model, batch, "cpu"))


def test_unusable_expression_does_not_change_the_groups_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an image with 20 expressions, 16 pass the model together, less those that are unusable."""
    data, seen = damaged(images(3, 20), 3, 17, 45), {}

    def recorded(*arguments: Any, **options: Any) -> list[Any]:
        outputs = segment_expressions(*arguments, **options)
        seen[at_a_time] += [output.probability for output in outputs]
        return outputs

    monkeypatch.setattr("cmsa_fast.evaluation.inference.segment_expressions", recorded)
    model = varied_model()
    for at_a_time in (1, 2, 16):
        seen[at_a_time] = []
        evaluate(model, data, COLLATE, errors=ErrorCollector(strict=False), images_per_batch=at_a_time)
    for other in (2, 16):
        assert len(seen[1]) == len(seen[other]) == 57
        assert all(map(torch.equal, seen[1], seen[other]))
