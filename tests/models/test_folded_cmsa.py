"""`FoldedCMSAModel` answers the model's calls with the model's results."""

import pytest
import torch
from torch import Tensor, nn

from cmsa_fast.models import build_model, for_inference
from cmsa_fast.models.base import ExplainsWords
from cmsa_fast.models.cmsa import CMSAModel
from cmsa_fast.models.folded_cmsa import FoldedCMSAModel

INDEX = torch.tensor([1, 0, 1])
WORDS = torch.tensor([[0, 3, 4], [5, 6, 7], [1, 2, 8]])
MASK = torch.tensor([[False, True, True], [True] * 3, [True, True, False]])


def small(name: str = "cmsa") -> nn.Module:
    torch.manual_seed(0)
    return build_model(
        name,
        vocabulary_size=9,
        backbone="narrow",
        narrow_widths=(8, 8, 8, 16, 24),
        word_channels=6,
        attention_channels=8,
        fused_channels=7,
    ).eval()


def images(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(2, 3, 37, 50, dtype=dtype, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_the_calls_answer_as_the_model_s() -> None:
    model = small().double()
    folded = FoldedCMSAModel(model)
    assert isinstance(folded, ExplainsWords)
    features = folded.encode_image(images())
    of_model = model.encode_image(images())
    logits = folded.segment(features, WORDS, MASK, INDEX)
    exact = model.segment(of_model, WORDS, MASK, INDEX)
    assert logits.shape == (3, 1, 37, 50)
    assert (logits - exact).norm() <= 1e-12 * exact.norm()
    assert torch.equal(folded(images(), WORDS, MASK, INDEX), logits)
    again, received = folded.explain(features, folded.encode_text(WORDS, MASK), INDEX)
    assert torch.equal(again, logits)
    _, exact = model.explain(of_model, model.encode_text(WORDS, MASK), INDEX)
    assert (received - exact).norm() <= 1e-12 * exact.norm()
    without = folded.segment(features, WORDS[:2])
    exact = model.segment(of_model, WORDS[:2])
    assert (without - exact).norm() <= 1e-12 * exact.norm()


@torch.no_grad()
@pytest.mark.parametrize("autocast", [False, True])
def test_rounding_is_that_of_the_model(autocast: bool) -> None:
    model = small().double()
    exact = model(images(), WORDS, MASK, INDEX)
    model.float()
    folded = FoldedCMSAModel(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours, theirs = (run(images(torch.float32), WORDS, MASK, INDEX) for run in (folded, model))
    assert ours.dtype == theirs.dtype
    eps = torch.finfo(ours.dtype).eps
    assert (ours - exact).norm() <= 2 * max((theirs - exact).norm(), eps * exact.norm())


def test_training_and_gradients_are_refused() -> None:
    model = small()
    folded = FoldedCMSAModel(model)
    with pytest.raises(RuntimeError, match=r"under torch\.no_grad\(\)"):
        folded(images(torch.float32), WORDS, MASK, INDEX)
    with torch.no_grad():
        features = folded.encode_image(images(torch.float32))
        model.train()
        with pytest.raises(RuntimeError, match="in training mode"):
            folded.encode_image(images(torch.float32))
        with pytest.raises(RuntimeError, match="in training mode"):
            folded.segment(features, WORDS, MASK, INDEX)
    with pytest.raises(RuntimeError, match="in training mode"):
        FoldedCMSAModel(model)


@torch.no_grad()
def test_a_model_that_changed_is_refused_before_its_backbone_runs() -> None:
    model = small()
    folded = FoldedCMSAModel(model)
    features = folded.encode_image(images(torch.float32))
    model.load_state_dict(model.state_dict())
    model.backbone = nn.Identity()  # would give other errors
    with pytest.raises(RuntimeError, match="fold them again"):
        folded.encode_image(images(torch.float32))
    with pytest.raises(RuntimeError, match="fold them again"):
        folded.segment(features, WORDS, MASK, INDEX)


@torch.no_grad()
def test_features_are_not_exchanged() -> None:
    model = small()
    folded = FoldedCMSAModel(model)
    with pytest.raises(TypeError, match="encode_image of the folded model; got ImageFeatures"):
        folded.segment(model.encode_image(images(torch.float32)), WORDS, MASK, INDEX)


def test_models_without_a_folded_form_stand_for_themselves() -> None:
    released = small("cmsa-released")
    assert for_inference(released) is released
    model = small()
    assert isinstance(model, CMSAModel)
    assert isinstance(for_inference(model), FoldedCMSAModel)
