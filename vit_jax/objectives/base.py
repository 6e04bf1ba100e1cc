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
      logged: by name, values [b] whose share or mean the log shows: their sum over the
        whole batch, divided by `Prepared.total`. Rows that the mask leaves out are not
        read. Booleans are counted exactly.
    """

    loss: jax.Array
    logged: dict[str, jax.Array]


class Objective(Protocol):
    """What a run learns.

    Attributes:
      constants: trees of arrays that the losses read and that nothing trains, such as
        the parameters of a teacher; on the host. None if there are none.
    """

    @property
    def constants(self) -> Params: ...

    def prepare(self, batch: Batch, key: jax.Array) -> Prepared:
        """Once for a global batch, without the parameters: normalises, mixes, masks.

        Args:
          batch: what the data gives, arrays [b, ...] and "mask".
          key: of this step.
        """
        ...

    def losses(
        self, params: Params, batch: Batch, key: jax.Array, constants: Params
    ) -> Losses:
        """The losses of a micro-batch, which differ by an example alone.

        Args:
          params: what is trained.
          batch: rows of `Prepared.batch`.
          key: of this micro-batch.
          constants: the attribute, on the devices.
        """
        ...


def normalize(images: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """uint8 [b, h, w, c] in 0..255 to float32 with the given mean and std per channel.

    >>> half = jnp.full(3, 0.5)
    >>> normalize(jnp.full((1, 1, 1, 3), 255, jnp.uint8), half, half)
    Array([[[[1., 1., 1.]]]], dtype=float32)
    """
    return (images.astype(jnp.float32) / 255.0 - mean) / std
