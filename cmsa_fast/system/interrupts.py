"""Ctrl-C at moments of our choice."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Let Ctrl-C wait until the block is done; then it takes its usual way.

    Training takes a step in such a block: interrupted between two parameters, a checkpoint would hold half
    of it. Outside the main thread, to which alone Python gives signals, the block just runs.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[tuple[Any, ...]] = []
    usual = signal.signal(signal.SIGINT, lambda *what: waiting.append(what))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
    if waiting and callable(usual):
        usual(*waiting[0])
