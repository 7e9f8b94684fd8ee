"""Softmax attention over all (place, word) pairs by the exact factorisation."""
