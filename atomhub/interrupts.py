"""A person who presses Ctrl-C: what is under way may end well, and a second time stops at once."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_PATIENCE = 1.5
"""Seconds that a second Ctrl-C leaves Python to stop by itself: an operation of PyTorch's may take longer."""


@contextmanager
def heeded(what: str) -> Iterator[Callable[[], bool]]:
    """Give a function that tells whether SIGINT or SIGTERM came, in place of what they do by default.

    The first is answered at once, even in the middle of a long operation; a second one ends the block with
    KeyboardInterrupt, or the process where Python does not come to that. Elsewhere than in the main thread, where
    Python has no signal handlers, nothing ever came.

    Args:
        what: What is brought to its end first, such as ``this iteration``.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    came: list[int] = []
    over = threading.Event()
    # what is ignored, as in the background of a script, stays so
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) not in (signal.SIG_IGN, None)]
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)

    def handle(number: int, _: object) -> None:
        came.append(number)
        if len(came) > 1:
            raise KeyboardInterrupt

    def watch() -> None:  # Python's handlers wait for the operation that is running; this thread does not
        count = 0
        with ours, suppress(OSError):
            while got := ours.recv(1):
                count += got[0] in numbers
                if got[0] in numbers and count == 1:
                    print(f"Stopping after {what}; press Ctrl-C again to stop now.", file=sys.stderr, flush=True)
                elif got[0] in numbers:
                    end = time.monotonic() + _PATIENCE
                    while not over.wait(0.1) and time.monotonic() < end:
                        if len(came) == 1:  # Python took two that came in the middle of an operation for one
                            os.kill(os.getpid(), got[0])
                    if not over.is_set():
                        os._exit(130)

    wakeup = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    before = {number: signal.signal(number, handle) for number in numbers}
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield lambda: bool(came)
    finally:
        over.set()
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        theirs.close()
