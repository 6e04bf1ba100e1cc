"""Whether to stop, decided so that all processes stop at the same step."""

import collections
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vit_jax import preemption
from vit_jax.errors import Preempted


class Votes:
    """A vote among the processes, once a step and once a batch of an evaluation.

    Each call of `stop` starts a program of its own on the devices, which is true if any
    process was told to stop, and reads what the call before has started. By then the
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
            value: jax.make_array_from_callback(
                (mesh.size,), ballots, lambda _, v=value: np.array([v])
            )
            for value in (False, True)
        }
        whole = NamedSharding(mesh, PartitionSpec())
        count: Any = jax.jit(jnp.any, out_shardings=whole)
        self._count = count.lower(self._ballot[False]).compile()

    def stop(self) -> bool:
        """Whether any process had been told to stop at the call before."""
        if self._alone:
            return preemption.requested()
        self._started.append(self._count(self._ballot[preemption.requested()]))
        if len(self._started) < 2:
            return False
        return bool(jax.device_get(self._started.popleft()))

    def check(self) -> None:
        """Raises Preempted instead."""
        if self.stop():
            raise Preempted
