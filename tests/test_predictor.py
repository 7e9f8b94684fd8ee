"""The predictor against the model and against an evaluation, its threads, explanations and errors."""

import logging
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.small_evaluation import COLLATE, varied_model
from support.small_training import CONFIG, EXPRESSIONS, images, new_model
from torch.nn import functional as F

from cmsa_fast.data.transforms import Letterbox
from cmsa_fast.evaluation.evaluate import evaluate
from cmsa_fast.predictor import Prediction, Predictor


def image() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (3, 21, 33), dtype=torch.uint8, generator=generator)


def assert_equal(one: Prediction, other: Prediction) -> None:
    for name in ("mask", "probability", "word_attention", "place_attention", "heat_map"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert one.expression == other.expression
    assert one.tokens == other.tokens


def test_predictions_are_those_of_the_model() -> None:
    model = new_model().eval()
    predictor, letterbox = Predictor(model, CONFIG), Letterbox(21, 33, CONFIG.size)
    predictor.set_image(image())
    for expression in ("right dog", "the left zebra", "dog"):
        prediction = predictor.predict(expression)
        ids = torch.tensor([predictor.vocabulary.encode(expression, CONFIG.max_words)])
        with torch.no_grad():
            features, text = model.encode_image(letterbox.image(image())[None]), model.encode_text(ids)
            logits, received, last_features = model.explain(features, text)
            places = model.place_attention(features, text)
        expected = letterbox.restore(logits.sigmoid())[0, 0]
        torch.testing.assert_close(prediction.probability, expected, rtol=0, atol=1e-5)
        assert torch.equal(prediction.mask, prediction.probability > 0.5)
        torch.testing.assert_close(prediction.word_attention, received[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(prediction.place_attention, places[0], rtol=0, atol=1e-5)
        # The square has 4 x 4 places of 8 pixels; the image covers its rows 6 to 26, so all of them.
        strongest = last_features[0, int(last_features[0].flatten(1).amax(1).argmax())]
        heat = F.interpolate(strongest[None, None], size=(32, 32), mode="bilinear")[0, 0]
        heat = letterbox.restore(heat)
        heat = (heat - heat.min()) / (heat.max() - heat.min())
        torch.testing.assert_close(prediction.heat_map, heat, rtol=0, atol=1e-4)
        assert prediction.expression == expression
        assert len(prediction.tokens) == ids.shape[1]
    assert predictor.draw(prediction).shape == (3, 21, 33)


def test_heat_map_ignores_the_padding_of_the_square() -> None:
    predictor = Predictor(new_model(2), CONFIG)
    encoded = predictor.encode(torch.zeros(3, 8, 32, dtype=torch.uint8))  # rows 12 to 20 of the square
    (prediction,) = predictor.segment(encoded, ["dog"])
    model = predictor.model
    with torch.no_grad():
        square = encoded.letterbox.image(encoded.pixels)[None]
        ids = torch.tensor([predictor.vocabulary.encode("dog")])
        last_features = model.explain(model.encode_image(square), model.encode_text(ids)).last_features[0]
    inside = last_features[:, 1:3].flatten(1).amax(1)
    assert inside.argmax() != last_features.flatten(1).amax(1).argmax()  # else this test shows nothing
    heat = F.interpolate(last_features[inside.argmax()][None, None], size=(32, 32), mode="bilinear")[0, 0, 12:20]
    heat = (heat - heat.min()) / (heat.max() - heat.min())
    torch.testing.assert_close(prediction.heat_map, heat, rtol=0, atol=1e-4)


def test_masks_are_those_of_an_evaluation() -> None:
    model, data = varied_model(), images(5, 3)
    predictor = Predictor(model, CONFIG)
    results = evaluate(model, data, COLLATE).results
    for number in range(5):
        predictor.set_image(data[3 * number].image)
        expressions = [sample.expression for sample in data.samples[3 * number : 3 * number + 3]]
        for result, prediction in zip(results[3 * number :], predictor.predict(expressions), strict=False):
            mask = data[result.index].mask
            counts = [int((prediction.mask & mask).sum()), int(prediction.mask.sum())]
            # Of a prepared image the last bits differ, which may flip a pixel.
            assert counts == pytest.approx([result.intersection, result.predicted], abs=1)
            alone = predictor.predict(prediction.expression)
            # So they do if expressions are computed together.
            assert int((alone.mask ^ prediction.mask).sum()) <= 1


def test_many_expressions_come_back_in_order() -> None:
    predictor = Predictor(varied_model(), CONFIG)
    predictor.set_image(image())
    expressions = [EXPRESSIONS[index % 5] for index in range(37)]
    predictions = predictor.predict(expressions)
    assert [one.expression for one in predictions] == expressions
    for expression, prediction in zip(expressions, predictions, strict=True):
        torch.testing.assert_close(prediction.probability, predictor.predict(expression).probability)
    assert predictor.predict([]) == []


def test_threads_get_the_results_of_one_thread() -> None:
    predictor = Predictor(varied_model(), CONFIG)
    encoded = [predictor.encode(images(5, 1)[index].image) for index in range(5)]
    jobs = [(one, list(EXPRESSIONS[: 1 + place % 5])) for place, one in enumerate(encoded * 12)]
    expected = [predictor.segment(*job) for job in jobs]
    for one in expected:
        assert all(prediction.place_attention is not None for prediction in one)
    with ThreadPoolExecutor(8) as pool:
        for threaded, sequential in zip(
            pool.map(lambda job: predictor.segment(*job), jobs), expected, strict=True
        ):
            for prediction, one in zip(threaded, sequential, strict=True):
                assert_equal(prediction, one)


def test_threads_share_the_image_that_was_set() -> None:
    predictor = Predictor(varied_model(), CONFIG)
    predictor.set_image(image())
    expected = [predictor.predict(expression) for expression in EXPRESSIONS]
    with ThreadPoolExecutor(8) as pool:
        for index, prediction in enumerate(pool.map(predictor.predict, EXPRESSIONS * 10)):
            assert_equal(prediction, expected[index % 5])


def test_images_in_any_form_are_the_same(tmp_path: Path) -> None:
    predictor, pixels = Predictor(varied_model(), CONFIG), image()
    array = pixels.permute(1, 2, 0).numpy()
    Image.fromarray(array).save(tmp_path / "image.png")
    predictor.set_image(pixels)
    expected = predictor.predict("dog")
    forms = [tmp_path / "image.png", str(tmp_path / "image.png"), Image.fromarray(array), array, array[::-1][::-1]]
    for form in forms:
        encoded = predictor.encode(form)
        assert torch.equal(encoded.pixels, pixels)
        assert_equal(predictor.segment(encoded, ["dog"])[0], expected)
    grey = Image.fromarray(array).convert("L")
    assert torch.equal(predictor.encode(grey).pixels, torch.from_numpy(np.array(grey)).expand(3, -1, -1))


@pytest.mark.parametrize("as_array", [False, True])
def test_encoded_image_is_a_copy(as_array: bool) -> None:
    predictor, pixels = Predictor(varied_model(), CONFIG), image()
    given = pixels.permute(1, 2, 0).numpy() if as_array else pixels
    encoded = predictor.encode(given)
    given[:] = 0
    assert torch.equal(encoded.pixels, image())


def test_unknown_and_surplus_words_are_named(caplog: pytest.LogCaptureFixture) -> None:
    predictor = Predictor(new_model(), CONFIG)
    predictor.set_image(image())
    prediction = predictor.predict("left Zebra, zebra 犬 dog")
    assert prediction.tokens == ("left", "<unk>", "<unk>", "<unk>", "<unk>", "dog")
    assert prediction.unknown_words == ("zebra", ",", "犬")
    assert caplog.messages == ["The vocabulary has no 'zebra', ',', '犬'; the model reads <unk>."]
    caplog.clear()
    prediction = predictor.predict("dog " * 1000)
    assert prediction.tokens == ("dog",) * 20
    (message,) = caplog.messages
    assert message.startswith("The model reads the first 20 of 1000 words of 'dog dog")
    assert len(message) < 150
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert predictor.predict("left dog").unknown_words == ()
    assert caplog.messages == []


@pytest.mark.parametrize("expression", ["🐶", "👩‍👩‍👧", "הכלב משמאל", "الكلب", "x" * 100_000, "a\u0301 \x00"])
def test_any_text_with_a_word_gives_a_mask(expression: str) -> None:
    predictor = Predictor(new_model(), CONFIG)
    predictor.set_image(image())
    prediction = predictor.predict(expression)
    assert prediction.mask.shape == (21, 33)
    assert prediction.unknown_words
    assert set(prediction.tokens) == {"<unk>"}


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (700, 1), (3000, 4000)])
def test_images_of_any_size(size: tuple[int, int]) -> None:
    predictor = Predictor(varied_model(), CONFIG)
    predictor.set_image(torch.randint(256, (3, *size), dtype=torch.uint8))
    prediction = predictor.predict("left dog")
    assert prediction.mask.shape == prediction.probability.shape == prediction.heat_map.shape == size
    assert torch.isfinite(prediction.heat_map).all()
    assert 0 <= prediction.heat_map.min() <= prediction.heat_map.max() <= 1


def test_the_current_frame_of_an_animation_is_predicted(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (9, 7), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    predictor = Predictor(new_model(), CONFIG)
    assert predictor.encode(tmp_path / "two.gif").pixels[:, 0, 0].tolist() == [255, 0, 0]
    with Image.open(tmp_path / "two.gif") as opened:
        opened.seek(1)
        assert predictor.encode(opened).pixels[:, 0, 0].tolist() == [0, 0, 255]


def test_images_of_pillow_are_checked_like_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor(new_model(), CONFIG)
    whole = tmp_path / "whole.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole)
    (tmp_path / "cut.jpg").write_bytes(whole.read_bytes()[:1500])
    with Image.open(tmp_path / "cut.jpg") as cut, pytest.raises(ValueError, match=r"cut\.jpg cannot be read"):
        predictor.encode(cut)
    with pytest.raises(ValueError, match="the given image has pixels of mode 'F'"):
        predictor.encode(Image.new("F", (3, 3)))
    turned = Image.new("RGB", (9, 7))
    turned.getexif()[0x0112] = 6
    assert predictor.encode(turned).pixels.shape == (3, 9, 7)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 62)
    with pytest.raises(ValueError, match="9 x 7 pixels are more than the 62"):
        predictor.encode(Image.new("RGB", (9, 7)))


def test_predictions_can_be_sent_to_another_process() -> None:
    predictor = Predictor(new_model(), CONFIG)
    predictor.set_image(image())
    prediction = predictor.predict("dog")
    data = pickle.dumps(prediction)
    assert len(data) < 30_000  # without the model
    assert_equal(pickle.loads(data), prediction)


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
    with pytest.raises(TypeError, match="image must be uint8; got float64"):
        predictor.set_image(np.zeros((4, 4, 3)))
    with pytest.raises(ValueError, match=r"shape \[3, height, width\] as a tensor; got \[21, 33\]"):
        predictor.set_image(image()[0])
    with pytest.raises(ValueError, match=r"shape \[height, width, 3\] as an array; got \[3, 4, 4\]"):
        predictor.set_image(np.zeros((3, 4, 4), dtype=np.uint8))
    with pytest.raises(TypeError, match="image must be a path, .* got list"):
        predictor.set_image([[1, 2]])  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="there is no image at nowhere.png"):
        predictor.set_image("nowhere.png")
    predictor.set_image(image())
    for wrong, error in (("", ValueError), (" .", ValueError), (["dog", ""], ValueError), ([3], TypeError)):
        with pytest.raises(error, match="expression must"):
            predictor.predict(wrong)
    with pytest.raises(TypeError, match="expressions must be a sequence of strings; got one string"):
        predictor.segment(predictor.encode(image()), "dog")
    assert predictor.predict("dog").mask.shape == (21, 33)
