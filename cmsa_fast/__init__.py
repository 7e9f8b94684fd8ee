"""Referring image segmentation with exact, fast cross-modal self-attention (CMSA)."""

__version__ = "0.1.0"

__all__ = ["__version__"]
