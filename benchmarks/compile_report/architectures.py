"""Resources and rates of one GPU for each supported architecture, and how many CTAs share a multiprocessor.

Rates are dense and for the accumulation in float32. Sources:

- Registers, threads, CTAs and shared memory: CUDA C++ Programming Guide, technical specifications per compute
  capability.
- Multiprocessors, clock, tensor-core, float32 and memory rates: A100 data sheet and whitepaper; GA102, Ada and
  RTX Blackwell whitepapers (GeForce RTX 3090, 4090, 5090); H100 data sheet and Hopper whitepaper (SXM); HGX B200
  data sheet (a published rate with sparsity is halved).
- L2 rates, measured by reading: A100, 5400 GB/s (github.com/te42kyfo/gpu-benches, gpu-l2-cache); RTX 4090, 4900
  GB/s (github.com/smallscientist1/cuda_microbenchmark, cp.async); H100, 6650 GB/s (OpenXLA's cost model of matrix
  products). The first source has 6900 GB/s for an H100 PCIe and 9700 GB/s for an H200. The others are estimates:
  64 bytes per clock and slice, of which 0.7 can be reached; assumed are 48 slices on sm_86, 160 on 100, 64 on 120.
"""

from typing import NamedTuple

REGISTERS = 65536  # per multiprocessor
_REGISTER_UNIT = 256  # allocated to a warp at a time
_RESERVED_SHARED = 1024  # bytes that CUDA takes from each CTA's share
_TENSOR_MEMORY = 512  # columns per multiprocessor


class Architecture(NamedTuple):
    """A GPU.

    Attributes:
        card: Its name.
        multiprocessors: Their number.
        clock: Boost clock in GHz.
        half, tf32: Tensor-core rate of 16-bit and TF32 products, in TFLOP/s.
        float32: Rate outside of the tensor cores, in TFLOP/s.
        memory: Bandwidth of the memory, in GB/s.
        cache: Bandwidth of the L2 cache, in GB/s.
        cache_size: Size of the L2 cache, in MB.
        shared: Shared memory of a multiprocessor, in bytes.
        shared_limit: Shared memory that one CTA may use, in bytes.
        threads, blocks: Resident threads and CTAs of a multiprocessor.
    """

    card: str
    multiprocessors: int
    clock: float
    half: float
    tf32: float
    float32: float
    memory: float
    cache: float
    cache_size: float
    shared: int
    shared_limit: int
    threads: int
    blocks: int


# By compute capability times ten. shared_limit leaves room for what Triton's runtime reserves.
TABLE = {
    80: Architecture("A100 SXM", 108, 1.41, 312, 156, 19.5, 2039, 5400, 40, 167936, 166912, 2048, 32),
    86: Architecture("RTX 3090", 82, 1.695, 71, 35.6, 35.6, 936, 3650, 6, 102400, 101376, 1536, 16),
    89: Architecture("RTX 4090", 128, 2.52, 165.2, 82.6, 82.6, 1008, 4900, 72, 102400, 101376, 1536, 24),
    90: Architecture("H100 SXM", 132, 1.83, 989.4, 494.7, 66.9, 3350, 6650, 50, 233472, 232448, 2048, 32),
    100: Architecture("B200", 148, 1.86, 2250, 1125, 75, 8000, 13300, 126, 233472, 232448, 2048, 32),
    120: Architecture("RTX 5090", 170, 2.407, 209.5, 104.8, 104.8, 1792, 6900, 96, 102400, 101376, 1536, 24),
}


def ctas_per_multiprocessor(architecture: int, registers: int, warps: int, shared: int, tensor_memory: int) -> int:
    """CTAs that are resident at once, limited by registers, threads, shared memory and tensor memory.

    Args:
        architecture: Key of TABLE.
        registers: Per thread.
        warps: Per CTA.
        shared: Dynamic shared memory per CTA, in bytes.
        tensor_memory: Columns of tensor memory per CTA.
    """
    gpu = TABLE[architecture]
    per_warp = -(-registers * 32 // _REGISTER_UNIT) * _REGISTER_UNIT
    limits = [
        REGISTERS // (per_warp * warps),
        gpu.threads // (32 * warps),
        gpu.blocks,
        gpu.shared // (shared + _RESERVED_SHARED),
    ]
    if tensor_memory:
        limits.append(_TENSOR_MEMORY // tensor_memory)
    return min(limits)
