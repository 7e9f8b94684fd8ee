"""Time of the dense CRF on images of your own, in this process and by a pool of processes.

    python -m benchmarks.crf image.jpg ... --processes 2

The time depends on the image (on how many different colours are close to one another), so real images are needed.
Rounds of both are interleaved, and medians are reported.
"""

import argparse
import statistics
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cmsa_fast.evaluation.crf import refine
from cmsa_fast.evaluation.crf_pool import RefinementPool

from .measuring import time_interleaved


def read(path: Path) -> tuple[Tensor, Tensor]:
    """An image, uint8 [3, H, W], and the probabilities of a blurred ellipse, float32 [H, W]."""
    with Image.open(path) as photo:
        image = torch.from_numpy(np.array(photo.convert("RGB"))).permute(2, 0, 1)
    height, width = image.shape[1:]
    y = torch.linspace(-1, 1, height)[:, None]
    x = torch.linspace(-1, 1, width)
    return image, torch.sigmoid(6 * (0.5 - x**2 - y**2))


def measure(pairs: list[tuple[Tensor, Tensor]], processes: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of every round over all images, by `refine` and by the pool, after checking that both agree."""
    with RefinementPool(processes) as pool:

        def refine_by_pool() -> list[Tensor]:
            return [future.result() for future in [pool.submit(*pair) for pair in pairs]]

        # Starts the processes, which an evaluation does only once; that time is not counted.
        for future in [pool.submit(*pairs[0]) for _ in range(2 * processes)]:
            future.result()
        pooled = refine_by_pool()
        if not all(map(torch.equal, [refine(*pair) for pair in pairs], pooled)):
            raise RuntimeError("The pool's results differ from those of direct calls.")
        runs = {"refine": lambda: [refine(*pair) for pair in pairs], "pool": refine_by_pool}
        return time_interleaved(runs, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    pairs = [read(path) for path in arguments.images]
    megapixels = sum(probability.numel() for _, probability in pairs) / 1e6
    for name, seconds in measure(pairs, arguments.processes, arguments.rounds).items():
        median = statistics.median(seconds)
        print(
            f"{name:8s} {1000 * median / len(pairs):7.1f} ms per image, "
            f"{median / megapixels:5.2f} s per megapixel "
            f"({len(pairs)} images, {arguments.processes} processes in the pool)"
        )


if __name__ == "__main__":
    main()
