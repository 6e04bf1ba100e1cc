"""The optimiser: clipping, preconditioner, weight decay, learning rate.

One update of a parameter p with gradient g, in the order of the chain:

    g <- clip(g)                              global norm of what is trained
    u <- precondition(g)                      adamw, sgd, adafactor or lion
    p <- p - lr(step) * lr_multiplier * (u + weight_decay * decay_multiplier * p)

All four optimisers share the last line: weight decay is decoupled from the gradient
(Loshchilov and Hutter, 1711.05101) and is multiplied by the learning rate, as in
`optax.adamw` and `torch.optim.AdamW`. big_vision multiplies it by the schedule relative
to its peak instead: its `wd` is our `learning_rate * weight_decay`.

The state is optax's: a pytree of arrays, with the step count inside, in which the paths
of moments end in the path of their parameter (`.../adamw/mu/head/kernel`).
"""

import difflib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax import schedules
from vit_jax.errors import UserError

# The first pattern that matches the whole path of a parameter gives its multiplier.
Multipliers = tuple[tuple[str, float], ...]

# As big_vision: the weights of dense layers, convolutions and attention. Not biases,
# LayerNorm scales, the class token, position embeddings or the probe of map pooling.
DECAYED_BY_DEFAULT: Multipliers = ((r"(.*/)?kernel", 1.0),)


def make(
    params: Any,
    total_steps: int,
    *,
    name: Literal["adamw", "sgd", "adafactor", "lion"] = "adamw",
    learning_rate: float = 1e-3,
    schedule: Literal["cosine", "linear", "rsqrt", "constant"] = "cosine",
    warmup_steps: int = 0,
    timescale: int | None = None,
    cooldown_steps: int | None = None,
    end_learning_rate: float = 0.0,
    weight_decay: float = 0.0,
    decay_multipliers: Multipliers | None = None,
    lr_multipliers: Multipliers = (),
    train_only: str | None = None,
    layer_decay: float | None = None,
    clip_norm: float | None = None,
    moment_dtype: Literal["float32", "bfloat16"] = "float32",
    b1: float | None = None,
    b2: float | None = None,
    eps: float | None = None,
    momentum: float | None = None,
    nesterov: bool | None = None,
    decay_rate: float | None = None,
    clipping_threshold: float | None = None,
    min_dim_size_to_factor: int | None = None,
) -> tuple[optax.GradientTransformation, schedules.Schedule]:
    """Builds the gradient transformation and the schedule that it follows.

    Args:
        params: The parameters, or a tree of ShapeDtypeStruct: only paths and shapes
            are read.
        total_steps: Updates of the whole run.
        name: The optimiser; what each reads and its defaults are `OPTIMIZERS`.
        learning_rate: The peak; see `schedules.make`.
        schedule: See `schedules.make`.
        warmup_steps: See `schedules.make`.
        timescale: See `schedules.make`.
        cooldown_steps: See `schedules.make`.
        end_learning_rate: See `schedules.make`.
        weight_decay: Decoupled weight decay, multiplied by the learning rate.
        decay_multipliers: (pattern, multiplier) pairs; patterns are regular
            expressions that must match a whole path such as
            `Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel`, the first that
            does counts, no match means 0. Replaces `DECAYED_BY_DEFAULT`.
        lr_multipliers: The same for the learning rate (and with it the decay); no
            match means 1. With 0 a parameter is frozen: it is never changed, has no
            moments, and does not count in the norm that is clipped.
        train_only: A pattern of whole paths as above; all other parameters are
            frozen. `head/.*` makes a linear probe.
        layer_decay: The learning rate of layer l of L is multiplied with this to the
            power of L + 1 - l (BEiT, 2106.08254, appendix); the embedding is layer 0,
            and the head and what else is above the layers has all of it. On top of
            `lr_multipliers`.
        clip_norm: Largest global norm of the gradients; None for no clipping.
        moment_dtype: How the first moment is stored. Second moments are float32.
        b1: Decay of the first moment (adamw, lion, adafactor).
        b2: Decay of the second moment (adamw; adafactor: its cap), or of the momentum
            that lion keeps.
        eps: Added to the root of the second moment (adamw), or to the square of the
            gradient (adafactor).
        momentum: sgd; 0 for none.
        nesterov: sgd.
        decay_rate: adafactor; the second moment's decay at update t is 1 - t^-this.
        clipping_threshold: adafactor; largest RMS of the update of an array.
        min_dim_size_to_factor: adafactor; smaller arrays keep a full second moment.

    Returns:
        The transformation (its `update` needs `params`) and the schedule, which maps
        the number of finished updates to the learning rate of the next.

    Raises:
        UserError: A key that the chosen optimiser or schedule does not read, a
            pattern that matches nothing, numbers out of range.

    >>> params = {"head": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    >>> tx, schedule = make(
    ...     params, 10, name="sgd", learning_rate=0.1, schedule="constant",
    ...     weight_decay=0.5, lr_multipliers=(("head/bias", 2.0),))
    >>> grads = jax.tree.map(jnp.ones_like, params)
    >>> updates, state = tx.update(grads, tx.init(params), params)
    >>> [round(float(x.max()), 4) for x in jax.tree.leaves(updates)]
    [-0.2, -0.15]
    """
    learning_rate_at = schedules.make(
        total_steps,
        schedule=schedule,
        learning_rate=learning_rate,
        warmup_steps=warmup_steps,
        timescale=timescale,
        cooldown_steps=cooldown_steps,
        end_learning_rate=end_learning_rate,
    )
    precondition = _preconditioner(
        name,
        moment_dtype,
        b1=b1,
        b2=b2,
        eps=eps,
        momentum=momentum,
        nesterov=nesterov,
        decay_rate=decay_rate,
        clipping_threshold=clipping_threshold,
        min_dim_size_to_factor=min_dim_size_to_factor,
    )
    paths = _paths(params)
    scales: dict[str, Any] = _learning_rates(paths, lr_multipliers, train_only)
    frozen = _frozen(scales)
    if layer_decay is not None:
        for path, scale in _layer_scales(layer_decay, params).items():
            scales[path] = scale * scales[path]

    steps: list[tuple[str, optax.GradientTransformation]] = []
    if clip_norm is not None:
        if not clip_norm > 0:
            raise UserError(f"clip_norm must be positive, but it is {clip_norm}.")
        steps.append(("clip", optax.clip_by_global_norm(clip_norm)))
    steps.append((name, precondition))
    decays = _decays(weight_decay, decay_multipliers, paths)
    if any(decays.values()):
        steps.append(("weight_decay", _add_decayed_weights(decays)))
    if layer_decay is not None or any(scale != 1.0 for scale in scales.values()):
        steps.append(("lr_multipliers", _scale_by_path(scales)))
    steps.append(("schedule", optax.scale_by_learning_rate(learning_rate_at)))
    tx = optax.named_chain(*steps)
    return (_freeze(tx, frozen) if frozen else tx), learning_rate_at


def frozen_paths(
    params: Any, *, lr_multipliers: Multipliers = (), train_only: str | None = None
) -> frozenset[str]:
    """The paths of the parameters that the same keywords of `make` freeze.

    Raises:
        UserError: If nothing would learn.
    """
    return _frozen(_learning_rates(_paths(params), lr_multipliers, train_only))


def _frozen(scales: Mapping[str, float]) -> frozenset[str]:
    frozen = frozenset(path for path, scale in scales.items() if scale == 0)
    if frozen == scales.keys():
        raise UserError("lr_multipliers freezes every parameter: nothing would learn.")
    return frozen


def _learning_rates(
    paths: list[str], lr_multipliers: Multipliers, train_only: str | None
) -> dict[str, float]:
    """What the learning rate of each path is multiplied with."""
    scales = _multipliers("lr_multipliers", lr_multipliers, paths, default=1.0)
    if train_only is not None:
        only = _multipliers("train_only", ((train_only, 1.0),), paths, default=0.0)
        scales = {path: scale * only[path] for path, scale in scales.items()}
    return scales


# What each optimiser reads, with its defaults. -----------------------------------


def _adamw(
    *, mu_dtype: str, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Adam with bias correction (Kingma and Ba, 1412.6980, algorithm 1)."""
    return optax.scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=mu_dtype)


def _sgd(
    *, mu_dtype: str, momentum: float = 0.9, nesterov: bool = False
) -> optax.GradientTransformation:
    """Momentum as a sum, m = g + momentum * m, as in torch; 0 keeps no moments."""
    if momentum == 0:
        if nesterov or mu_dtype != "float32":
            raise UserError(
                "sgd with momentum=0 keeps no moments: remove nesterov and "
                "moment_dtype, or set momentum."
            )
        return optax.identity()
    return optax.trace(decay=momentum, nesterov=nesterov, accumulator_dtype=mu_dtype)


def _lion(
    *, mu_dtype: str, b1: float = 0.9, b2: float = 0.99
) -> optax.GradientTransformation:
    """Sign of an interpolated momentum (Chen et al., 2302.06675, algorithm 2)."""
    return optax.scale_by_lion(b1=b1, b2=b2, mu_dtype=mu_dtype)


def _adafactor(
    *,
    mu_dtype: str,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-30,
    decay_rate: float = 0.8,
    clipping_threshold: float | None = None,
    min_dim_size_to_factor: int = 32,
) -> optax.GradientTransformation:
    """Adafactor (Shazeer and Stern, 1804.04235) as modified for ViT.

    "Scaling Vision Transformers" (2106.04560, section 3.4) and big_vision: a momentum
    of `b1` without bias correction; the second moment's decay 1 - t^-decay_rate is
    capped at `b2`; updates are not scaled by the size of the parameter, nor clipped
    by their RMS unless `clipping_threshold` is set (the first paper has 1.0). The two
    largest axes of an array are factored when both have at least
    `min_dim_size_to_factor` elements.
    """

    def capped_decay(step: Any, exponent: Any) -> jax.Array:
        t = jnp.asarray(step, jnp.float32) + 1.0
        return jnp.minimum(b2, 1.0 - t ** (-exponent))

    steps: list[tuple[str, optax.GradientTransformation]] = []
    factored = optax.scale_by_factored_rms(
        decay_rate=decay_rate,
        epsilon=eps,
        min_dim_size_to_factor=min_dim_size_to_factor,
        decay_rate_fn=capped_decay,
    )
    steps.append(("factored_rms", factored))
    if clipping_threshold is not None:
        steps.append(("clip_rms", optax.clip_by_block_rms(clipping_threshold)))
    if b1:
        ema = optax.ema(b1, debias=False, accumulator_dtype=mu_dtype)
        steps.append(("momentum", ema))
    elif mu_dtype != "float32":
        raise UserError("adafactor with b1=0 keeps no momentum: remove moment_dtype.")
    return optax.named_chain(*steps)


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adamw": _adamw,
    "sgd": _sgd,
    "adafactor": _adafactor,
    "lion": _lion,
}


def _preconditioner(
    name: str, moment_dtype: str, **keys: Any
) -> optax.GradientTransformation:
    if name not in OPTIMIZERS:
        raise UserError(
            f'Optimiser "{name}" is unknown; it is one of {", ".join(OPTIMIZERS)}.'
        )
    given = {key: value for key, value in keys.items() if value is not None}
    reads = set(inspect.signature(OPTIMIZERS[name]).parameters) - {"mu_dtype"}
    if unread := sorted(set(given) - reads):
        raise UserError(
            f'{", ".join(unread)}: not read by optimiser "{name}", which reads '
            f"{', '.join(sorted(reads))}. Remove it or choose another optimiser."
        )
    for key in ("b1", "b2", "momentum"):
        if key in given and not 0 <= given[key] < 1:
            raise UserError(f"{key} must be in [0, 1), but it is {given[key]}.")
    for key in ("eps", "decay_rate", "clipping_threshold", "min_dim_size_to_factor"):
        if key in given and not given[key] > 0:
            raise UserError(f"{key} must be positive, but it is {given[key]}.")
    return OPTIMIZERS[name](mu_dtype=moment_dtype, **given)


# Multipliers by path. --------------------------------------------------------------


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _paths(params: Any) -> list[str]:
    return [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]


def _decays(
    weight_decay: float, multipliers: Multipliers | None, paths: Sequence[str]
) -> dict[str, float]:
    """Weight decay of each path."""
    if not weight_decay >= 0:
        raise UserError(f"weight_decay must be at least 0, but it is {weight_decay}.")
    if weight_decay == 0:
        if multipliers:
            raise UserError(
                "decay_multipliers is set, but weight_decay is 0: set weight_decay or "
                "remove decay_multipliers."
            )
        return {}
    scales = _multipliers(
        "decay_multipliers",
        DECAYED_BY_DEFAULT if multipliers is None else multipliers,
        paths,
        default=0.0,
    )
    return {path: weight_decay * scale for path, scale in scales.items()}


def _multipliers(
    key: str, multipliers: Multipliers, paths: Sequence[str], *, default: float
) -> dict[str, float]:
    """Multiplier of each path: that of the first pattern which matches all of it."""
    result: dict[str, float] = {}
    for pattern, value in multipliers:
        try:
            matches = [path for path in paths if re.fullmatch(pattern, path)]
        except re.error as e:
            raise UserError(
                f'{key}: "{pattern}" is not a regular expression: {e}.'
            ) from e
        if not value >= 0:
            raise UserError(f'{key}: "{pattern}" has {value}, but it must be >= 0.')
        if not matches:
            raise UserError(
                f'{key}: "{pattern}" matches no parameter. It must match a whole '
                f"path, such as: {', '.join(_near(pattern, paths))}."
            )
        new = [path for path in matches if path not in result]
        if not new:
            raise UserError(
                f'{key}: all that "{pattern}" matches is matched by patterns before '
                "it, and the first counts. Move it forward or remove it."
            )
        result.update(dict.fromkeys(new, value))
    return {path: result.get(path, default) for path in paths}


def _near(pattern: str, paths: Sequence[str]) -> list[str]:
    letters = re.sub(r"[^\w/]+", "", pattern)
    near = difflib.get_close_matches(letters, paths, n=3, cutoff=0.3)
    return near or list(paths[:3])


def _add_decayed_weights(decays: dict[str, float]) -> optax.GradientTransformation:
    def update(updates: Any, params: Any) -> Any:
        def add(path: Any, u: jax.Array, p: jax.Array) -> jax.Array:
            decay = decays[_name(path)]
            return u + decay * p if decay else u

        return jax.tree_util.tree_map_with_path(add, updates, params)

    return optax.stateless(update)


_BLOCK = re.compile(r"(?:^|/)(?:encoderblock|MixerBlock)(?:_(\d+))?/")
_ABOVE = r"(head|head_dist|pre_logits|fc_norm|MAPHead_0|pre_head_layer_norm)/.*"
_ABOVE += r"|Transformer/encoder_norm/.*"


def _layer_scales(decay: float, params: Any) -> dict[str, Any]:
    """`layer_decay` of each path; of stacked layers an array [L, 1, ...]."""
    if not 0 < decay <= 1:
        raise UserError(
            f"layer_decay must be above 0 and at most 1, but it is {decay}."
        )
    leaves = [
        (_name(path), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    ]
    blocks = {path: match for path, _ in leaves if (match := _BLOCK.search(path))}
    if not blocks:
        raise UserError("layer_decay needs a model with layers: remove it.")
    depth = max(
        int(blocks[path][1]) + 1 if blocks[path][1] else leaf.shape[0]
        for path, leaf in leaves
        if path in blocks
    )
    scales: dict[str, Any] = {}
    for path, leaf in leaves:
        if re.fullmatch(_ABOVE, path):
            scales[path] = 1.0
        elif path not in blocks:
            scales[path] = decay ** (depth + 1)
        elif blocks[path][1]:
            scales[path] = decay ** (depth - int(blocks[path][1]))
        else:
            powers = decay ** (depth - np.arange(depth))
            scales[path] = powers.reshape(-1, *[1] * (len(leaf.shape) - 1))
    return scales


def _scale_by_path(scales: dict[str, Any]) -> optax.GradientTransformation:
    def update(updates: Any, params: Any) -> Any:
        del params

        def scale(path: Any, u: jax.Array) -> jax.Array:
            return jnp.asarray(scales[_name(path)], u.dtype) * u

        return jax.tree_util.tree_map_with_path(scale, updates)

    return optax.stateless(update)


def _freeze(
    tx: optax.GradientTransformation, frozen: frozenset[str]
) -> optax.GradientTransformation:
    """Hides the frozen leaves from `tx` and gives them updates of zero."""

    def trained(tree: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: _name(path) not in frozen, tree
        )

    def not_trained(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: not leaf, trained(tree))

    return optax.named_chain(
        ("trained", optax.masked(tx, trained)),
        ("frozen", optax.masked(optax.set_to_zero(), not_trained)),
    )
