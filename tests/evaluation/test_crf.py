"""The dense CRF: parameters, input, and its effect on masks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from PIL import Image
from support.ellipse import ellipse
from torch import Tensor

from cmsa_fast.evaluation.crf import CrfParameters, dense_crf, refine
from cmsa_fast.evaluation.crf_pool import RefinementPool

PAPER = {
    "gaussian_sxy": 3,
    "gaussian_compat": 3,
    "bilateral_sxy": 20,
    "bilateral_srgb": 3,
    "bilateral_compat": 10,
    "iterations": 5,
}


@pytest.fixture
def installed() -> None:
    pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf is not installed")


needs_pydensecrf = pytest.mark.usefixtures("installed")


def noise(labels: int = 2, height: int = 23, width: int = 31) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(labels * height + width)
    # Coarse colours, so that pixels have neighbours in colour.
    image = random.integers(0, 4, (height, width, 3), dtype=np.uint8) * 3
    values = random.random((labels, height, width), dtype=np.float32)
    return image, values / values.sum(0)


def iou(first: Tensor, second: Tensor) -> float:
    return float((first & second).sum() / (first | second).sum())


def test_defaults_are_the_published_parameters() -> None:
    assert vars(CrfParameters()) == PAPER


@needs_pydensecrf
@pytest.mark.parametrize("name", PAPER)
def test_each_parameter_has_an_effect(name: str) -> None:
    image, probabilities = noise()
    changed = CrfParameters(**{name: 2 * PAPER[name]})
    assert not np.array_equal(dense_crf(image, probabilities, changed), dense_crf(image, probabilities))


@pytest.mark.parametrize("name", PAPER)
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "3", True])
def test_bad_parameters(name: str, value: object) -> None:
    fractional = name == "iterations" and isinstance(value, float)
    error = TypeError if isinstance(value, str | bool) or fractional else ValueError
    with pytest.raises(error, match=f"^{name} must be (an integer of at least 1|a positive)"):
        CrfParameters(**{name: value})  # type: ignore[arg-type]


@needs_pydensecrf
@pytest.mark.parametrize("name", ["gaussian_sxy", "bilateral_sxy", "bilateral_srgb"])
def test_deviation_too_small_for_the_image(name: str) -> None:
    image, probabilities = noise()
    image *= 28  # the whole range of colours
    with pytest.raises(ValueError, match=f"^{name} must be at least .* 31 x 23 pixels"):
        dense_crf(image, probabilities, CrfParameters(**{name: 1e-30}))
    range_, extent = {"gaussian_sxy": (10_000, 31), "bilateral_sxy": (3_000, 31), "bilateral_srgb": (3_000, 255)}[
        name
    ]
    least = dense_crf(image, probabilities, CrfParameters(**{name: extent / range_}))
    # Neither reaches another position or colour, so the results agree except for the lattice.
    more = dense_crf(image, probabilities, CrfParameters(**{name: 3 * extent / range_}))
    assert np.abs(least - more).mean() < 0.01


@needs_pydensecrf
def test_energies_beyond_float32_are_an_error() -> None:
    with pytest.raises(ValueError, match="gaussian_compat and bilateral_compat are too large"):
        dense_crf(*noise(), CrfParameters(gaussian_compat=1e39))


@needs_pydensecrf
@pytest.mark.parametrize("shape", [(2, 1, 1), (2, 1, 17), (3, 19, 1), (5, 23, 31)])
def test_result_is_a_distribution_over_labels(shape: tuple[int, int, int]) -> None:
    image, probabilities = noise(*shape)
    result = dense_crf(image, probabilities)
    assert (result.shape, result.dtype) == (shape, np.float32)
    assert result.flags.c_contiguous
    assert result.flags.writeable
    np.testing.assert_allclose(result.sum(0), 1, atol=1e-5)


@needs_pydensecrf
def test_probabilities_of_0_and_1_are_clipped() -> None:
    image, _ = noise()
    hard = np.zeros((2, 23, 31), np.float32)
    hard[0, :, :15] = hard[1, :, 15:] = 1
    result = dense_crf(image, hard)
    assert np.isfinite(result).all()
    clipped = hard.clip(1e-6, 1 - 1e-6)
    np.testing.assert_array_equal(result, dense_crf(image, clipped))
    # As a resize in float32 may return.
    beyond = np.where(hard == 1, np.float32(1 + 2e-7), np.float32(-2e-7))
    np.testing.assert_array_equal(result, dense_crf(image, beyond))
    assert torch.isfinite(refine(ellipse()[0], ellipse()[2].float())).all()


@needs_pydensecrf
def test_input_of_any_strides_is_not_changed() -> None:
    image, probabilities = noise(3)
    usual = dense_crf(image, probabilities)
    wide = np.repeat(image, 2, axis=1)[:, ::2]
    for other in (np.asfortranarray(image), image[::-1, ::-1].copy()[::-1, ::-1], wide):
        for planes in (np.asfortranarray(probabilities), probabilities[::-1].copy()[::-1]):
            other.flags.writeable = planes.flags.writeable = False
            before = other.copy(), planes.copy()
            np.testing.assert_array_equal(dense_crf(other, planes), usual)
            np.testing.assert_array_equal(other, before[0])
            np.testing.assert_array_equal(planes, before[1])


@needs_pydensecrf
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_tensors_of_any_floating_dtype(dtype: torch.dtype) -> None:
    image, guess, _ = ellipse()
    values = guess.to(dtype).requires_grad_()
    result = refine(image, values)
    assert (result.dtype, result.requires_grad) == (torch.float32, False)
    assert torch.equal(result, refine(image, values.detach().float()))


def changed(values: np.ndarray, value: float) -> np.ndarray:
    values = values.copy()
    values[1, 3, 4] = value
    return values


IMAGE, VALUES = noise()


@pytest.mark.parametrize(
    ("image", "values", "error", "message"),
    [
        (IMAGE.astype(np.float32), VALUES, TypeError, "image must have dtype uint8, but it has float32"),
        (IMAGE.tolist(), VALUES, TypeError, "image must be an array, but it is a list"),
        (IMAGE.transpose(2, 0, 1), VALUES, ValueError, r"image must be \[H, W, 3\] .* is \[3, 23, 31\]"),
        (IMAGE[..., 0], VALUES, ValueError, r"image must be \[H, W, 3\] .* is \[23, 31\]"),
        (IMAGE[:0], VALUES[:, :0], ValueError, "image must be .* at least one pixel"),
        (IMAGE, torch.from_numpy(VALUES), TypeError, "probabilities must be an array, but it is a Tensor"),
        (IMAGE, VALUES > 0.5, TypeError, "probabilities must have a floating-point dtype, but it has bool"),
        (IMAGE, VALUES[0], ValueError, r"must be \[L, 23, 31\], .* their shape is \[23, 31\]"),
        (IMAGE, VALUES[:1], ValueError, r"with L >= 2, but their shape is \[1, 23, 31\]"),
        (IMAGE, VALUES[:, 1:], ValueError, r"must be \[L, 23, 31\], .* is \[2, 22, 31\]"),
        (IMAGE, changed(VALUES, np.nan), ValueError, r"must be in \[0, 1\], but they go from nan"),
        (IMAGE, changed(VALUES, 1.01), ValueError, r"must be in \[0, 1\], .* from 0\.\d+ to 1\.0"),
        (IMAGE, changed(VALUES, -0.01), ValueError, r"must be in \[0, 1\], .* from -0\.0"),
    ],
)  # fmt: skip
def test_wrong_input(image: object, values: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        dense_crf(image, values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda i, p: (i.numpy(), p), TypeError, "image must be a tensor, but it is a ndarray"),
        (lambda i, p: (i.float(), p), TypeError, "image must have dtype uint8"),
        (lambda i, p: (i.permute(1, 2, 0), p), ValueError, r"image must be \[3, H, W\]"),
        (lambda i, p: (i, p[None]), ValueError, r"probability must be \[H, W\]"),
        (lambda i, p: (i, p * 2), ValueError, r"probabilities must be in \[0, 1\]"),
        (lambda i, p: (i, p.long()), TypeError, "probability must have a floating-point dtype"),
        (lambda i, p: (i, p[1:]), ValueError, r"must be \[L, 61, 83\], like the image"),
    ],
)
def test_wrong_input_to_refine(
    change: Callable[..., tuple[Tensor, Tensor]], error: type[Exception], message: str
) -> None:
    image, probability, _ = ellipse()
    with pytest.raises(error, match=message):
        refine(*change(image, probability))


def test_message_without_pydensecrf_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    for call in (lambda: dense_crf(*noise()), lambda: RefinementPool(1)):
        with pytest.raises(ImportError, match="pip install .*C\\+\\+ compiler") as caught:
            call()
        newer = sys.version_info >= (3, 13)
        assert ("pydensecrf2" if newer else "'cmsa_fast[crf]'") in str(caught.value)


def test_import_loads_neither_torch_nor_pydensecrf() -> None:
    code = "import sys, cmsa_fast.evaluation.crf_pool; sys.exit(bool({'torch', 'pydensecrf'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0


@needs_pydensecrf
def test_mask_follows_the_colour_edge() -> None:
    image, guess, truth = ellipse()
    before = iou(guess > 0.5, truth)
    result = refine(image, guess)
    assert (result.shape, result.dtype) == (guess.shape, torch.float32)
    assert before < 0.85
    assert iou(result > 0.5, truth) > 0.97
    # Without edges the mask is only smoothed.
    flat = refine(torch.full_like(image, 90), guess)
    assert iou(flat > 0.5, truth) < 0.9


@needs_pydensecrf
def test_refine_is_the_foreground_of_two_labels_and_deterministic() -> None:
    image, guess, _ = ellipse()
    parameters = CrfParameters(bilateral_srgb=7)
    planes = torch.stack([1 - guess, guess]).numpy()
    both = dense_crf(image.permute(1, 2, 0).numpy(), planes, parameters)
    first = refine(image, guess, parameters)
    assert np.array_equal(first.numpy(), both[1])
    assert torch.equal(first, refine(image, guess, parameters))


@needs_pydensecrf
@pytest.mark.parametrize("name", ["1", "1-b"])
def test_example_of_pydensecrf(real: Path, name: str) -> None:
    """Labels as in pydensecrf's examples/inference.py: black is unknown, the others have probability 0.7."""
    folder = real / "crf"

    def colours(file: str) -> np.ndarray:
        return np.asarray(Image.open(folder / file).convert("RGB")) @ np.array([1, 256, 65536])

    image = np.asarray(Image.open(folder / "im1.png").convert("RGB"))
    annotation = colours(f"anno{name}.png")
    labels = np.array([colour for colour in np.unique(annotation) if colour])
    sure = np.where(annotation == labels[:, None, None], 0.7, 0.3 / (len(labels) - 1))
    probabilities = np.where(annotation == 0, 1 / len(labels), sure)
    result = dense_crf(image, probabilities, CrfParameters(bilateral_sxy=80, bilateral_srgb=13))
    expected = colours(f"out{name}.png")
    # The annotation itself agrees less.
    assert (annotation == expected).mean() < 0.99
    assert (labels[result.argmax(0)] == expected).mean() >= 0.998
