"""The predictor against the model and against an evaluation, and its errors."""

import pytest
import torch
from support.small_evaluation import COLLATE, varied_model
from support.small_training import CONFIG, images, new_model

from cmsa_fast.data.transforms import Letterbox
from cmsa_fast.evaluation.evaluate import evaluate
from cmsa_fast.predictor import Predictor


def image() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (3, 21, 33), dtype=torch.uint8, generator=generator)


def test_predictions_are_those_of_the_model() -> None:
    model = new_model().eval()
    predictor, letterbox = Predictor(model, CONFIG), Letterbox(21, 33, CONFIG.size)
    predictor.set_image(image())
    for expression in ("right dog", "the left zebra", "dog"):
        prediction = predictor.predict(expression)
        ids = torch.tensor([predictor.vocabulary.encode(expression, CONFIG.max_words)])
        with torch.no_grad():
            features = model.encode_image(letterbox.image(image())[None])
            logits, received, _ = model.explain(features, model.encode_text(ids))
        expected = letterbox.restore(logits.sigmoid())[0, 0]
        torch.testing.assert_close(prediction.probability, expected, rtol=0, atol=1e-5)
        assert torch.equal(prediction.mask, prediction.probability > 0.5)
        torch.testing.assert_close(prediction.word_attention, received[0], rtol=0, atol=1e-5)
        assert len(prediction.tokens) == ids.shape[1]
    assert predictor.draw(prediction).shape == (3, 21, 33)


def test_masks_are_those_of_an_evaluation() -> None:
    model, data = varied_model(), images(5, 3)
    predictor = Predictor(model, CONFIG)
    for result in evaluate(model, data, COLLATE).results:
        sample = data[result.index]
        predictor.set_image(sample.image)
        mask = predictor.predict(sample.expression).mask
        counts = [int((mask & sample.mask).sum()), int(mask.sum())]
        # An evaluation computes the expressions of an image together: the last bits may flip a pixel.
        assert counts == pytest.approx([result.intersection, result.predicted], abs=1)


def test_changed_weights_are_an_error() -> None:
    predictor = Predictor(new_model(), CONFIG)
    predictor.set_image(image())
    predictor.predict("dog")
    predictor.model.load_state_dict(predictor.model.state_dict())
    with pytest.raises(RuntimeError, match="have changed since"):
        predictor.predict("dog")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here")
def test_on_a_gpu() -> None:
    here, there = Predictor(new_model(), CONFIG), Predictor(new_model(), CONFIG, "cuda")
    here.set_image(image())
    there.set_image(image().cuda())
    expected, prediction = here.predict("the left dog"), there.predict("the left dog")
    assert prediction.mask.device.type == "cpu"
    torch.testing.assert_close(prediction.probability, expected.probability, rtol=0, atol=0.01)
    torch.testing.assert_close(prediction.word_attention, expected.word_attention, rtol=0, atol=0.01)
    assert there.draw(prediction).shape == (3, 21, 33)


def test_wrong_input_is_an_error() -> None:
    predictor = Predictor(new_model(), CONFIG)
    with pytest.raises(RuntimeError, match="Call set_image before predict"):
        predictor.predict("dog")
    with pytest.raises(TypeError, match="image must be uint8"):
        predictor.set_image(image().float())
    with pytest.raises(ValueError, match=r"image must have shape \[3, height, width\]"):
        predictor.set_image(image()[0])
