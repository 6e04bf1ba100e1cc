"""The batches of training: on several processes each has one more than it trains on.

One process that has no batch cannot stop the others in time: they have begun the next
step, which needs the old state no more, and wait for it. So each asks for a batch one
step before it is needed. When none comes, there is still one to train on; meanwhile all
vote, and all save the same step.
"""

import contextlib
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

from vit_jax import distributed
from vit_jax.errors import PeerLost, Preempted, Stop
from vit_jax.votes import OutOfData

_GOODBYE_SECONDS = 5.0  # in which the process that has no data says why


class Batches(Iterator[Any]):
    """Batches that are put on the devices when they are wanted.

    Attributes:
      failure: why there is no batch after the one that was given last; None while there
        is one, and at the end.
    """

    def __init__(
        self,
        read: Generator[Any, None, None],
        put: Callable[[Any], Any],
        *,
        ahead: bool,
    ) -> None:
        """Nothing is read yet.

        Args:
          read: what is put on the devices, in its order.
          put: puts it there.
          ahead: whether to read each one step before it is wanted. An error is raised
            then only if it is met before the first is given: else it is `failure`.
        """
        self._read, self._put, self._ahead = read, put, ahead
        self._hand: Any = None
        self._begun = False
        self.failure: Exception | None = None

    def __next__(self) -> Any:
        if not self._ahead:
            return self._put(next(self._read))
        if not self._begun:
            self._hand = next(self._read, None)
            self._begun = True
            following = next(self._read, None)
        else:
            following = self._try()
        given, self._hand = self._hand, following
        if given is None:
            raise StopIteration
        return self._put(given)

    def _try(self) -> Any:
        if self._hand is None:
            return None
        try:
            return next(self._read, None)
        except (OSError, Stop) as error:
            self.failure = error
            return None

    def close(self) -> None:
        self._read.close()


@contextlib.contextmanager
def ends_together(batches: Batches, saved: Callable[[], None]) -> Iterator[None]:
    """Ends all processes when one is out of data and all are saving the same step.

    Args:
      batches: of this process.
      saved: waits until the step is saved.

    Raises:
      Preempted: if it is a signal that did not let them wait for data any longer.
      Exception: what this process met when it read its data.
      PeerLost: if another met it.
    """
    try:
        yield
    except OutOfData:
        saved()
        failure = batches.failure
        # `vit_jax.waiting` raises it after a signal alone.
        mine = "" if failure is None or isinstance(failure, PeerLost) else str(failure)
        told = distributed.gather(mine, heed_signals=False)  # all have saved
        if mine and failure is not None:
            raise failure from None
        if not any(told):
            raise Preempted from None
        time.sleep(_GOODBYE_SECONDS)  # its last beats end this process, and say more
        number, why = next((i, text) for i, text in enumerate(told) if text)
        raise PeerLost(f"process {number} has no more data: {why}") from None
