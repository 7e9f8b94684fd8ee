"""`cmsa-fast predict`: files, masks, exit statuses, and what happens to images that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.small_evaluation import varied_model
from support.small_training import CONFIG

from cmsa_fast.cli import main
from cmsa_fast.cli.image_files import find_images, split_arguments, unique_names
from cmsa_fast.data.masks import parse_segmentation
from cmsa_fast.models.checkpoint import save_model
from cmsa_fast.predictor import Predictor

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(path, varied_model(), CONFIG)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three images, of them one in a subfolder; two files that are no images; a text."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in ("a.png", "b.jpg", "more/a.png"):
        Image.fromarray(random.integers(0, 256, (23, 41, 3), dtype=np.uint8)).save(folder / name)
    (folder / "cut.jpg").write_bytes((folder / "b.jpg").read_bytes()[:300])
    (folder / "empty.webp").touch()
    (folder / "notes.txt").write_text("notes")
    return folder


def predict(model: Path, *arguments: object) -> int:
    return main(["predict", str(model), *map(str, arguments), "--device=cpu"])


def content(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "predictions.json").read_text())


def test_an_image_and_two_expressions(model: Path, photos: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    assert predict(model, photos / "a.png", "left dog", "the Zebra", "--out", out) == 0
    printed = capsys.readouterr()
    assert {path.name for path in out.iterdir()} == {
        "a-mask-1.png",
        "a-mask-2.png",
        "a-overlay.png",
        "predictions.json",
    }
    written = content(out)
    assert (written["model"], written["device"], written["crf"]) == (str(model), "cpu", False)
    assert written["errors"] == []
    (image,) = written["images"]
    assert (image["image"], image["width"], image["height"]) == (str(photos / "a.png"), 41, 23)
    assert image["overlays"] == ["a-overlay.png"]
    assert image["encoding_seconds"] > 0
    assert image["prediction_seconds"] > 0
    predictor = Predictor.from_pretrained(model)
    predictor.set_image(photos / "a.png")
    for entry, prediction in zip(image["predictions"], predictor.predict(["left dog", "the Zebra"]), strict=True):
        assert entry["expression"] == prediction.expression
        assert entry["words"] == list(prediction.tokens)
        assert entry["unknown_words"] == list(prediction.unknown_words)
        expected = prediction.mask.numpy()
        assert entry["share"] == pytest.approx(expected.mean())
        assert f"{100 * expected.mean():.1f} %  {prediction.expression}" in printed.out
        decoded = parse_segmentation(entry["segmentation"]).decode(23, 41)
        np.testing.assert_array_equal(decoded, expected)
        with Image.open(out / entry["mask"]) as mask:
            assert mask.mode == "L"
            np.testing.assert_array_equal(np.asarray(mask), expected * np.uint8(255))
    assert image["predictions"][1]["unknown_words"] == ["zebra"]
    with Image.open(out / "a-overlay.png") as overlay:
        assert overlay.width == 640


def test_one_bad_file_does_not_stop_the_rest(
    model: Path, photos: Path, tmp_path: Path, capsys: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    assert predict(model, photos, "left zebra", "--out", out) == 3
    assert "2 of 4 images could not be read" in capsys.readouterr().out
    written = content(out)
    assert [Path(image["image"]).name for image in written["images"]] == ["a.png", "b.jpg"]
    assert [line.split(" cannot be read")[0] for line in written["errors"]] == [
        str(photos / "cut.jpg"),
        str(photos / "empty.webp"),
    ]
    assert [message for message in caplog.messages if "cannot be read" in message] == written["errors"]
    # The same words are unknown in every image: they are named once.
    assert sum("zebra" in message for message in caplog.messages) == 1


def test_no_readable_image_is_a_failure(model: Path, photos: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    assert predict(model, photos / "cut.jpg", "dog", "--out", out) == 1
    assert "1 of 1 images could not be read" in capsys.readouterr().out
    assert not out.exists()


def test_an_image_of_too_many_pixels_is_refused_in_one_sentence(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    Image.new("L", (200, 100)).save(photos / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 15_000)
    assert predict(model, photos / "*.png", "dog", "--out", tmp_path / "out") == 3
    (error,) = content(tmp_path / "out")["errors"]
    assert error.startswith(f"{photos / 'large.png'} is refused as an image: its 200 x 100 pixels")
    assert not recwarn.list


def test_patterns_and_images_of_the_same_name(model: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert predict(model, photos / "**" / "a.*", "dog", "--out", out) == 0
    images = content(out)["images"]
    assert [image["image"] for image in images] == [str(photos / "a.png"), str(photos / "more" / "a.png")]
    assert [image["predictions"][0]["mask"] for image in images] == ["a-mask-1.png", "a-2-mask-1.png"]
    assert (out / "a-2-overlay.png").is_file()


def test_more_expressions_than_colors(model: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert predict(model, photos / "a.png", *["dog", "left cat"] * 9, "--out", out) == 0
    (image,) = content(out)["images"]
    assert image["overlays"] == ["a-overlay.png", "a-overlay-2.png", "a-overlay-3.png"]
    assert [entry["mask"] for entry in image["predictions"]] == [f"a-mask-{number}.png" for number in range(1, 19)]
    sizes = []
    for name in image["overlays"]:
        with Image.open(out / name) as overlay:
            sizes.append(overlay.height)
    assert sizes[0] == sizes[1] > sizes[2]


def test_default_folder_is_new(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("predictions", "predictions-2"):
        assert predict(model, photos / "a.png", "dog") == 0
        assert f"are in {name}\n" in capsys.readouterr().out
        assert (tmp_path / name / "predictions.json").is_file()


def test_stopped_command_keeps_what_was_done(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, calls = Predictor.encode, []

    def stopped(self: Predictor, image: Any) -> Any:
        calls.append(image)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(self, image)

    monkeypatch.setattr(Predictor, "encode", stopped)
    assert predict(model, photos, "dog", "--out", tmp_path / "out") == 130
    assert [Path(image["image"]).name for image in content(tmp_path / "out")["images"]] == ["a.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.jpg", "dog"], "There is no image nowhere.jpg: no file, folder or pattern"),
        (["a.png"], "Name at least one expression after the image, in quotes"),
        (["a.png", "b.jpg"], "Name at least one expression after the image, in quotes"),
        (["a.png", "dog", " "], "expression must have at least one word, but it is ' '"),
        (["none", "dog"], "The folder none has no image"),
        (["a.png", "dog", "--out", "."], "--out . is not empty"),
        (["a.png", "dog", "--out", "notes.txt"], "--out must be a folder; notes.txt is a file"),
        (["a.png", "dog", "--device", "moon"], "--device moon cannot be used here"),
    ],
)
def test_wrong_arguments_are_named(
    model: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, arguments: list[str], message: str
) -> None:
    (photos / "none").mkdir()
    monkeypatch.chdir(photos)
    before = sorted(photos.rglob("*"))
    assert main(["predict", str(model), *arguments]) == 1
    assert f"cmsa-fast: {message}" in capsys.readouterr().err
    assert sorted(photos.rglob("*")) == before


def test_a_model_is_needed(photos: Path, capsys: Capture) -> None:
    assert predict(photos, photos / "a.png", "dog") == 1
    assert "model.safetensors" in capsys.readouterr().err


def test_crf_refines_the_masks(model: Path, photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("pydensecrf")
    from cmsa_fast.evaluation.crf import refine

    pixels = np.zeros((60, 80, 3), dtype=np.uint8)
    pixels[:, 33:] = 255
    Image.fromarray(pixels).save(photos / "edge.png")
    assert predict(model, photos / "edge.png", "left dog", "--crf", "--out", tmp_path / "out") == 0
    predictor = Predictor.from_pretrained(model)
    predictor.set_image(photos / "edge.png")
    prediction = predictor.predict("left dog")
    refined = refine(prediction.image, prediction.probability) > 0.5
    assert not torch.equal(refined, prediction.mask)
    written = content(tmp_path / "out")
    assert written["crf"] is True
    (entry,) = written["images"][0]["predictions"]
    assert torch.equal(parse_segmentation(entry["segmentation"]).decode(60, 80), refined)


def test_images_and_expressions_are_told_apart(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos)
    images, expressions = split_arguments("a.png", ["b.jpg", "notes.txt", "more", "a dog", "gone.JPEG", "a.png"])
    assert images == [Path("a.png"), Path("b.jpg"), Path("notes.txt"), Path("gone.JPEG")]
    assert expressions == ["more", "a dog"]
    assert split_arguments("a.png", ["x" * 5000, "\0"])[1] == ["x" * 5000, "\0"]
    (photos / "[1].png").touch()
    assert find_images("[1].png") == [Path("[1].png")]
    assert find_images("*.jpg") == [Path("b.jpg"), Path("cut.jpg")]
    assert find_images("*") == [Path(name) for name in ("[1].png", "a.png", "b.jpg", "cut.jpg", "empty.webp")]
    names = unique_names([Path(name) for name in ("a.png", "x/a.jpg", "a-2.png", "y/a.gif", "b.c.png")])
    assert names == ["a", "a-2", "a-2-2", "a-3", "b.c"]
