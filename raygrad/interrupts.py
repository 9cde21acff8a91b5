"""Ctrl-C and SIGTERM end a run between two steps that belong together, never inside them."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from raygrad.errors import Stopped


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM end this process on the spot, with the exit codes 130 and 75.

    For the time before there is anything to save: an exception raised while two threads import may be lost inside the
    import system, with its lock held.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        name, code = ("interrupted", 130) if number == signal.SIGINT else ("stopped by SIGTERM", Stopped.exit_code)
        shown = "\033[?25h" if sys.stderr.isatty() else ""  # the cursor, which a live display hides
        print(f"{shown}raygrad: {name} before the first round; run the same command again", file=sys.stderr, flush=True)
        os._exit(code)

    former = {n: signal.signal(n, leave) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for n, handler in former.items():
            signal.signal(n, handler)


ECHO_S = 1.0
"""A signal so soon after one that was seen is the same request: a terminal sends it, and so does a parent process."""


class Interrupts:
    """While open, Ctrl-C raises KeyboardInterrupt and SIGTERM raises Stopped, but inside `shielded` only at its end.

    Such an exception can be lost on its way: Python ignores what is raised in a destructor or in the callback of a weak
    reference, and a library may catch it. So what was asked for stands until it is `seen`: where Python ignores it, the
    signal is sent again at once, and the end of the next `shielded` raises whatever was lost elsewhere. An import is
    not broken into; a module that was half loaded may never load again.

    Outside the main thread signals cannot be handled; then this does nothing.
    """

    def __init__(self) -> None:
        self._shielded = False
        self._asked: int | None = None
        self._seen = -ECHO_S

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if time.monotonic() < self._seen + ECHO_S:
            return
        self._asked = number
        if not self._shielded:
            if _importing(frame):
                self._send_soon(number)
            else:
                self._raise(number)

    def _raise(self, number: int) -> None:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise Stopped("stopped by SIGTERM")

    def _send_soon(self, number: int) -> None:
        """Send the main thread the signal in a moment, when it is elsewhere."""
        main = threading.main_thread().ident
        assert main is not None

        def send() -> None:
            if self._asked is not None:
                signal.pthread_kill(main, number)

        timer = threading.Timer(0.02, send)
        timer.daemon = True
        timer.start()

    def seen(self) -> None:
        """What was asked for is under way: what follows saves and closes, and only a later signal breaks into it."""
        if self._asked is not None:
            self._asked, self._seen = None, time.monotonic()

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """What is inside happens whole."""
        self._shielded = True
        try:
            yield
        finally:
            self._shielded = False
        if self._asked is not None:
            self._raise(self._asked)

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
            with self._sending_again():
                yield self
        except (
            SystemError
        ) as e:  # what a handler raised inside of C code that expects no exception, as Ray's waiting is
            raise (e.__cause__ if isinstance(e.__cause__, KeyboardInterrupt | Stopped) else e) from None
        finally:
            for n, handler in former.items():
                signal.signal(n, handler)

    @contextmanager
    def _sending_again(self) -> Iterator[None]:
        former = sys.unraisablehook

        def ignored(lost: "sys.UnraisableHookArgs") -> None:
            if self._asked is not None and isinstance(lost.exc_value, KeyboardInterrupt | Stopped):
                self._send_soon(self._asked)
            else:
                former(lost)

        sys.unraisablehook = ignored
        try:
            yield
        finally:
            sys.unraisablehook = former


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
