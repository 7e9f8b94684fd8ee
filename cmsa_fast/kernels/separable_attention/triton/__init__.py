"""Triton kernels of the separable attention, imported when one first runs."""
