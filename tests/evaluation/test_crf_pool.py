"""The pool of processes that run the dense CRF: results, errors, back-pressure, and its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY
from support.ellipse import ellipse

from cmsa_fast.evaluation.crf import CrfParameters, refine
from cmsa_fast.evaluation.crf_pool import RefinementPool

pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf is not installed")

THREE = CrfParameters(iterations=3)


@pytest.fixture(scope="module")
def pool() -> Iterator[RefinementPool]:
    with RefinementPool(2, THREE) as pool:
        yield pool


def test_results_are_those_of_direct_calls(pool: RefinementPool) -> None:
    pairs = []
    for i in range(20):
        image, guess, _ = ellipse(61 + i % 3, 83 + 5 * i)
        pairs.append((image, guess))
    futures = [pool.submit(image, guess) for image, guess in pairs]
    for future, (image, guess) in zip(futures, pairs, strict=True):
        result = future.result(60)
        assert result.dtype == torch.float32
        assert torch.equal(result, refine(image, guess, THREE))


def test_input_is_copied(pool: RefinementPool) -> None:
    image, guess, _ = ellipse(301, 403)
    expected = refine(image, guess, THREE)
    futures = []
    for _ in range(4):
        own_image, own_guess = image.clone(), guess.clone()
        futures.append(pool.submit(own_image, own_guess))
        own_image.zero_()
        own_guess.zero_()
    assert all(torch.equal(future.result(60), expected) for future in futures)


def test_errors_are_passed_on(pool: RefinementPool) -> None:
    image, guess, _ = ellipse()
    wrong = pool.submit(image, guess * 2)
    right = pool.submit(image, guess)
    with pytest.raises(ValueError, match=r"^probabilities must be in \[0, 1\]"):
        wrong.result(60)
    assert right.result(60).shape == guess.shape
    with pytest.raises(TypeError, match="^probability must be a tensor, but it is a list"):
        pool.submit(image, guess.tolist())
    # More errors than the pool has room for: each must release its place.
    for _ in range(20):
        with pytest.raises(ValueError, match="like the image"):
            pool.submit(image, guess[1:]).result(60)


@pytest.mark.parametrize("processes", [0, -2, 1.5, True])
def test_number_of_processes_is_checked(processes: object) -> None:
    error = ValueError if type(processes) is int else TypeError
    with pytest.raises(error, match="^processes must be"):
        RefinementPool(processes)


def test_submit_blocks_when_full_and_names_a_killed_process() -> None:
    image, guess, _ = ellipse(301, 403)
    with RefinementPool(1) as pool:
        pool.submit(image, guess).result(60)
        (worker,) = pool._executor._processes
        os.kill(worker, signal.SIGSTOP)
        futures = [pool.submit(image, guess) for _ in range(4)]
        assert not pool._room.acquire(blocking=False)
        os.kill(worker, signal.SIGKILL)
        for future in futures:
            with pytest.raises(ChildProcessError, match="^A process of the refinement pool ended"):
                future.result(60)
        with pytest.raises(ChildProcessError, match="^A process of the refinement pool ended"):
            pool.submit(image, guess)


def test_exception_drops_maps_that_have_not_started() -> None:
    image, guess, _ = ellipse()
    with pytest.raises(ZeroDivisionError), RefinementPool(1) as pool:  # noqa: PT012
        futures = [pool.submit(image, guess) for _ in range(4)]
        raise ZeroDivisionError
    assert all(future.done() for future in futures)
    with pytest.raises(CancelledError, match="closed before this map was refined"):
        futures[-1].result()
    with pytest.raises(RuntimeError, match="shutdown"):
        pool.submit(image, guess)


SCRIPT = """
if __name__ == "__main__":
    import torch
    from cmsa_fast.evaluation.crf_pool import RefinementPool

    image = torch.randint(256, (3, 60, 80), dtype=torch.uint8)
    with RefinementPool(2) as pool:
        # Several at once, so that both processes start.
        for future in [pool.submit(image, torch.rand(60, 80)) for _ in range(4)]:
            future.result()
        print(*pool._executor._processes, flush=True)
        while True:
            pool.submit(image, torch.rand(60, 80))
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


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
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
        # From their first moment, before any Python code of the package runs.
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
        # One traceback, that of the main process.
        assert errors.count("Traceback") == 1
        assert errors.rstrip().endswith("KeyboardInterrupt")
