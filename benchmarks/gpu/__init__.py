"""Correctness, speed and memory of the kernels on one GPU: `python -m benchmarks.gpu --out DIR`.

The parent process plans, keeps the deadline and writes the results; it never imports torch. Worker processes run
the jobs, so a kernel that hangs, crashes or corrupts the CUDA context loses only its own figures.
"""
