"""Readers of the published layouts of referring data sets."""
