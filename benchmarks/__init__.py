"""Benchmarks of speed, memory and parity; results are kept in results/."""

from cmsa_fast.system.processes import configure_openmp

configure_openmp()  # before a module of the package loads torch
