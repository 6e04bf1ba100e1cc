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
from vit_jax.distillation import Teacher
from vit_jax.mixing import Mixing
from vit_jax.state import Params, TrainState, shardings_of

Batch = Mapping[str, jax.Array]
AbstractBatch = Mapping[str, jax.ShapeDtypeStruct]
Scalars = dict[str, jax.Array]
TrainStep = Callable[..., tuple[TrainState, Scalars]]
EvalStep = Callable[[Params, Batch], Scalars]


def normalize(images: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """uint8 [b, h, w, c] in 0..255 to float32 with the given mean and std per channel.

    >>> half = jnp.full(3, 0.5)
    >>> normalize(jnp.full((1, 1, 1, 3), 255, jnp.uint8), half, half)
    Array([[[[1., 1., 1.]]]], dtype=float32)
    """
    return (images.astype(jnp.float32) / 255.0 - mean) / std


def make_train_step(
    apply: Callable[..., Any],
    tx: optax.GradientTransformation,
    schedule: Callable[[jax.Array], jax.Array],
    *,
    loss: Any,
    num_classes: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    seed: int,
    mixup: float,
    cutmix: float = 0.0,
    mixup_prob: float | None = None,
    mixup_switch_prob: float | None = None,
    accumulation_steps: int,
    ema: float | None,
    teacher: Teacher | None = None,
    two_heads: bool = False,
    frozen: frozenset[str] = frozenset(),
) -> TrainStep:
    """The step as a pure function.

    Args:
      apply: `module.apply`.
      tx: the optimiser; `schedule` is its learning rate as a function of the step.
      loss: from `losses.make`.
      num_classes: k, the width of the head.
      mean: and `std`, per channel, of images scaled to 0..1.
      seed: all randomness of step s is a function of (seed, s).
      mixup: and the three keys after it, see `mixing.Mixing`; 0 is off.
      accumulation_steps: micro-batches whose gradients are summed for one update.
      ema: decay of the average of the parameters, or None.
      teacher: that the model learns from besides the labels.
      two_heads: the labels teach the model's "head", and the teacher "head_dist".
      frozen: paths of parameters that get no gradient.

    Returns:
      A function (state, batch) -> (state, scalars), or with a teacher (state, batch,
      the teacher's parameters) -> (state, scalars). The loss is the mean over the
      examples with a true mask (by weight, see `losses.Loss.example_weights`), and
      `accuracy`, where labels are class numbers, the share of these whose likeliest
      class is that of the label (of the larger part, of images that are mixed).
      `finite` tells whether the new state can be trusted.
    """
    mix = Mixing(
        mixup=mixup,
        cutmix=cutmix,
        mixup_prob=mixup_prob,
        mixup_switch_prob=mixup_switch_prob,
    )
    heads: dict[str, Any] = {}
    if teacher is not None and two_heads:
        heads = {"capture": ("head", "head_dist")}

    def train_step(
        state: TrainState, batch: Batch, teacher_params: Params | None = None
    ) -> tuple[TrainState, Scalars]:
        key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), state.step)
        mixup_key, dropout_key = jax.random.split(key)

        images = normalize(batch["image"], jnp.array(mean), jnp.array(std))
        targets = loss.targets(batch["label"], num_classes)
        mask = batch["mask"]
        if mix.on:
            images, targets = mix(mixup_key, images, targets, mask)
        examples = jnp.sum(mask, dtype=jnp.int32)
        vectors = batch["label"].ndim > 1  # then there is no one right class
        scale = None  # of the losses, with which their mean is that by weight
        weights = None if mix.on else loss.example_weights(batch["label"])
        if weights is not None:
            weight = jnp.sum(jnp.where(mask, weights, 0.0))  # of the whole batch
            scale = examples / jnp.where(weight > 0, weight, 1.0)

        def loss_fn(
            params: Params, part: Batch, key: jax.Array
        ) -> tuple[jax.Array, Scalars]:
            params = without_gradient(params, frozen)
            logits = apply(
                {"params": params},
                part["image"],
                train=True,
                rngs={"dropout": key},
                **heads,
            )
            taught = logits
            if heads:
                logits, taught = logits[1]["head"], logits[1]["head_dist"]
            with jax.named_scope("loss"):
                losses = loss(logits, part["targets"])
                if scale is not None:
                    losses = losses * scale
                if teacher is not None:
                    weight = teacher.distillation.weight
                    other = teacher.loss(
                        teacher_params, part["image"], mean, std, taught
                    )
                    losses = (1.0 - weight) * losses + weight * other
                losses = jnp.where(part["mask"], losses, 0.0)
                value = jnp.sum(losses) / jnp.maximum(examples, 1)  # of the whole batch
                if vectors:
                    return value, {}
                right = jnp.argmax(logits, -1) == jnp.argmax(part["targets"], -1)
                right = jnp.sum(right & part["mask"], dtype=jnp.int32)
                return value, {"right": right}

        whole = {"image": images, "targets": targets, "mask": mask}
        (value, counts), grads = accumulate(
            jax.value_and_grad(loss_fn, has_aux=True),
            state.params,
            whole,
            dropout_key,
            steps=accumulation_steps,
            zero=(
                jnp.zeros(()),
                {} if vectors else {"right": jnp.zeros((), jnp.int32)},
            ),
        )
        # The names of the scopes are what a profile and `vit_jax.plan` group by.
        with jax.named_scope("optimizer"):
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            update_norm = optax.tree.norm(updates)
        new_state = TrainState(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            ema_params=average(state.ema_params, params, state.step, decay=ema),
            bad_examples=state.bad_examples + (mask.size - examples),
        )
        shares = {}
        if counts:
            shares["accuracy"] = counts["right"] / jnp.maximum(examples, 1)
        return new_state, {
            "loss": value,
            **shares,
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
            "grad_norm": optax.tree.norm(grads),
            "update_norm": update_norm,
            "param_norm": optax.tree.norm(read_again(params)),
            "bad_examples": new_state.bad_examples,
            "finite": jnp.isfinite(value) & jnp.isfinite(update_norm),
        }

    return train_step


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
    zero: Any,
) -> tuple[Any, Params]:
    """Sums values and gradient over `steps` micro-batches, one in memory at a time.

    The sum of the values, a tree of scalars, begins with `zero`. Micro-batch i holds
    the rows i, i + steps, i + 2 steps, ...: so every device has its share of each, and
    no row moves between devices.
    """
    if steps == 1:
        return value_and_grad(params, batch, key)

    def split(x: jax.Array) -> jax.Array:  # [b, ...] -> [steps, b / steps, ...]
        return x.reshape(x.shape[0] // steps, steps, *x.shape[1:]).swapaxes(0, 1)

    def add(total: Any, indexed: tuple[jax.Array, Batch]) -> tuple[Any, None]:
        index, part = indexed
        new = value_and_grad(params, part, jax.random.fold_in(key, index))
        return jax.tree.map(jnp.add, total, new), None

    begin = (zero, jax.tree.map(jnp.zeros_like, params))
    parts = (jnp.arange(steps), jax.tree.map(split, dict(batch)))
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
      *others: likewise; the parameters of a teacher, if it has one.
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
