"""Ctrl-C and SIGTERM end a run between two steps that belong together, never inside them."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from raygrad.errors import Stopped


class Interrupts:
    """While open, Ctrl-C raises KeyboardInterrupt and SIGTERM raises Stopped, but inside `shielded` only at its end.

    Outside the main thread signals cannot be handled; then this does nothing.
    """

    def __init__(self) -> None:
        self._shielded = False
        self._pending: int | None = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._shielded:
            self._pending = number
        else:
            self._raise(number)

    def _raise(self, number: int) -> None:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise Stopped("stopped by SIGTERM")

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """What is inside happens whole."""
        self._shielded = True
        try:
            yield
        finally:
            self._shielded = False
        if self._pending is not None:
            number, self._pending = self._pending, None
            self._raise(number)

    def install(self) -> None:
        """Handle the signals from now on, also where somebody else does."""
        if threading.current_thread() is threading.main_thread():
            for n in (signal.SIGINT, signal.SIGTERM):
                signal.signal(n, self._handle)

    @contextmanager
    def installed(self) -> Iterator["Interrupts"]:
        """Handle the signals inside, restore the former handlers afterwards."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        former = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
        self.install()
        try:
            yield self
        finally:
            for n, handler in former.items():
                signal.signal(n, handler)
