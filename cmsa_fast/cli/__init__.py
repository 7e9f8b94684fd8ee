"""The command line: one file a command, with its options, its run and its text."""

from .app import main

__all__ = ["main"]
