"""Predicted times of calls: a roofline over the launches, with counted work and the rates of `architectures`.

Nothing here is measured. A Triton launch takes

    LAUNCH + max(compute, cache, memory)

- compute: tensor-core time at the rate of the instructions in the hot loops, and the time of exponentials and
  other float operations. With one CTA per multiprocessor they follow each other, else they overlap. Barriers and
  plain loads stall a CTA in each iteration; other resident CTAs use that time. All of it is multiplied by the
  number of CTAs on the busiest multiprocessor, which rounds up.
- cache: bytes loaded and stored by the programs, at the rate of the L2 cache.
- memory: bytes of the tensors, each read or written once (fewer if the programs move fewer), at the rate of the
  memory, or of the L2 cache if they fit into it together.

A PyTorch operator takes LAUNCH + max(FLOP at the sustained rate, memory).
"""

import math
from collections import Counter
from typing import NamedTuple

from . import assembly
from .architectures import TABLE, Architecture, ctas_per_multiprocessor
from .cases import TAIL_CHANNELS, Case, Size
from .counting import Work
from .driver import Launch

# Share of the peak tensor-core rate that large matrix products reach: 790 of 989 TFLOP/s on an H100.
SUSTAINED = 0.8
# Assumed seconds from the start of one kernel of a captured graph to that of the next, if it does little.
LAUNCH = 2e-6
# Assumed cycles that a CTA waits at a barrier, and for plain loads from the L2 cache.
_BARRIER, _PLAIN_LOAD = 30, 300
# Bytes per cycle that one multiprocessor reads from its shared memory, and from the L2 cache.
_SHARED_RATE, _CACHE_RATE = 128, 64
_EXPONENTIALS = 16  # per cycle and multiprocessor
# Rate of mma.sync relative to the newer instructions. sm_90: "Benchmarking and Dissecting the Nvidia Hopper GPU
# Architecture via Microbenchmarking" (Luo et al., 2024). sm_100: assumed, the rate of sm_80 per multiprocessor.
_SYNC = {90: 0.62, 100: 0.25}

# Products of `unit` that a call cannot avoid. One of joint attention is over all its queries and keys.
FLOOR = {
    "separable": {"forward": 2, "backward": 5},
    "joint": {"forward": 2, "backward": 5},
    "level_tail": {"forward": 1},
}


class Prediction(NamedTuple):
    """Predicted seconds of a launch, and what bounds it."""

    kernel: str
    seconds: float
    bound: str


def unit(family: str, size: Size, width: int) -> int:
    """FLOP of one product of a call."""
    pairs = {
        "joint": size.places * size.words * (size.places // 4 * size.words // 2),
        "level_tail": size.places * TAIL_CHANNELS,
    }
    return 2 * size.batch * pairs.get(family, size.places**2) * width


def peak(gpu: Architecture, arithmetic: str) -> float:
    """FLOP/s of matrix products in an arithmetic."""
    return {"tf32": gpu.tf32, "float32": gpu.float32}.get(arithmetic, gpu.half) * 1e12


def floor(case: Case, size: Size, products: float) -> float:
    """Seconds that the products take at the sustained rate."""
    rate = SUSTAINED * peak(TABLE[case.architecture], case.arithmetic)
    return products * unit(case.family, size, case.width) / rate


def predict(case: Case, launches: list[Launch], works: list[Work]) -> list[Prediction]:
    """Predict each launch of a call.

    Args:
        case: What was compiled.
        launches: The launches of the call.
        works: Of each kernel's name, its work in this call, summed over its launches. Launches of one kernel share
            it in proportion to their programs.
    """
    programs = Counter[str]()
    for launch in launches:
        programs[launch.kernel] += launch.programs
    total = {work.kernel: work for work in works}
    predictions = []
    for launch in launches:
        if launch.compiled is None:
            predictions.append(_operator(case, launch))
        else:
            share = launch.programs / programs[launch.kernel]
            predictions.append(_kernel(case.architecture, launch, total[launch.kernel], share))
    return predictions


def _operator(case: Case, launch: Launch) -> Prediction:
    gpu = TABLE[case.architecture]
    times = {
        "tensor": launch.flop / (SUSTAINED * peak(gpu, case.arithmetic)),
        "memory": _memory(gpu, launch.tensors),
    }
    return _slowest(launch.kernel, times)


def _kernel(architecture: int, launch: Launch, work: Work, share: float) -> Prediction:
    gpu = TABLE[architecture]
    ptx, warps = launch.compiled.asm["ptx"], launch.compiled.metadata.num_warps
    loops = assembly.hot_loops(ptx)
    ctas = resident(architecture, launch)
    # Work of one program, and programs of the busiest multiprocessor.
    each = share / launch.programs
    busiest = math.ceil(launch.programs / gpu.multiprocessors)

    cycle = 1e-9 / gpu.clock
    tensor = work.flop * each / (_rate(architecture, loops, ptx) / gpu.multiprocessors)
    scalar = work.operations * each / (gpu.float32 * 1e12 / 2 / gpu.multiprocessors)
    scalar += work.exponentials * each / _EXPONENTIALS * cycle
    iterations = _iterations(work.flop * each, loops, warps)
    stalls = iterations * sum(loop.barriers * _BARRIER + bool(loop.plain_loads) * _PLAIN_LOAD for loop in loops)
    overlapped = max(tensor, scalar) if ctas > 1 else tensor + scalar
    moved = (work.loaded + work.stored) * each
    times = {
        "tensor" if tensor >= scalar else "scalar": busiest * (overlapped + stalls * cycle / max(1, ctas)),
        "cache": max(moved * launch.programs / (gpu.cache * 1e9), busiest * moved / _CACHE_RATE * cycle),
        "memory": _memory(gpu, min(launch.tensors, int(moved * launch.programs))),
    }
    return _slowest(launch.kernel, times)


def resident(architecture: int, launch: Launch) -> int:
    """CTAs of a Triton launch on one multiprocessor."""
    registers, _ = assembly.resources(launch.compiled.asm["cubin"])
    data = launch.compiled.metadata
    return ctas_per_multiprocessor(architecture, registers, data.num_warps, data.shared, data.tmem_size or 0)


def _slowest(kernel: str, times: dict[str, float]) -> Prediction:
    bound = max(times, key=lambda name: times[name])
    return Prediction(kernel, LAUNCH + times[bound], bound if times[bound] > LAUNCH else "launch")


def _memory(gpu: Architecture, tensors: int) -> float:
    return tensors / ((gpu.cache if tensors <= gpu.cache_size * 1e6 else gpu.memory) * 1e9)


def _rate(architecture: int, loops: list[assembly.Loop], ptx: str) -> float:
    """FLOP/s of the tensor-core instructions of a kernel, or of float32 if it has none."""
    gpu = TABLE[architecture]
    instructions = sum((loop.instructions for loop in loops), Counter[assembly.Instruction]())
    instructions = instructions or assembly.instructions(ptx)
    if not instructions:
        return gpu.float32 * 1e12
    flop = sum(instruction.flop * number for instruction, number in instructions.items())
    seconds = 0.0
    for instruction, number in instructions.items():
        dense = (gpu.half if instruction.depth == 16 else gpu.tf32) * 1e12
        seconds += instruction.flop * number / (dense * SUSTAINED * efficiency(architecture, instruction))
    return flop / seconds


def efficiency(architecture: int, instruction: assembly.Instruction) -> float:
    """Share of the dense rate that an instruction reaches.

    wgmma and tcgen05 take columns / 2 cycles and read their operands (32 bytes of each row and column) from shared
    memory, unless the first one is in registers. tcgen05 with 64 rows uses half of the tensor core.
    """
    if instruction.kind == "mma.sync":
        return _SYNC.get(architecture, 1.0)
    busy = instruction.columns / 2
    lines = instruction.columns + (0 if instruction.in_registers else instruction.rows)
    used = instruction.rows / 128 if instruction.kind == "tcgen05" else 1.0
    return used * busy / max(busy, lines * 32 / _SHARED_RATE)


def _iterations(flop: float, loops: list[assembly.Loop], warps: int) -> float:
    """Iterations of each hot loop in one program, if all hot loops have equally many."""
    groups = {"mma.sync": warps, "wgmma": warps / 4, "tcgen05": 1}
    per_iteration = sum(
        instruction.flop * number * groups[instruction.kind]
        for loop in loops
        for instruction, number in loop.instructions.items()
    )
    return flop / per_iteration if per_iteration else 0.0
