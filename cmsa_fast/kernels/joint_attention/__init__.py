"""Softmax attention over all tokens, for fusions that do not factorise."""
