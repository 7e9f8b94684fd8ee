"""Each convention against a direct implementation of its repository's rule."""

from __future__ import annotations

import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as vision

from cmsa_fast.data.transforms import Letterbox
from cmsa_fast.evaluation.conventions import CONVENTIONS, conventions_table

NAMES = ("native", "cmsa", "lavt", "cris")

# Height and width of the image and the side of the square: landscape, portrait, square, a line, larger and
# smaller than the square. In the last three, centres of pixels coincide.
SIZES = [
    (29, 41, 17),
    (53, 22, 19),
    (31, 31, 16),
    (1, 37, 15),
    (14, 9, 23),
    (45, 33, 15),
    (24, 17, 8),
    (13, 16, 16),
]


def probabilities(size: int, seed: int = 0) -> Tensor:
    """By seed: random values, single pixels, a rectangle, values at the thresholds."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(size, size, generator=generator)
    if seed % 4 == 1:
        return (values > 0.9).float()
    if seed % 4 == 2:
        blob = torch.zeros(size, size)
        blob[size // 3 : size - 2, size // 4 : size // 2] = 0.9
        return blob
    if seed % 4 == 3:
        return torch.tensor([0.0, 0.35, 0.5, 1.0])[(values * 4).long()]
    return values


def centre(place: int, length: int, source: int) -> Fraction:
    """Centre of one of `length` pixels, in pixels of a row of `source` pixels of the same extent."""
    return Fraction(2 * place + 1, 2) * Fraction(source, length) - Fraction(1, 2)


def bilinear(length: int, source: int) -> np.ndarray:
    """[length, source] weights of bilinear interpolation, exact zeros; the edge is repeated."""
    weights = np.zeros((length, source))
    for place in range(length):
        position = min(max(centre(place, length, source), Fraction(0)), Fraction(source - 1))
        low = math.floor(position)
        weights[place, low] += float(1 - (position - low))
        if position > low:
            weights[place, low + 1] += float(position - low)
    return weights


def keys_cubic(distance: float) -> float:
    """The bicubic kernel of OpenCV, a = -0.75."""
    a, x = -0.75, abs(distance)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def agree(mask: Tensor, values: np.ndarray, threshold: float) -> bool:
    """Whether a mask is `values > threshold`, except for values within rounding of the threshold."""
    clear = abs(values - threshold) > 1e-5
    return mask.shape == values.shape and bool(
        (mask.numpy() == (values > threshold))[clear].all() and clear.mean() > 0.5
    )


def inside(box: Letterbox, square: np.ndarray) -> np.ndarray:
    return square[box.top : box.top + box.scaled_height, box.left : box.left + box.scaled_width]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("name", "height", "width", "size"),
    # Where an image is smaller than the square, native averages pixels, which `bilinear` does not.
    [("native", *size) for size in SIZES if max(size[:2]) > size[2]] + [("lavt", *size) for size in SIZES],
)
def test_native_and_lavt(name: str, height: int, width: int, size: int, seed: int) -> None:
    box, square = Letterbox(height, width, size), probabilities(size, seed)
    part = inside(box, square.double().numpy())
    lengths = (480, 480) if name == "lavt" else (height, width)
    rows, columns = map(bilinear, lengths, part.shape)
    mask = CONVENTIONS[name].prediction(square, box)
    assert agree(mask, rows @ part @ columns.T, 0.5)


@pytest.mark.parametrize("name", ["native", "lavt"])
def test_probability_of_one_half_is_not_predicted(name: str) -> None:
    for value, expected in ((0.5, False), (0.5001, True)):
        mask = CONVENTIONS[name].prediction(torch.full((8, 8), value), Letterbox(8, 8, 8))
        assert bool(mask.all()) is bool(mask.any()) is expected


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("height", "width", "size"), SIZES)
def test_cmsa(height: int, width: int, size: int, seed: int) -> None:
    square = probabilities(size, seed)
    cut = (square.numpy() >= 0.5).astype(float)
    # The repository's steps: enlarge the square, crop the middle, keep what is not zero.
    scale = max(Fraction(height, size), Fraction(width, size))
    side = round(size * scale)
    weights = bilinear(side, size)
    enlarged = weights @ cut @ weights.T
    top, left = int(np.floor(side - height) / 2), int(np.floor(side - width) / 2)
    expected = np.logical_and(enlarged[top : top + height, left : left + width], True)
    mask = CONVENTIONS["cmsa"].prediction(square, Letterbox(height, width, size))
    assert np.array_equal(mask.numpy(), expected)


def test_cmsa_thickens_a_pixel_and_includes_the_padding() -> None:
    square = torch.zeros(8, 8)
    square[4, 4] = 0.5
    mask = CONVENTIONS["cmsa"].prediction(square, Letterbox(16, 16, 8))
    assert mask.nonzero().min(0).values.tolist() == [7, 7]
    assert mask.nonzero().max(0).values.tolist() == [10, 10]
    assert int(mask.sum()) == 16
    square = torch.zeros(8, 8)
    square[1] = 1  # the last row of padding
    mask = CONVENTIONS["cmsa"].prediction(square, Letterbox(8, 16, 8))
    assert mask[0].all()
    assert not mask[1:].any()


@pytest.mark.parametrize(("height", "width"), [(427, 640), (640, 480), (480, 480), (37, 1021), (1, 1), (960, 320)])
def test_lavt_truth(height: int, width: int) -> None:
    mask = torch.rand(height, width, generator=torch.Generator().manual_seed(1)) < 0.5
    image = Image.fromarray(mask.numpy().astype(np.uint8))
    resized = vision.resize(image, [480, 480], interpolation=vision.InterpolationMode.NEAREST)
    truth = CONVENTIONS["lavt"].truth(mask)
    assert truth.dtype == torch.bool
    assert np.array_equal(truth.numpy(), np.array(resized) == 1)


def test_lavt_truth_by_hand() -> None:
    quarters = torch.tensor([[True, False], [False, True]])
    halves = torch.arange(480) < 240
    assert torch.equal(CONVENTIONS["lavt"].truth(quarters), halves[:, None] == halves)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("height", "width", "size"), SIZES)
def test_cris(height: int, width: int, size: int, seed: int) -> None:
    box, square = Letterbox(height, width, size), probabilities(size, seed)

    def weights(length: int, scaled: int, start: int) -> np.ndarray:
        # Over the whole square, with zeros beyond it.
        places = [start + float(centre(place, length, scaled)) for place in range(length)]
        return np.array([[keys_cubic(p - pixel) for pixel in range(size)] for p in places])

    rows = weights(height, box.scaled_height, box.top)
    columns = weights(width, box.scaled_width, box.left)
    expected = rows @ square.double().numpy() @ columns.T
    mask = CONVENTIONS["cris"].prediction(square, box)
    assert agree(mask, expected, 0.35)


@pytest.mark.parametrize("name", NAMES)
def test_truth_at_own_size_is_the_mask_itself(name: str) -> None:
    mask = torch.eye(7, dtype=torch.bool)[:5]
    truth = CONVENTIONS[name].truth(mask)
    assert (truth is mask) is (name != "lavt")


@pytest.mark.parametrize("name", NAMES)
def test_at_own_size(name: str) -> None:
    convention = CONVENTIONS[name]
    values = probabilities(61, 3)[:37]
    mask = convention.prediction_at_own_size(values)
    if name == "lavt":
        expected = bilinear(480, 37) @ values.double().numpy() @ bilinear(480, 61).T
        assert agree(mask, expected, 0.5)
    elif name == "cmsa":
        assert torch.equal(mask, values >= 0.5)
    else:
        assert torch.equal(mask, values > (0.35 if name == "cris" else 0.5))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("height", "width", "size"), SIZES)
def test_prediction_and_truth_have_one_size(name: str, height: int, width: int, size: int) -> None:
    convention = CONVENTIONS[name]
    truth = torch.ones(height, width, dtype=torch.bool)
    metrics = convention.metrics()
    box = Letterbox(height, width, size)
    metrics.update(convention.prediction(torch.ones(size, size), box), convention.truth(truth))
    metrics.update(convention.prediction_at_own_size(truth.float()), convention.truth(truth))
    # CRIS uses zeros beyond the square, which removes a little at the edge.
    assert metrics.compute()["overall_iou"] == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_every_floating_dtype_and_any_strides(name: str, dtype: torch.dtype) -> None:
    square, box = probabilities(18, 2).to(dtype), Letterbox(30, 41, 18)
    mask = CONVENTIONS[name].prediction(square, box)
    assert mask.dtype == torch.bool
    wide = torch.zeros(18, 36, dtype=dtype)
    wide[:, ::2] = square
    strided = wide.mT.contiguous().mT[:, ::2].requires_grad_()
    assert torch.equal(CONVENTIONS[name].prediction(strided, box), mask)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here")
@pytest.mark.parametrize("name", NAMES)
def test_on_a_gpu(name: str) -> None:
    convention, box, square = CONVENTIONS[name], Letterbox(30, 41, 18), probabilities(18, 2)
    mask = convention.prediction(square.cuda(), box)
    assert mask.is_cuda
    assert (mask.cpu() == convention.prediction(square, box)).float().mean() > 0.999
    assert convention.truth(mask).is_cuda


def evaluated(name: str, counts: list[tuple[int, int]]) -> tuple[list[float], list[float]]:
    """IoU of each expression and precision at 0.5 to 0.9, as in the repository's loop."""
    ious, passed = [], np.zeros(5)
    for intersection, union in counts:
        if name == "cris":
            iou = np.int64(intersection) / (np.int64(union) + 1e-6)
            passed += [iou > threshold for threshold in (0.5, 0.6, 0.7, 0.8, 0.9)]
        else:
            iou = 0.0 if union == 0 else intersection * 1.0 / union
            passed += [iou >= threshold for threshold in (0.5, 0.6, 0.7, 0.8, 0.9)]
        ious.append(float(iou))
    return ious, (passed / len(counts)).tolist()


@pytest.mark.parametrize("name", ["cmsa", "lavt", "cris"])
def test_metrics_are_those_of_the_repository(name: str) -> None:
    random = np.random.default_rng(4)
    counts = [(tenths * n, 10 * n) for tenths in range(11) for n in (1, 3, 30720)]
    counts += [(int(u * random.random()), u) for u in random.integers(1, 300000, 300).tolist()]
    if name != "cmsa":
        counts.append((0, 0))
    metrics = CONVENTIONS[name].metrics()
    for intersection, union in counts:
        metrics.add(intersection, intersection, union)
    ious, precisions = evaluated(name, counts)
    values = metrics.compute()
    assert metrics.ious == ious
    assert values["mean_iou"] == pytest.approx(np.mean(ious), rel=1e-12)
    assert [values[f"precision@0.{tenths}"] for tenths in (5, 6, 7, 8, 9)] == precisions
    assert values["overall_iou"] == sum(i for i, _ in counts) / sum(u for _, u in counts)


def test_attributes() -> None:
    assert tuple(CONVENTIONS) == NAMES
    assert [c.name for c in CONVENTIONS.values() if c.refine_at == "square"] == ["cmsa"]
    assert [c.empty_union_iou for c in CONVENTIONS.values()] == [1, 1, 0, 0]
    assert [c.name for c in CONVENTIONS.values() if c.headline == "mean_iou"] == ["cris"]


def test_conventions_pickle() -> None:
    assert pickle.loads(pickle.dumps(CONVENTIONS)) == CONVENTIONS


def test_table() -> None:
    table = conventions_table()
    assert max(map(len, table.splitlines())) <= 100
    rows = {line.split()[0]: line for line in table.splitlines()[1:5]}
    assert tuple(rows) == NAMES
    for name, convention in CONVENTIONS.items():
        assert convention.where in rows[name]
        assert f" {convention.threshold:g} " in rows[name]
        assert f"IoU {convention.empty_union_iou}" in rows[name]
        assert convention.source in table
    assert "I/(U+1e-6)" in rows["cris"]
    for formula in ("sum of I / sum of U", "mean over all expressions", "precision@t"):
        assert formula in table


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (torch.ones(8, 8, dtype=torch.bool), TypeError, "must be a floating-point tensor"),
        (np.ones((8, 8)), TypeError, "must be a floating-point tensor; got ndarray"),
        (torch.ones(1, 8, 8), ValueError, r"must be \[H, W\] with at least one pixel"),
        (torch.ones(8, 9), ValueError, r"must be \[8, 8\]; got \[8, 9\]"),
        (torch.full((8, 8), 3.0), ValueError, "it is from 3.0 to 3.0; logits need a sigmoid"),
        (torch.full((8, 8), -0.1), ValueError, r"must be in \[0, 1\]"),
        (torch.full((8, 8), torch.nan), ValueError, r"must be in \[0, 1\], but it is from nan"),
    ],
)
def test_wrong_probabilities(name: str, bad: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        CONVENTIONS[name].prediction(bad, Letterbox(12, 9, 8))
    if "8, 8" not in message:
        with pytest.raises(error, match=message):
            CONVENTIONS[name].prediction_at_own_size(bad)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (torch.ones(3, 4), TypeError, "mask must be a bool tensor; got torch.float32"),
        (torch.ones(3, dtype=torch.bool), ValueError, r"mask must be \[H, W\]"),
        (torch.ones(3, 0, dtype=torch.bool), ValueError, "at least one pixel"),
    ],
)
def test_wrong_masks(name: str, bad: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        CONVENTIONS[name].truth(bad)
