"""What every registered model and every inference form must do."""

from __future__ import annotations

import re
import sys
from collections import Counter
from types import FrameType
from typing import Any

import pytest
import torch
from support.small_models import INDEX, MASK, WORDS, build, images

from cmsa_fast.models import MODELS, build_model, for_inference
from cmsa_fast.models.base import ReferringModel
from cmsa_fast.nn import segmentation_loss
from cmsa_fast.training.recipe import PRESETS

FOLDED = "cmsa for inference"


def small(name: str) -> ReferringModel:
    return for_inference(build("cmsa")) if name == FOLDED else build(name)


@pytest.mark.parametrize("name", [*MODELS, FOLDED])
@torch.no_grad()
def test_calls_agree(name: str) -> None:
    model = small(name)
    logits = model(images(), WORDS, MASK, INDEX)
    assert logits.shape == (3, 1, 37, 50)
    features = model.encode_image(images())
    text = model.encode_text(WORDS, MASK)
    assert torch.equal(model.segment(features, WORDS, MASK, INDEX), logits)
    assert torch.equal(model.decode(features, text, INDEX), logits)
    gathered = model(images()[INDEX], WORDS, MASK)
    torch.testing.assert_close(gathered, logits, rtol=1e-4, atol=1e-5)
    without_padding = model(images()[1:], WORDS[:1, 1:])
    torch.testing.assert_close(without_padding, logits[:1], rtol=1e-4, atol=1e-5)
    ids_of_padding = torch.where(MASK, WORDS, 8 - WORDS)
    assert torch.equal(model.segment(features, ids_of_padding, MASK, INDEX), logits)
    prepared = model.prepare(features)
    torch.testing.assert_close(model.decode(prepared, text, INDEX), logits)
    other_words = model.segment(features, WORDS.flip(1), None, INDEX)
    assert (other_words - logits).abs().max() > 1e-4
    explained, received, last_features = model.explain(features, text, INDEX)
    assert torch.equal(explained, logits)
    assert last_features.shape == (3, 7, 5, 7)
    places = model.place_attention(features, text, INDEX)
    assert (received is None) == (places is None) == (name == "cmsa-released")
    if received is not None:
        assert received.shape == (3, 3, 3)
        torch.testing.assert_close(received.sum(2), torch.ones(3, 3))
        assert (received.mT[~MASK] == 0).all()
        assert places.shape == (3, 3, 5, 7)
        torch.testing.assert_close(places.sum((2, 3)), torch.ones(3, 3))
        alone = model.place_attention(features, model.encode_text(WORDS[:1, 1:]), INDEX[:1])
        torch.testing.assert_close(alone, places[:1])


@pytest.mark.parametrize("name", [*MODELS, FOLDED])
@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ((WORDS.float(), MASK, INDEX), TypeError, "words must be an int64 tensor"),
        ((WORDS[0], None, INDEX), ValueError, r"words must have shape \[batch, words\]"),
        ((WORDS + 1, MASK, INDEX), ValueError, r"words must lie in 0\.\.8; got .* 1 to 9"),
        ((WORDS, MASK[:, 1:], INDEX), ValueError, "word_mask must have shape"),
        ((WORDS, MASK & False, INDEX), ValueError, "word_mask must have a true word in every"),
        ((WORDS, MASK, None), ValueError, "features has 2 images and words 3 expressions"),
        ((WORDS, MASK, INDEX + 1), ValueError, r"image_index must lie in 0\.\.1; got .* 1 to 2"),
    ],
)
@torch.no_grad()
def test_wrong_arguments_are_named(
    name: str, given: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        small(name)(images(), *given)


@pytest.mark.parametrize("name", [*MODELS, FOLDED])
@torch.no_grad()
def test_arguments_are_checked_once(name: str) -> None:
    model = small(name)
    checks: Counter[str] = Counter()

    def count(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.endswith("validation.py"):
            checks[frame.f_code.co_name] += 1

    sys.setprofile(count)
    try:
        model(images(), WORDS, MASK, INDEX)
    finally:
        sys.setprofile(None)
    assert checks.pop("_values_can_be_read") == 3
    checks.pop("check_unmodified")  # of modules
    assert checks.pop("check_range") == 2  # word ids and image_index
    assert set(checks.values()) == {1}
    assert {"check_word_mask", "check_image_index"} <= set(checks)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", [*MODELS, FOLDED])
def test_no_expression_gives_no_mask_and_zero_gradients(name: str, masked: bool) -> None:
    model = small(name)
    with torch.set_grad_enabled(name != FOLDED):
        for index in (INDEX[:0], None):
            given = images() if index is not None else images()[:0]
            logits = model(given, WORDS[:0], MASK[:0] if masked else None, index)
            assert logits.shape == (0, 1, 37, 50)
            if name != FOLDED:
                logits.sum().backward()
    assert all(part.grad is None or not part.grad.any() for part in model.parameters())


@pytest.mark.parametrize("part", ["attention.0.value", "fusion.project.1", "fusion.memory.2", "fusion.reset.0"])
@pytest.mark.parametrize("name", [*MODELS, FOLDED])
@torch.no_grad()
def test_hooks_of_maps_that_are_not_called_are_refused(name: str, part: str) -> None:
    model = small(name)
    parts = dict(getattr(model, "model", model).named_modules())
    if part not in parts:
        pytest.skip(f"{name} has no {part}")
    called = []
    parts[part].register_forward_hook(lambda *_: called.append(1))
    try:
        model(images(), WORDS, MASK, INDEX)
    except TypeError as error:
        assert re.search(r"must be an nn\.\w+ without hooks, .*; got one with hooks\.", str(error))  # noqa: PT017
    else:
        assert called


@pytest.mark.parametrize("name", [*MODELS, FOLDED])
@torch.no_grad()
def test_dtype_of_images_is_named(name: str) -> None:
    model = small(name)
    with pytest.raises(
        TypeError, match=r"images must have the dtype of the backbone, torch.float32; got torch.float16"
    ):
        model(images().half(), WORDS, MASK, INDEX)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(images().bfloat16(), WORDS, MASK, INDEX).shape == (3, 1, 37, 50)


@pytest.mark.parametrize("name", MODELS)
def test_frozen_backbone_is_an_option(name: str) -> None:
    frozen, model = build(name, freeze_backbone=True).train(), build(name)
    frozen.load_state_dict(model.state_dict())
    frozen(images(), WORDS, MASK, INDEX).sum().backward()
    with_gradient = {key for key, part in frozen.named_parameters() if part.grad is not None}
    expected = {key for key, _ in model.named_parameters() if not key.startswith("backbone.")}
    assert with_gradient == expected
    assert torch.equal(frozen.eval()(images(), WORDS[:2]), model(images(), WORDS[:2]))


@pytest.mark.parametrize("name", MODELS)
def test_options_of_the_backbone_are_passed_on(name: str) -> None:
    for dilation, first in (("torchvision", 1), ("deeplab", 2)):
        model = build(name, backbone="resnet18", backbone_dilation=dilation)
        assert model.backbone.body.layer3[0].conv1.dilation == (first, first)
    with pytest.raises(ValueError, match='backbone="narrow", which has no published weights'):
        build(name, backbone_weights="imagenet")


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_part_of_the_full_size_model_trains(name: str) -> None:
    torch.manual_seed(0)
    recipe = PRESETS["paper"]
    model = build_model(name, vocabulary_size=12112).train()
    optimizer = torch.optim.Adam(
        [part for part in model.parameters() if part.requires_grad], lr=recipe.learning_rate
    )
    pixels = torch.rand(1, 3, recipe.size, recipe.size)
    masks = torch.zeros(1, recipe.size, recipe.size, dtype=torch.bool)
    masks[:, 100:200, 50:150] = True
    before = {key: part.detach().clone() for key, part in model.named_parameters()}
    loss = segmentation_loss(model(pixels, torch.randint(12112, (1, 20))), masks)
    loss.backward()
    optimizer.step()
    after = model.named_parameters()
    moved = {key.split(".")[0] for key, part in after if not torch.equal(part, before[key])}
    assert moved == {key.split(".")[0] for key in before}
