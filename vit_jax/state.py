"""The train state: all that a step changes, and nothing else.

There is no random state in it. Every random number is a function of (seed, step).
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from vit_jax.sharding import state_shardings

Params = Any


@flax.struct.dataclass
class TrainState:
    """What a step reads and writes; donated to it.

    Attributes:
      step: int32, the number of updates done.
      params: parameters, float32.
      opt_state: of the optax chain.
      ema_params: exponential moving average of `params`, or None where it is off.
      bad_examples: int32, examples left out so far because they could not be read.
      objective: what the objective carries from step to step, or None.
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    ema_params: Params | None
    bad_examples: jax.Array
    objective: Any = None

    @property
    def best_params(self) -> Params:
        """What evaluation uses: the average where there is one."""
        return self.params if self.ema_params is None else self.ema_params


def abstract_params(model: Any, image_shape: tuple[int, int, int]) -> Params:
    """Shapes and types of the parameters; nothing is allocated."""
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)["params"]


def make_initializer(
    model: Any,
    tx: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
    *,
    ema: bool,
    seed: int,
    of_objective: Callable[[Params], Any] = lambda params: None,
) -> Any:
    """A function without arguments that computes the state at step 0.

    With jax's partitionable threefry keys it computes the same bits on every mesh.

    Args:
      model: the Linen module.
      tx: the optimiser.
      image_shape: (h, w, c).
      ema: whether the parameters are averaged.
      seed: of the parameters.
      of_objective: what the objective carries, from the parameters.
    """

    def initialize() -> TrainState:
        images = jnp.zeros((1, *image_shape), jnp.float32)
        params = model.init(jax.random.key(seed, impl="threefry2x32"), images)["params"]
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=tx.init(params),
            ema_params=jax.tree.map(jnp.copy, params) if ema else None,
            bad_examples=jnp.zeros((), jnp.int32),
            objective=of_objective(params),
        )

    return initialize


def abstract_state(
    initialize: Any, mesh: jax.sharding.Mesh, *, zero1: bool
) -> TrainState:
    """The state as `ShapeDtypeStruct`s that carry their shardings."""
    shapes = jax.eval_shape(initialize)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding
        ),
        shapes,
        state_shardings(mesh, shapes, zero1=zero1),
    )


def shardings_of(abstract: Any) -> Any:
    """The shardings that the leaves of a tree carry."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)


def init_state(initialize: Any, abstract: TrainState) -> TrainState:
    """The state at step 0, born sharded: it never sits whole on one device."""
    return jax.jit(initialize, out_shardings=shardings_of(abstract))()
