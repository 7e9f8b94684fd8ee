"""The dense CRF: parameters, input, what it does to masks, and its pool of processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cmsa_fast.evaluation.crf import PRESETS, RefinementPool, dense_crf, refine

REPOSITORY = Path(__file__).resolve().parents[2]
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


def ragged(height: int = 61, width: int = 83) -> tuple[Tensor, Tensor, Tensor]:
    """A red ellipse on green, a noisy blurred guess at it, and the truth."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    truth = ((y - 30) / 19.0) ** 2 + ((x - 44) / 27.0) ** 2 < 1
    red, green = (torch.tensor(colour)[:, None, None] for colour in ([200, 40, 40], [40, 160, 60]))
    image = torch.where(truth, red, green)
    generator = torch.Generator().manual_seed(5)
    shifted = truth.roll((3, 4), (0, 1)).float()
    guess = 0.2 + 0.6 * shifted + 0.4 * (torch.rand(height, width, generator=generator) - 0.5)
    return image.to(torch.uint8), guess.clamp(0, 1), truth


def iou(first: Tensor, second: Tensor) -> float:
    return float((first & second).sum() / (first | second).sum())


# Parameters


@needs_pydensecrf
@pytest.mark.parametrize("name", PAPER)
def test_a_given_parameter_stands_in_for_the_presets(name: str) -> None:
    image, probabilities = noise()
    usual = dense_crf(image, probabilities)
    np.testing.assert_array_equal(dense_crf(image, probabilities, **{name: PAPER[name]}), usual)
    np.testing.assert_array_equal(dense_crf(image, probabilities, **{name: None}), usual)
    assert not np.array_equal(dense_crf(image, probabilities, **{name: 2 * PAPER[name]}), usual)


def test_the_paper_preset_is_the_published_one() -> None:
    assert vars(PRESETS["paper"]) == PAPER


@pytest.mark.parametrize("name", PAPER)
@pytest.mark.parametrize(
    ("value", "error"),
    [
        (0, ValueError),
        (-1, ValueError),
        (float("nan"), None),
        (float("inf"), None),
        ("3", TypeError),
        (True, TypeError),
    ],
)
def test_bad_parameters(name: str, value: object, error: type[Exception] | None) -> None:
    if error is None:
        error = TypeError if name == "iterations" else ValueError
    for call in (
        lambda: dense_crf(*noise(), **{name: value}),
        lambda: RefinementPool(1, **{name: value}),
    ):
        with pytest.raises(
            error, match=f"^{name} must be .* at least 1|^{name} must be a positive"
        ):
            call()


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match=r"^preset must be one of paper, but it is 'potts'\.$"):
        dense_crf(*noise(), preset="potts")
    with pytest.raises(TypeError, match="^sxy is no parameter of the CRF; there are gaussian_sxy,"):
        refine(*ragged()[:2], sxy=3)


@needs_pydensecrf
@pytest.mark.parametrize("name", ["gaussian_sxy", "bilateral_sxy", "bilateral_srgb"])
def test_too_small_deviations_are_refused_and_small_ones_work(name: str) -> None:
    image, probabilities = noise()
    image *= 28  # the whole range of colours
    with pytest.raises(ValueError, match=f"^{name} must be at least .* 31 x 23 pixels"):
        dense_crf(image, probabilities, **{name: 1e-30})
    range_, extent = {
        "gaussian_sxy": (10_000, 31),
        "bilateral_sxy": (3_000, 31),
        "bilateral_srgb": (3_000, 255),
    }[name]
    least = dense_crf(image, probabilities, **{name: extent / range_})
    # No two different places or colours are in reach of either, so the results agree but for the lattice.
    more = dense_crf(image, probabilities, **{name: 3 * extent / range_})
    assert np.abs(least - more).mean() < 0.01


@needs_pydensecrf
def test_energies_beyond_float32_are_refused() -> None:
    with pytest.raises(ValueError, match="gaussian_compat and bilateral_compat are too large"):
        dense_crf(*noise(), gaussian_compat=1e39)


# Input


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
def test_saturated_input_is_clipped() -> None:
    image, _ = noise()
    hard = np.zeros((2, 23, 31), np.float32)
    hard[0, :, :15] = hard[1, :, 15:] = 1
    result = dense_crf(image, hard)
    assert np.isfinite(result).all()
    clipped = hard.clip(1e-6, 1 - 1e-6)
    np.testing.assert_array_equal(result, dense_crf(image, clipped))
    # What a resize in float32 may leave.
    beyond = np.where(hard == 1, np.float32(1 + 2e-7), np.float32(-2e-7))
    np.testing.assert_array_equal(result, dense_crf(image, beyond))
    assert torch.isfinite(refine(ragged()[0], ragged()[2].float())).all()


@needs_pydensecrf
def test_any_strides_and_read_only_input_left_as_it_was() -> None:
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
def test_arrays_and_tensors() -> None:
    image, probabilities = noise()
    usual = dense_crf(image, probabilities)
    tensors = torch.from_numpy(image), torch.from_numpy(probabilities).requires_grad_()
    result = dense_crf(*tensors)
    assert isinstance(result, Tensor)
    assert not result.requires_grad
    np.testing.assert_array_equal(result.numpy(), usual)
    assert isinstance(dense_crf(tensors[0], probabilities), np.ndarray)
    assert isinstance(dense_crf(image, tensors[1]), Tensor)


@needs_pydensecrf
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_floating_dtypes(dtype: torch.dtype) -> None:
    image, probabilities = noise()
    values = torch.from_numpy(probabilities).to(dtype)
    result = dense_crf(image, values)
    assert result.dtype == torch.float32
    assert torch.equal(result, dense_crf(image, values.float()))


def changed(values: np.ndarray, value: float) -> np.ndarray:
    values = values.copy()
    values[1, 3, 4] = value
    return values


IMAGE, VALUES = noise()


@pytest.mark.parametrize(
    ("image", "values", "error", "message"),
    [
        (IMAGE.astype(np.float32), VALUES, TypeError, "image must have dtype uint8, but it has float32"),
        (IMAGE.tolist(), VALUES, TypeError, "image must be an array or a tensor, but it is a list"),
        (IMAGE.transpose(2, 0, 1), VALUES, ValueError, r"image must be \[H, W, 3\], .* is \[3, 23, 31\]"),
        (IMAGE[..., 0], VALUES, ValueError, r"image must be \[H, W, 3\], but its shape is \[23, 31\]"),
        (IMAGE, VALUES.tolist(), TypeError, "probabilities must be an array or a tensor, but it is a list"),
        (IMAGE, VALUES > 0.5, TypeError, "probabilities must have a floating dtype, but it has bool"),
        (IMAGE, VALUES[0], ValueError, r"probabilities must be \[L, H, W\], but their shape is \[23, 31\]"),
        (IMAGE, VALUES[:1], ValueError, "probabilities must have at least 2 labels, but they have 1"),
        (IMAGE, VALUES[:, 1:], ValueError, r"one size, but they have \[23, 31\] and \[22, 31\]"),
        (IMAGE[:0], VALUES[:, :0], ValueError, "image must have pixels"),
        (IMAGE, changed(VALUES, np.nan), ValueError, r"probabilities must be in \[0, 1\], but there are NaN"),
        (IMAGE, changed(VALUES, 1.01), ValueError, r"probabilities must be in \[0, 1\], .* from 0\.\d+ to 1\.0"),
        (IMAGE, changed(VALUES, -0.01), ValueError, r"probabilities must be in \[0, 1\], .* from -0\.0"),
        (IMAGE, changed(VALUES, np.inf), ValueError, r"probabilities must be in \[0, 1\], .* to inf"),
    ],
)  # fmt: skip
def test_bad_input(image: object, values: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        dense_crf(image, values)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda i, p: (i.numpy(), p), TypeError, "image must be a tensor, but it is a ndarray"),
        (lambda i, p: (i.permute(1, 2, 0), p), ValueError, r"image must be \[3, H, W\]"),
        (lambda i, p: (i, p[None]), ValueError, r"probability must be \[H, W\]"),
        (lambda i, p: (i, p * 2), ValueError, r"probability must be in \[0, 1\]"),
        (lambda i, p: (i, p.long()), TypeError, "probability must have a floating dtype"),
        (lambda i, p: (i, p[1:]), ValueError, "must have one size"),
    ],
)
def test_bad_input_to_refine(change, error: type[Exception], message: str) -> None:
    image, probability, _ = ragged()
    with pytest.raises(error, match=message):
        refine(*change(image, probability))


def test_without_pydensecrf_the_message_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    for call in (lambda: dense_crf(*noise()), lambda: RefinementPool(1)):
        with pytest.raises(ImportError, match="pip install .*C\\+\\+ compiler") as caught:
            call()
        newer = sys.version_info >= (3, 13)
        assert ("pydensecrf2" if newer else "'cmsa_fast[crf]'") in str(caught.value)


def test_import_loads_neither_torch_nor_pydensecrf() -> None:
    code = "import sys, cmsa_fast.evaluation.crf; sys.exit('torch' in sys.modules or 'pydensecrf' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0


# What it does to masks


@needs_pydensecrf
def test_a_ragged_mask_is_drawn_to_the_colour_edge() -> None:
    image, guess, truth = ragged()
    before = iou(guess > 0.5, truth)
    result = refine(image, guess)
    assert (result.shape, result.dtype) == (guess.shape, torch.float32)
    assert before < 0.85
    assert iou(result > 0.5, truth) > 0.97
    # Without edges to draw it to, the mask only becomes smoother.
    flat = refine(torch.full_like(image, 90), guess)
    assert iou(flat > 0.5, truth) < 0.9


@needs_pydensecrf
def test_refine_is_the_foreground_of_two_labels_and_repeats_itself() -> None:
    image, guess, _ = ragged()
    both = dense_crf(image.permute(1, 2, 0), torch.stack([1 - guess, guess]), bilateral_srgb=7)
    first = refine(image, guess, bilateral_srgb=7)
    assert torch.equal(first, both[1])
    assert torch.equal(first, refine(image, guess, bilateral_srgb=7))


@needs_pydensecrf
@pytest.mark.parametrize("name", ["1", "1-b"])
def test_upstreams_example(real: Path, name: str) -> None:
    """The labels are those of pydensecrf's examples/inference.py: black is unknown, others are 70 % sure."""
    folder = real / "crf"

    def colours(file: str) -> np.ndarray:
        return np.asarray(Image.open(folder / file).convert("RGB")) @ np.array([1, 256, 65536])

    image = np.asarray(Image.open(folder / "im1.png").convert("RGB"))
    annotation = colours(f"anno{name}.png")
    labels = np.array([colour for colour in np.unique(annotation) if colour])
    sure = np.where(annotation == labels[:, None, None], 0.7, 0.3 / (len(labels) - 1))
    probabilities = np.where(annotation == 0, 1 / len(labels), sure)
    result = dense_crf(image, probabilities, bilateral_sxy=80, bilateral_srgb=13)
    expected = colours(f"out{name}.png")
    # The annotation by itself is far from it, so that agreement is the CRF's doing.
    assert (annotation == expected).mean() < 0.99
    assert (labels[result.argmax(0)] == expected).mean() >= 0.998


# The pool


@pytest.fixture(scope="module")
def pool() -> Iterator[RefinementPool]:
    pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf is not installed")
    with RefinementPool(2, iterations=3) as pool:
        yield pool


def test_pool_gives_what_a_direct_call_gives_in_order(pool: RefinementPool) -> None:
    pairs = []
    for i in range(20):
        image, guess, _ = ragged(61 + i % 3, 83 + 5 * i)
        pairs.append((image, guess))
    futures = [pool.submit(image, guess) for image, guess in pairs]
    for future, (image, guess) in zip(futures, pairs, strict=True):
        result = future.result(60)
        assert result.dtype == torch.float32
        assert torch.equal(result, refine(image, guess, iterations=3))


def test_pool_keeps_its_own_copy(pool: RefinementPool) -> None:
    image, guess, _ = ragged(301, 403)
    expected = refine(image, guess, iterations=3)
    futures = []
    for _ in range(4):
        own_image, own_guess = image.clone(), guess.clone()
        futures.append(pool.submit(own_image, own_guess))
        own_image.zero_()
        own_guess.zero_()
    assert all(torch.equal(future.result(60), expected) for future in futures)


def test_pool_hands_on_errors_and_goes_on(pool: RefinementPool) -> None:
    image, guess, _ = ragged()
    wrong = pool.submit(image, guess * 2)
    right = pool.submit(image, guess)
    with pytest.raises(ValueError, match=r"^probability must be in \[0, 1\], but the values"):
        wrong.result(60)
    assert right.result(60).shape == guess.shape
    with pytest.raises(TypeError, match="^probability must be a tensor, but it is a list"):
        pool.submit(image, guess.tolist())
    # More errors than there is room for: each must have given its place back.
    for _ in range(20):
        with pytest.raises(ValueError, match="one size"):
            pool.submit(image, guess[1:]).result(60)


@needs_pydensecrf
@pytest.mark.parametrize("processes", [0, -2, 1.5, True])
def test_pool_needs_a_process(processes: object) -> None:
    error = ValueError if type(processes) is int else TypeError
    with pytest.raises(error, match="^processes must be"):
        RefinementPool(processes)


def children(executor: ProcessPoolExecutor) -> list[int]:
    return list(executor._processes)


@needs_pydensecrf
def test_pool_holds_submit_back_and_names_a_killed_process() -> None:
    image, guess, _ = ragged(301, 403)
    with RefinementPool(1) as pool:
        pool.submit(image, guess).result(60)
        (worker,) = children(pool._executor)
        os.kill(worker, signal.SIGSTOP)
        futures = [pool.submit(image, guess) for _ in range(4)]
        assert not pool._room.acquire(blocking=False)
        os.kill(worker, signal.SIGKILL)
        for future in futures:
            with pytest.raises(ChildProcessError, match="^A process of the refinement pool ended"):
                future.result(60)
        with pytest.raises(ChildProcessError, match="^A process of the refinement pool ended"):
            pool.submit(image, guess)


@needs_pydensecrf
def test_pool_left_by_an_exception_drops_what_has_not_begun() -> None:
    image, guess, _ = ragged()
    with pytest.raises(ZeroDivisionError), RefinementPool(1) as pool:  # noqa: PT012
        futures = [pool.submit(image, guess) for _ in range(4)]
        raise ZeroDivisionError
    assert all(future.done() for future in futures)
    with pytest.raises(CancelledError, match="closed before this map's turn"):
        futures[-1].result()
    with pytest.raises(RuntimeError, match="shutdown"):
        pool.submit(image, guess)


SCRIPT = """
if __name__ == "__main__":
    import torch
    from cmsa_fast.evaluation.crf import RefinementPool

    image = torch.randint(256, (3, 200, 300), dtype=torch.uint8)
    with RefinementPool(2) as pool:
        # Several under way at once, so that both processes are there.
        for future in [pool.submit(image, torch.rand(200, 300)) for _ in range(4)]:
            future.result()
        print(*pool._executor._processes, flush=True)
        while True:
            pool.submit(image, torch.rand(200, 300))
"""


def running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def blocks(process: int, number: signal.Signals) -> bool:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    mask = next(line.split()[1] for line in lines if line.startswith("SigBlk:"))
    return bool(int(mask, 16) >> (number - 1) & 1)


@needs_pydensecrf
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)]
)
def test_processes_end_with_the_main_process(number: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "main.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    main = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        workers = [int(word) for word in main.stdout.readline().split()]
        assert len(workers) == 2
        assert all(running(worker) for worker in workers)
        # From their first moment, before Python code of ours could see to it.
        assert all(blocks(worker, signal.SIGINT) for worker in workers)
        if number == signal.SIGINT:
            os.killpg(main.pid, number)  # as a terminal does: to every process of the group
        else:
            main.kill()
        _, errors = main.communicate(timeout=60)
    finally:
        main.kill()
        main.wait()
    deadline = time.monotonic() + 30
    while any(running(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(running(worker) for worker in workers)
    if number == signal.SIGINT:
        # One traceback, the main process's own.
        assert errors.count("Traceback") == 1
        assert errors.rstrip().endswith("KeyboardInterrupt")
