"""The Triton kernels and their launchers. Nothing outside imports this package before a kernel is to run."""
