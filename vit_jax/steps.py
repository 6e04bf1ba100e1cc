"""The training step, a pure function of (state, batch), and how steps are compiled.

`trace_train_step` is the only `jax.jit` of the training step.

Axes: `b` batch, `h` height, `w` width, `c` channels, `k` classes.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from vit_jax import compiler, sharding
from vit_jax.objectives import Batch, Given, Objective
from vit_jax.objectives.base import Scalars
from vit_jax.state import Params, TrainState, shardings_of

AbstractBatch = Mapping[str, jax.ShapeDtypeStruct]
TrainStep = Callable[..., tuple[TrainState, Scalars]]
EvalStep = Callable[[Params, Batch], Scalars]


def make_train_step(
    objective: Objective,
    tx: optax.GradientTransformation,
    schedule: Callable[[jax.Array], jax.Array],
    *,
    seed: int,
    accumulation_steps: int,
    ema: float | None,
    frozen: frozenset[str] = frozenset(),
) -> TrainStep:
    """The step as a pure function.

    Args:
      objective: what is learned.
      tx: the optimiser; `schedule` is its learning rate as a function of the step.
      seed: all randomness of step s is a function of (seed, s).
      accumulation_steps: micro-batches whose gradients are summed for one update.
      ema: decay of the average of the parameters, or None.
      frozen: paths of parameters that get no gradient.

    Returns:
      A function (state, batch, constants of the objective) -> (state, scalars). The
      loss is the sum of those of the examples with a true mask, divided by
      `Prepared.total`. `finite` tells whether the new state can be trusted.
    """

    def train_step(
        state: TrainState, batch: Batch, constants: Params = None
    ) -> tuple[TrainState, Scalars]:
        key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), state.step)
        prepare_key, loss_key = jax.random.split(key)
        whole, total = objective.prepare(batch, prepare_key)
        total = jnp.maximum(total, 1)  # of a batch that has no example
        given = Given(constants, state.objective)

        def loss_fn(
            params: Params, part: Batch, key: jax.Array
        ) -> tuple[jax.Array, Scalars]:
            params = without_gradient(params, frozen)
            losses, values = objective.losses(params, part, key, given)
            with jax.named_scope("loss"):
                mask = part["mask"]
                value = masked_sum(losses, mask) / total  # of the whole batch
                return value, {name: masked_sum(x, mask) for name, x in values.items()}

        (value, sums), grads = accumulate(
            jax.value_and_grad(loss_fn, has_aux=True),
            state.params,
            whole,
            loss_key,
            steps=accumulation_steps,
            values=loss_fn,
        )
        # The names of the scopes are what a profile and `vit_jax.plan` group by.
        with jax.named_scope("optimizer"):
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            update_norm = optax.tree.norm(updates)
        mask = batch["mask"]
        examples = jnp.sum(mask, dtype=jnp.int32)
        new_state = TrainState(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            ema_params=average(state.ema_params, params, state.step, decay=ema),
            bad_examples=state.bad_examples + (mask.size - examples),
            objective=objective.update(state.objective, params, sums, state.step),
        )
        return new_state, {
            "loss": value,
            **{name: x / total for name, x in sums.items() if x.ndim == 0},
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
            "grad_norm": optax.tree.norm(grads),
            "update_norm": update_norm,
            "param_norm": optax.tree.norm(read_again(params)),
            "bad_examples": new_state.bad_examples,
            "finite": jnp.isfinite(value) & jnp.isfinite(update_norm),
        }

    return train_step


def masked_sum(values: jax.Array, mask: jax.Array) -> jax.Array:
    """The sum of the rows [b, ...] with a true mask [b]; Booleans are counted in int32.

    >>> masked_sum(jnp.array([True, True, False]), jnp.array([True, False, True]))
    Array(1, dtype=int32)
    """
    mask = mask.reshape(mask.shape + (1,) * (values.ndim - 1))
    if values.dtype == jnp.bool_:
        return jnp.sum(values & mask, axis=0, dtype=jnp.int32)
    return jnp.sum(jnp.where(mask, values, 0.0), axis=0)


def read_again(params: Params) -> Params:
    """The same values, read from memory by what uses them, in a program for CUDA.

    Otherwise XLA computes the norm of the parameters in the loop that updates them,
    which has one norm already. With two it writes parameters and moments elsewhere,
    and copies them to where they belong: 2 GB for B/16, 15 for H/14.
    """
    return jax.lax.platform_dependent(
        params, cuda=jax.lax.optimization_barrier, default=lambda params: params
    )


def without_gradient(params: Params, frozen: frozenset[str]) -> Params:
    """The same values; the backward pass ends at those whose paths are frozen."""
    if not frozen:
        return params
    return jax.tree_util.tree_map_with_path(
        lambda path, x: (
            jax.lax.stop_gradient(x) if sharding.path_name(path) in frozen else x
        ),
        params,
    )


def accumulate(
    value_and_grad: Callable[..., tuple[Any, Params]],
    params: Params,
    batch: Batch,
    key: jax.Array,
    *,
    steps: int,
    values: Callable[..., Any],
) -> tuple[Any, Params]:
    """Sums values and gradient over `steps` micro-batches, one in memory at a time.

    Micro-batch i holds the rows i, i + steps, i + 2 steps, ...: so every device has its
    share of each, and no row moves between devices.

    Args:
      value_and_grad: a function (params, micro-batch, key).
      params: of it.
      batch: that is cut, arrays [b, ...].
      key: of the batch, from which those of its parts come.
      steps: the number of parts.
      values: the same function without the gradient: its values are trees of scalars.
    """
    if steps == 1:
        return value_and_grad(params, batch, key)

    def split(x: jax.Array) -> jax.Array:  # [b, ...] -> [steps, b / steps, ...]
        return x.reshape(x.shape[0] // steps, steps, *x.shape[1:]).swapaxes(0, 1)

    def add(total: Any, indexed: tuple[jax.Array, Batch]) -> tuple[Any, None]:
        index, part = indexed
        new = value_and_grad(params, part, jax.random.fold_in(key, index))
        return jax.tree.map(jnp.add, total, new), None

    parts = (jnp.arange(steps), jax.tree.map(split, dict(batch)))
    first = jax.tree.map(lambda x: x[0], parts[1])
    like = jax.eval_shape(values, params, first, key)
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    begin = (zero, jax.tree.map(jnp.zeros_like, params))
    return jax.lax.scan(add, begin, parts)[0]


def average(
    ema_params: Params | None, params: Params, step: jax.Array, *, decay: float | None
) -> Params | None:
    """The exponential moving average after a step, or None where it is off.

    The decay grows as (1 + step) / (10 + step) up to `decay`, so that the average
    forgets the initial parameters soon, as in TensorFlow's ExponentialMovingAverage.
    """
    if ema_params is None or decay is None:
        return None
    decay_now = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return optax.incremental_update(params, ema_params, 1.0 - decay_now)


def trace_train_step(
    train_step: TrainStep,
    mesh: Mesh,
    state: TrainState,
    batch: AbstractBatch,
    *others: Params,
) -> jax.stages.Traced:
    """The step as JAX sees it; `lower()` is what the compiler is given.

    The state is donated.

    Args:
      train_step: from `make_train_step`.
      state: abstract, with shardings.
      batch: abstract, with shardings.
      *others: likewise; the constants of the objective, if it has some.
    """
    arguments = (state, batch, *others)
    jitted = jax.jit(
        train_step,
        in_shardings=tuple(shardings_of(argument) for argument in arguments),
        out_shardings=(shardings_of(state), sharding.replicated(mesh)),
        donate_argnums=0,
    )
    return jitted.trace(*arguments)


def compile_train_step(
    lowered: jax.stages.Lowered, mesh: Mesh, more: Mapping[str, Any] | None = None
) -> jax.stages.Compiled:
    """Compiles the step ahead of time.

    Args:
      lowered: the step.
      mesh: that it was lowered for; its devices decide on the compiler's options.
      more: options besides these, which must not change the program.
    """
    options = compiler.options(mesh.devices.flat[0]) | dict(more or {})
    return lowered.compile(compiler_options=options)


def compile_eval_step(
    eval_step: EvalStep, mesh: Mesh, params: Params, batch: AbstractBatch
) -> Any:
    """Compiles an evaluation step ahead of time; the arguments as above."""
    jitted = jax.jit(
        eval_step,
        in_shardings=(shardings_of(params), shardings_of(batch)),
        out_shardings=sharding.replicated(mesh),
    )
    return jitted.lower(params, batch).compile()


def abstract_batch(
    mesh: Mesh,
    batch_size: int,
    image_shape: tuple[int, int, int],
    *,
    label_classes: int | None,
) -> dict[str, jax.ShapeDtypeStruct]:
    """A global batch as `ShapeDtypeStruct`s.

    Args:
      mesh: that the batch is laid out over.
      batch_size: global.
      image_shape: (h, w, c).
      label_classes: k of labels that are vectors [b, k]; None for class numbers [b].
    """
    laid_out = sharding.batch_sharding(mesh)

    def struct(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=laid_out)

    labels = struct((), jnp.int32)
    if label_classes is not None:
        labels = struct((label_classes,), jnp.float32)
    return {
        "image": struct(image_shape, jnp.uint8),
        "label": labels,
        "mask": struct((), jnp.bool_),
    }
