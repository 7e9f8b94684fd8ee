"""Checks of a folder of data sets: missing and damaged files, images shared between splits."""
