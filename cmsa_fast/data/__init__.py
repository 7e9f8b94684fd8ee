"""Referring data sets, words and batches: everything that knows files."""
