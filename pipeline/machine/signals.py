"""What a signal does before anything is begun."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stopped_at_once() -> Iterator[None]:
    """A signal while code is loaded ends the process as later, in a sentence, with 130 or 143; nothing is begun yet.

    An exception in the middle of an import would show a traceback, or end C++ code by abort.
    """
    numbers = [signal.SIGINT, signal.SIGTERM] if threading.current_thread() is threading.main_thread() else []
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        if before[number] is not signal.SIG_IGN:  # As it is behind nohup.
            signal.signal(number, _stopped)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stopped(number: int, _frame: object) -> None:
    os.write(2, b"trtforge: interrupted; nothing was begun\n")
    os._exit(128 + number)
