"""Whether to stop or to save, decided so that all processes do it at the same step."""

import collections
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vit_jax import preemption


class Vote(NamedTuple):
    """What any process was told.

    Attributes:
      stop: to save and to stop.
      save: to save and to go on.
      lost: that it has no more data: to save and to end.
    """

    stop: bool
    save: bool
    lost: bool = False


NOTHING = Vote(stop=False, save=False)


class OutOfData(Exception):
    """Raised on all processes alike when one has voted that it has no more data."""


class Votes:
    """A vote among the processes, once a step and once a batch of an evaluation.

    Each call of `ask` starts a program of its own on the devices, which joins what the
    processes were told, and reads what the call before has started. By then the
    devices have more to do, so they do not wait; and as all processes call in the same
    order, all get the same answer at the same call. With one process the answer is
    known at once, and nothing is started.
    """

    def __init__(self) -> None:
        self._alone = jax.process_count() == 1
        self._started: collections.deque[jax.Array] = collections.deque()
        if not self._alone:
            self._make_program()

    def _make_program(self) -> None:
        mesh = Mesh(np.array(jax.devices()), "devices")
        ballots = NamedSharding(mesh, PartitionSpec("devices"))
        self._ballot = {
            vote: jax.make_array_from_callback(
                (mesh.size, len(vote)), ballots, lambda _, v=vote: np.array([v])
            )
            for vote in itertools.starmap(
                Vote, itertools.product((False, True), repeat=len(NOTHING))
            )
        }
        whole = NamedSharding(mesh, PartitionSpec())
        count: Any = jax.jit(lambda x: jnp.any(x, axis=0), out_shardings=whole)
        self._count = count.lower(self._ballot[NOTHING]).compile()

    def ask(self, *, lost: bool = False) -> Vote:
        """What any process had been told at the call before.

        Args:
          lost: whether this process has no more data; of several processes only.
        """
        mine = Vote(preemption.requested(), preemption.take_save_request(), lost)
        if self._alone:
            return mine
        self._started.append(self._count(self._ballot[mine]))
        if len(self._started) < 2:
            return NOTHING
        return Vote(*jax.device_get(self._started.popleft()).tolist())
