"""Correctness, speed and memory of the kernels on one GPU: `python -m benchmarks.gpu --out DIR`.

The parent process plans, keeps the time and writes the results; it never imports torch. Worker processes do the
jobs, so that a kernel which hangs, crashes or breaks the GPU's context costs its own figures alone.
"""
