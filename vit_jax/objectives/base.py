"""What a run learns, as the training step sees it: losses of examples.

The step knows the optimiser, accumulation, the average and randomness, and nothing of
labels. To add an objective, write a class with the methods of `Objective`; see
docs/design/objectives.md.

Axes: b batch, h height, w width, c channels.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

Batch = Mapping[str, jax.Array]
Params = Any
State = Any  # a tree of arrays, or None
Scalars = dict[str, jax.Array]


class Prepared(NamedTuple):
    """A global batch, ready to be cut into micro-batches.

    Attributes:
      batch: arrays [b, ...]; "mask", bool [b], is False where there is no example.
      total: what the sum of the losses is divided by, [], such as the number of
        examples or of patches that are hidden.
    """

    batch: dict[str, jax.Array]
    total: jax.Array


class Losses(NamedTuple):
    """What an objective says of the examples of a micro-batch.

    Attributes:
      loss: float32 [b]; rows that the mask leaves out are not read.
      values: by name, arrays [b, ...] that are summed over the whole batch, for
        `Objective.update`; rows that the mask leaves out are not read, and Booleans are
        counted exactly. The log shows those of [b], divided by `Prepared.total`.
    """

    loss: jax.Array
    values: dict[str, jax.Array]


class Given(NamedTuple):
    """What losses read besides the parameters, on the devices.

    Attributes:
      constants: of the objective.
      state: of the objective, as it was after the step before.
    """

    constants: Params
    state: State


class Objective(Protocol):
    """What a run learns.

    Attributes:
      constants: trees of arrays that the losses read and that nothing changes, such as
        the parameters of a teacher; on the host. None if there are none.
    """

    @property
    def constants(self) -> Params: ...

    def init(self, params: Params) -> State:
        """What is carried from step to step besides the parameters, at step 0.

        Such as a teacher that is an average of the parameters. It is saved with them,
        and laid out over the mesh by the same rules. None if there is nothing.
        """
        ...

    def update(
        self, state: State, params: Params, sums: dict[str, jax.Array], step: jax.Array
    ) -> State:
        """The state after a step.

        Args:
          state: before it.
          params: after it.
          sums: of `Losses.values`, over the whole batch.
          step: its number, from 0.
        """
        ...

    def prepare(self, batch: Batch, key: jax.Array) -> Prepared:
        """Once for a global batch, without the parameters: normalises, mixes, masks.

        Args:
          batch: what the data gives, arrays [b, ...] and "mask".
          key: of this step.
        """
        ...

    def losses(
        self, params: Params, batch: Batch, key: jax.Array, given: Given
    ) -> Losses:
        """The losses of a micro-batch: each depends on its own example alone.

        Args:
          params: what is trained.
          batch: rows of `Prepared.batch`.
          key: of this micro-batch.
          given: what else is read, and gets no gradient.
        """
        ...


class Stateless:
    """For objectives that carry nothing from step to step, and have no constants."""

    @property
    def constants(self) -> Params:
        return None

    def init(self, params: Params) -> State:
        return None

    def update(
        self, state: State, params: Params, sums: dict[str, jax.Array], step: jax.Array
    ) -> State:
        return None


def normalize(images: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """uint8 [b, h, w, c] in 0..255 to float32 with the given mean and std per channel.

    >>> half = jnp.full(3, 0.5)
    >>> normalize(jnp.full((1, 1, 1, 3), 255, jnp.uint8), half, half)
    Array([[[[1., 1., 1.]]]], dtype=float32)
    """
    return (images.astype(jnp.float32) / 255.0 - mean) / std
