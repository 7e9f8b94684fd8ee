"""The command line: one file per command, with its options, its run and its report."""

from .app import main

__all__ = ["main"]
