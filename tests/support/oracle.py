"""How close the attention must come to the literal form, and the inputs to measure it on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cmsa_fast.kernels import cross_modal_attention, reference

NAMES = ("place_query", "place_key", "place_value", "word_query", "word_key", "word_value")
Array = np.ndarray

EXTENDED = np.finfo(np.longdouble).eps < np.finfo(np.float64).eps

OUTPUTS = ("result", *(f"gradient of {name}" for name in NAMES))

Attention = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """Arguments of the attention and the gradient that comes back to its result."""

    features: tuple[Tensor, ...]  # in the order of NAMES
    word_mask: Tensor | None
    image_index: Tensor | None
    grad: Tensor  # [B, P, e]

    def to(self, dtype: torch.dtype) -> Case:
        features = tuple(part.to(dtype) for part in self.features)
        return replace(self, features=features, grad=self.grad.to(dtype))

    def with_features(self, **changed: Tensor) -> Case:
        features = dict(zip(NAMES, self.features, strict=True)) | changed
        return replace(self, features=tuple(features[name] for name in NAMES))

    def __getitem__(self, name: str) -> Tensor:
        return self.features[NAMES.index(name)]


def draw(
    places: int = 23,
    words: int = 6,
    width: int = 11,
    value_width: int | None = None,
    batch: int = 2,
    *,
    images: int | None = None,
    scale: float = 1.0,
    grad_scale: float = 1.0,
    padded: bool = True,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Case:
    """Normal features, exact in `dtype`; where there is room, words are padded front, back and between."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, times: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator) * times).to(dtype)

    value_width = width if value_width is None else value_width
    widths = (width, width, value_width)
    features = (
        *(normal(images or batch, places, size, times=scale) for size in widths),
        *(normal(batch, words, size, times=scale) for size in widths),
    )
    image_index = None
    if images is not None:
        image_index = torch.randint(images, (batch,), generator=generator)
    mask = padding(batch, words) if padded else None
    return Case(features, mask, image_index, normal(batch, places, value_width, times=grad_scale))


def padding(batch: int, words: int) -> Tensor:
    """bool [B, N]: expression 0 is padded at the front, 1 between, 2 at the back, 3 not, and so on."""
    mask = torch.ones(batch, words, dtype=torch.bool)
    if words >= 3:
        mask[0::4, : words // 3] = False
        mask[1::4, 1 : words // 2] = False
        mask[2::4, -(words // 3) :] = False
    return mask


def run(attention: Attention, case: Case) -> list[Tensor]:
    """The result and the six gradients."""
    features = [part.detach().requires_grad_() for part in case.features]
    result = attention(*features, case.word_mask, image_index=case.image_index)
    return [result.detach(), *torch.autograd.grad(result, features, case.grad)]


def fast(*arguments: Tensor | None, image_index: Tensor | None = None) -> Tensor:
    return cross_modal_attention(*arguments, image_index=image_index, backend="torch")  # type: ignore[arg-type]


def fused(*arguments: Tensor | None, image_index: Tensor | None = None) -> Tensor:
    return cross_modal_attention(*arguments, image_index=image_index, backend="triton")  # type: ignore[arg-type]


def exact(case: Case) -> list[Array]:
    """The literal form's result and six gradients, in more digits than the case has.

    float64, and for a case in float64 the equations written out in the processor's extended precision
    (`numpy.longdouble`).
    """
    if case.grad.dtype != torch.float64:
        literal = run(reference.cross_modal_attention, case.to(torch.float64))
        return [part.numpy() for part in literal]
    return _literal_in_extended_precision(case)


def errors(attention: Attention, case: Case, truth: list[Array]) -> list[float]:
    """Distance of each output from the exact one, relative to the exact norm; norms over the whole tensor.

    A gradient's is relative to the largest of the six, because some vanish exactly (all but the values' at one
    place and one word).
    """
    norms = [_norm(part) for part in truth]
    norms[1:] = [max(norms[1:])] * len(NAMES)
    found = run(attention, case)
    return [
        _norm(part.double().numpy() - true) / norm
        for part, true, norm in zip(found, truth, norms, strict=True)
    ]


def literal_errors(case: Case, truth: list[Array]) -> list[float]:
    """Errors of the literal form run wholly in the dtype of the case.

    Where float64 is the most digits that the processor has, the literal form in float64 cannot be measured
    against itself: there its float32 errors are taken, times the ratio of the two roundings.
    """
    if case.grad.dtype != torch.float64 or EXTENDED:
        return errors(reference.cross_modal_attention, case, truth)
    rounding = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
    single = case.to(torch.float32)
    of_single = errors(reference.cross_modal_attention, single, exact(single))
    return [rounding * error for error in of_single]


def assert_within_budget(cases: Case | Sequence[Case], attention: Attention = fast) -> None:
    """error <= 2 max(error of the literal form in the same dtype, eps), for medians over the cases."""
    cases = [cases] if isinstance(cases, Case) else cases
    truths = [exact(case) for case in cases]
    ours, literal = (
        _medians([measure(case, truth) for case, truth in zip(cases, truths, strict=True)])
        for measure in (functools.partial(errors, attention), literal_errors)
    )
    eps = torch.finfo(cases[0].grad.dtype).eps
    over = [
        f"{name}: error {error:.2e}, literal form {allowed:.2e}"
        for name, error, allowed in zip(OUTPUTS, ours, literal, strict=True)
        if not error <= 2 * max(allowed, eps)
    ]
    assert not over, "; ".join(over)


def _medians(rows: list[list[float]]) -> list[float]:
    return torch.tensor(rows, dtype=torch.float64).median(0).values.tolist()


def _norm(part: Array) -> float:
    return float(np.sqrt((part.astype(np.longdouble) ** 2).sum()))


def _literal_in_extended_precision(case: Case) -> list[Array]:
    features = [part.numpy().astype(np.longdouble) for part in case.features]
    grad = case.grad.numpy().astype(np.longdouble)
    places, words = features[0].shape[1], features[3].shape[1]
    result, gradients = np.zeros_like(grad), [np.zeros_like(part) for part in features]
    for expression in range(len(grad)):
        image = expression if case.image_index is None else int(case.image_index[expression])
        true = np.arange(words)
        if case.word_mask is not None:
            true = np.flatnonzero(case.word_mask[expression].numpy())
        query, key, value = (
            (place[image][:, None] + word[expression][None, true]).reshape(places * len(true), -1)
            for place, word in zip(features[:3], features[3:], strict=True)
        )
        logits = query @ key.T
        weights = np.exp(logits - logits.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        result[expression] = (weights @ value).reshape(places, len(true), -1).mean(1)

        of_attended = np.repeat(grad[expression] / len(true), len(true), axis=0)
        of_weights = of_attended @ value.T
        of_logits = weights * (of_weights - (weights * of_weights).sum(1, keepdims=True))
        of_tokens = (of_logits @ key, of_logits.T @ query, weights.T @ of_attended)
        for number, part in enumerate(of_tokens):
            pairs = part.reshape(places, len(true), -1)
            gradients[number][image] += pairs.sum(1)
            gradients[number + 3][expression, true] += pairs.sum(0)
    return [result, *gradients]
