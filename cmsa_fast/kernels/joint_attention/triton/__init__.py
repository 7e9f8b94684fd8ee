"""Triton kernels of the joint attention, imported when one first runs."""
