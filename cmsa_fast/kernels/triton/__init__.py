"""Parts that the Triton kernels of both operations share, imported when a kernel first runs."""
