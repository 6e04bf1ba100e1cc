"""Waiting for batches, which may never come, in such a way that signals are heeded."""

import queue
import threading
import time
from collections.abc import Generator
from typing import Any, Protocol

from vit_jax import distributed, preemption
from vit_jax.errors import PeerLost, Preempted

_POLL_SECONDS = 0.05
# Of several processes one alone cannot stop, and the others wait for it: see
# `vit_jax.lookahead`. If the batch comes after all, they stop together.
_PATIENCE_SECONDS = 10.0
# One process need not wait, but most batches come soon; and a worker that is starting
# would complain of a parent that is gone.
_PATIENCE_ALONE_SECONDS = 6.0
# Between two questions whether the batch can come at all.
_ASK_SECONDS = 5.0


class Source(Protocol):
    """What batches are read from.

    `lost` says why the next one will not come, if that is known; `abandon` is `close`
    that waits for nobody.
    """

    def __next__(self) -> dict[str, Any]: ...

    def lost(self) -> Exception | None: ...

    def close(self) -> None: ...

    def abandon(self) -> None: ...


def batches(source: Source) -> Generator[dict[str, Any], None, None]:
    """The batches of `source`, which is closed at the end.

    A thread asks for each batch when it is wanted, not before.

    Raises:
      WorkerLost: if a worker was killed while it began.
      Preempted: if a signal came some seconds ago and the batch did not.
      PeerLost: if one came some time ago, on one of several.
    """
    wanted: queue.SimpleQueue[bool] = queue.SimpleQueue()
    found: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def read() -> None:
        while wanted.get():
            try:
                found.put(next(source))
            except BaseException as error:  # raised by the caller's thread below
                found.put(error)

    threading.Thread(target=read, daemon=True, name="reader").start()
    hangs = False
    try:
        while True:
            wanted.put(True)
            try:
                result = _get(found, source)
            except BaseException:
                hangs = True
                raise
            if isinstance(result, StopIteration):
                return
            if isinstance(result, BaseException):
                raise result
            yield result
    finally:
        wanted.put(False)
        if hangs or not _closed(source):
            source.abandon()


def _closed(source: Source) -> bool:
    """Closes it; False if that takes long, as it waits for a worker that hangs.

    The training loop may see a signal while there are still batches to train on, and
    end before anybody has waited for the worker.
    """
    ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def close() -> None:
        try:
            source.close()
        except BaseException as error:  # raised by the caller's thread below
            ended.put(error)
        else:
            ended.put(None)

    threading.Thread(target=close, daemon=True, name="closing").start()
    try:
        error = ended.get(timeout=_PATIENCE_ALONE_SECONDS)
    except queue.Empty:
        return False
    if error is not None:
        raise error
    return True


def _get(found: queue.SimpleQueue[Any], source: Source) -> Any:
    asked: float | None = None  # when a signal was first seen
    ask_at = time.monotonic() + _ASK_SECONDS
    while True:
        try:
            return found.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            pass
        if time.monotonic() > ask_at:
            ask_at = time.monotonic() + _ASK_SECONDS
            if (lost := source.lost()) is not None:
                raise lost
        try:
            preemption.check()
        except Preempted:
            asked = asked or time.monotonic()
            waited = time.monotonic() - asked
            if distributed.alone():
                if waited > _PATIENCE_ALONE_SECONDS:
                    raise
            elif waited > _PATIENCE_SECONDS:
                raise PeerLost(
                    "a signal asks to stop, but this process waits for data, and the "
                    "others for it: they can save no step that it has not done"
                ) from None
