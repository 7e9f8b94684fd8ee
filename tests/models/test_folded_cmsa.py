"""`FoldedCMSAModel` gives the results of `CMSAModel` and refuses to run where they would be wrong."""

import copy
import pickle

import pytest
import torch
from support.small_level import assert_rounded_like
from support.small_models import INDEX, MASK, WORDS, build, images
from torch import nn

from cmsa_fast.models import for_inference
from cmsa_fast.models.folded_cmsa import FoldedCMSAModel


@torch.no_grad()
def test_results_are_those_of_the_model() -> None:
    model = build("cmsa").double()
    folded = FoldedCMSAModel(model)
    for mask, rows in ((MASK, slice(None)), (None, slice(2))):
        given = (WORDS[rows], None if mask is None else mask[rows])
        index = None if mask is None else INDEX
        ours, exact = (
            one.explain(one.encode_image(images(torch.float64)), one.encode_text(*given), index)
            for one in (folded, model)
        )
        assert ours[0].shape == exact[0].shape
        for mine, theirs in zip(ours, exact, strict=True):
            assert (mine - theirs).norm() <= 1e-12 * theirs.norm()


@torch.no_grad()
@pytest.mark.parametrize("autocast", [False, True])
def test_rounding_error_is_that_of_the_model(autocast: bool) -> None:
    model = build("cmsa").double()
    exact = model(images(torch.float64), WORDS, MASK, INDEX)
    model.float()
    folded = FoldedCMSAModel(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours, theirs = (run(images(), WORDS, MASK, INDEX) for run in (folded, model))
    assert ours.dtype == theirs.dtype
    assert_rounded_like(ours, theirs, exact, ours.dtype)


def test_training_and_gradients_are_refused() -> None:
    model = build("cmsa")
    folded = FoldedCMSAModel(model)
    with pytest.raises(RuntimeError, match=r"under torch\.no_grad\(\)"):
        folded(images(), WORDS, MASK, INDEX)
    with torch.no_grad():
        features = folded.encode_image(images())
        model.train()
        with pytest.raises(RuntimeError, match="in training mode"):
            folded.encode_image(images())
        with pytest.raises(RuntimeError, match="in training mode"):
            folded.segment(features, WORDS, MASK, INDEX)
    with pytest.raises(RuntimeError, match="in training mode"):
        FoldedCMSAModel(model)


@torch.no_grad()
def test_changed_weights_are_refused_before_the_backbone_runs() -> None:
    model = build("cmsa")
    folded = FoldedCMSAModel(model)
    features = folded.encode_image(images())
    model.load_state_dict(model.state_dict())
    model.backbone = nn.Identity()  # would give other errors
    with pytest.raises(RuntimeError, match="fold them again"):
        folded.encode_image(images())
    with pytest.raises(RuntimeError, match="fold them again"):
        folded.segment(features, WORDS, MASK, INDEX)


@torch.no_grad()
def test_features_of_the_model_are_refused() -> None:
    model = build("cmsa")
    folded = FoldedCMSAModel(model)
    with pytest.raises(TypeError, match="encode_image of the folded model; got ImageFeatures"):
        folded.segment(model.encode_image(images()), WORDS, MASK, INDEX)


def test_inference_form_of_each_model() -> None:
    released = build("cmsa-released")
    assert for_inference(released) is released
    model = build("cmsa")
    form = for_inference(model)
    assert isinstance(form, FoldedCMSAModel)
    assert form.model is model


@torch.no_grad()
def test_a_copy_has_its_own_weights() -> None:
    folded = for_inference(build("cmsa"))
    expected = folded(images(), WORDS, MASK, INDEX)
    for other in (copy.deepcopy(folded), pickle.loads(pickle.dumps(folded))):
        assert torch.equal(other(images(), WORDS, MASK, INDEX), expected)
        other.model.attention[0].query.weight.mul_(2)
        with pytest.raises(RuntimeError, match="fold them again"):
            other(images(), WORDS, MASK, INDEX)
    assert torch.equal(folded(images(), WORDS, MASK, INDEX), expected)
