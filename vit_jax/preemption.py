"""Signals that stop or save a run: noted at once, acted on where it is safe.

A handler of a signal can run between any two lines, so it only sets a flag. The loop
asks for it each step; `wait` is for the calls that do not return for minutes (the
compiler), during which Python would not even run the handler.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TypeVar

from vit_jax import streams
from vit_jax.errors import Preempted

T = TypeVar("T")

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SAVES = signal.SIGUSR1

_requested = threading.Event()
_save_requested = threading.Event()
_received: list[int] = []
_handling = False
_others: list[Callable[[], bool]] = []


@contextlib.contextmanager
def handled(*, leave_at_second: bool = False) -> Iterator[None]:
    """Takes over `STOPS` and `SAVES`; gives them back at the end, as if none had come.

    A SIGHUP that is ignored stays so: `nohup` has asked for that.

    Only the main thread can: in another one signals stay as they are. Within another
    such context this one does nothing.

    Args:
      leave_at_second: a second SIGINT ends the process at once; otherwise it raises
        KeyboardInterrupt.
    """
    global _handling
    if _handling or threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if number == SAVES:
            tell("\nSIGUSR1 received: saving at the next safe point, and going on.\n")
            _save_requested.set()
            return
        if number == signal.SIGINT and _requested.is_set():
            if leave_at_second:
                os._exit(Preempted.exit_code)
            raise KeyboardInterrupt
        name = signal.Signals(number).name
        tell(f"\n{name} received: stopping at the next safe point.\n")
        _received.append(number)
        _requested.set()

    before = {
        number: signal.signal(number, handle)
        for number in (*STOPS, SAVES)
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
    }
    _handling = True
    try:
        yield
    finally:
        _handling = False
        for number, handler in before.items():
            signal.signal(number, handler)
        forget()


def forget() -> None:
    """Forgets the signals that have come, and other processes: a run has ended."""
    _requested.clear()
    _save_requested.clear()
    _received.clear()
    _others.clear()


def by_keyboard() -> bool:
    """Whether the signal that has arrived is Ctrl-C."""
    return signal.SIGINT in _received


def tell(text: str) -> None:
    """Writes to stderr at once: print is not reentrant, and may be interrupted.

    Where nobody can be told (a closed terminal, a full disk) the run goes on.
    """
    with contextlib.suppress(OSError):
        os.write(2, text.encode(errors="backslashreplace"))


def requested() -> bool:
    """Whether a signal has arrived."""
    return _requested.is_set()


def take_save_request() -> bool:
    """Whether a save has been asked for since the last call."""
    asked = _save_requested.is_set()
    if asked:
        _save_requested.clear()
    return asked


def also_stop_when(condition: Callable[[], bool]) -> None:
    """Makes `check` and `wait` heed signals to other processes too."""
    _others.append(condition)


def check() -> None:
    """Raises Preempted if a signal has arrived."""
    if _requested.is_set() or any(condition() for condition in _others):
        raise Preempted


def wait(function: Callable[..., T], *args: Any) -> T:
    """Calls a function that may block for minutes, and stays interruptible.

    Raises:
      Preempted: if a signal arrives before the function returns.
    """
    return call(function, *args, check=check)


def call(function: Callable[..., T], *args: Any, check: Callable[[], None]) -> T:
    """Calls a function in a thread of its own, and `check` every 50 ms meanwhile.

    A call that is given up, since `check` raises, goes on in its thread until the
    process ends: end it with `leave`.
    """
    result: list[T] = []
    failure: list[BaseException] = []

    def target() -> None:
        try:
            result.append(function(*args))
        except BaseException as error:  # handed to the caller's thread below
            failure.append(error)

    thread = threading.Thread(target=target, daemon=True, name="interruptible call")
    thread.start()
    while thread.is_alive():
        thread.join(timeout=0.05)
        check()
    if failure:
        raise failure[0]
    return result[0]


def leave(code: int) -> None:
    """Ends the process without joining threads, which may be inside the compiler."""
    for child in multiprocessing.active_children():  # workers of the input pipeline
        child.kill()
    streams.settle()
    os._exit(code)
