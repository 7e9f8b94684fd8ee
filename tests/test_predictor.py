"""A user with an image: it is encoded once, and every expression answered as the model answers it."""

import pytest
import torch
from support.small_training import CONFIG, VOCABULARY, images, new_model

from cmsa_fast.data.batch import Collate
from cmsa_fast.data.transforms import Letterbox
from cmsa_fast.evaluation.evaluate import evaluate
from cmsa_fast.predictor import Predictor


def predictor() -> Predictor:
    torch.manual_seed(0)
    return Predictor(CONFIG.build(), CONFIG)


def image() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (3, 21, 33), dtype=torch.uint8, generator=generator)


def test_predictions_are_the_model_s() -> None:
    ours = predictor()
    ours.set_image(image())
    letterbox = Letterbox(21, 33, CONFIG.size)
    for expression in ("right dog", "the left zebra", "dog"):
        prediction = ours.predict(expression)
        ids = torch.tensor([ours.vocabulary.encode(expression, CONFIG.max_words)])
        with torch.no_grad():
            features = ours.model.encode_image(letterbox.image(image())[None])
            logits, received = ours.model.explain(features, ours.model.encode_text(ids))
        expected = letterbox.restore(logits.sigmoid())[0, 0]
        torch.testing.assert_close(prediction.probability, expected, rtol=0, atol=1e-5)
        assert torch.equal(prediction.mask, prediction.probability > 0.5)
        assert prediction.word_attention is not None
        torch.testing.assert_close(prediction.word_attention, received[0], rtol=0, atol=1e-5)
        assert len(prediction.tokens) == ids.shape[1]
    assert ours.draw(prediction).shape == (3, 21, 33)


def test_masks_are_those_of_an_evaluation() -> None:
    model = new_model(2).eval()
    with torch.no_grad():
        model.mask.weight *= 50  # type: ignore[union-attr, operator]
        model.mask.bias.zero_()  # type: ignore[union-attr, operator]
    data = images(5, 3)
    ours = Predictor(model, CONFIG)
    for result in evaluate(model, data, Collate(VOCABULARY, CONFIG.size)).results:
        sample = data[result.index]
        ours.set_image(sample.image)
        mask = ours.predict(sample.expression).mask
        counts = [int((mask & sample.mask).sum()), int(mask.sum())]
        # Expressions of an image go through the model together there: last bits may turn a pixel.
        assert counts == pytest.approx([result.intersection, result.predicted], abs=1)


def test_a_model_whose_weights_change_is_not_used_with_old_ones() -> None:
    ours = predictor()
    ours.set_image(image())
    ours.predict("dog")
    ours.model.load_state_dict(ours.model.state_dict())
    with pytest.raises(RuntimeError, match="have changed since"):
        ours.predict("dog")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here")
def test_on_a_gpu() -> None:
    here = predictor()
    there = Predictor(predictor().model, CONFIG, "cuda")
    here.set_image(image())
    there.set_image(image().cuda())
    expected, found = here.predict("the left dog"), there.predict("the left dog")
    assert found.mask.device.type == "cpu"
    torch.testing.assert_close(found.probability, expected.probability, rtol=0, atol=0.01)
    torch.testing.assert_close(found.word_attention, expected.word_attention, rtol=0, atol=0.01)
    assert there.draw(found).shape == (3, 21, 33)


def test_messages() -> None:
    ours = predictor()
    with pytest.raises(RuntimeError, match="Call set_image before predict"):
        ours.predict("dog")
    with pytest.raises(TypeError, match="image must be uint8"):
        ours.set_image(image().float())
    with pytest.raises(ValueError, match=r"image must have shape \[3, height, width\]"):
        ours.set_image(image()[0])
