"""Per-example losses, in float32.

Axes: b batch, k classes.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from vit_jax.errors import UserError


def softmax_xent(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Cross-entropy of softmax(logits) [b, k] against target distributions [b, k].

    Returns -sum_k targets_k log softmax(logits)_k, [b], in float32 and in nats. A row
    of zero targets costs 0.

    >>> float(softmax_xent(jnp.zeros((1, 4)), jnp.eye(4)[:1])[0])  # log(4)
    1.3862943649291992
    """
    logits, targets = _as_float32(logits, targets)
    return -jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1)  # [b]


def sigmoid_xent(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Binary cross-entropies of sigmoid(logits) [b, k], summed over the classes.

    Returns sum_k -targets_k log s(logits_k) - (1 - targets_k) log s(-logits_k), [b],
    in float32. The sum over classes, not their mean, as big_vision's `sigmoid_xent`.

    >>> float(sigmoid_xent(jnp.zeros((1, 2)), jnp.eye(2)[:1])[0])  # 2 log(2)
    1.3862943649291992
    """
    logits, targets = _as_float32(logits, targets)
    positive = jax.nn.log_sigmoid(logits)
    negative = jax.nn.log_sigmoid(-logits)
    return -jnp.sum(targets * positive + (1.0 - targets) * negative, axis=-1)  # [b]


def hard_distillation(
    logits: jax.Array, teacher: jax.Array, temperature: float = 1.0
) -> jax.Array:
    """Cross-entropy against the class that the teacher finds likeliest, [b].

    Touvron et al., arXiv:2012.12877, equation 3. The temperature changes nothing.

    >>> logits = jnp.zeros((1, 4))
    >>> float(hard_distillation(logits, jnp.array([[0.0, 3.0, 1.0, 2.0]]))[0])  # log(4)
    1.3862943649291992
    """
    del temperature
    best = jnp.argmax(teacher, axis=-1)
    return softmax_xent(logits, jax.nn.one_hot(best, teacher.shape[-1]))


def soft_distillation(
    logits: jax.Array, teacher: jax.Array, temperature: float = 1.0
) -> jax.Array:
    """T^2 KL(softmax(teacher / T) || softmax(logits / T)) of [b, k] and [b, k]: [b].

    Hinton et al., arXiv:1503.02531, and equation 2 of arXiv:2012.12877, whose code
    divides by k besides.

    >>> same = jnp.array([[0.0, 3.0, 1.0, 2.0]])
    >>> float(soft_distillation(same, same, 3.0)[0])
    0.0
    """
    logits, teacher = _as_float32(logits, teacher)
    said = jax.nn.log_softmax(teacher / temperature)
    learned = jax.nn.log_softmax(logits / temperature)
    return temperature**2 * jnp.sum(jnp.exp(said) * (said - learned), axis=-1)  # [b]


def to_targets(
    labels: jax.Array, num_classes: int, label_smoothing: float = 0.0
) -> jax.Array:
    """Class numbers [b] or label vectors [b, k] -> float32 targets [b, k].

    With smoothing s, targets are (1 - s) * labels + s / k (Szegedy et al., 1512.00567,
    section 7; `torch.nn.CrossEntropyLoss` agrees); without, vectors pass unchanged. A
    class number outside [0, k) gives a row of zeros before smoothing: it is nobody's
    class, and never an error inside a compiled step.

    >>> to_targets(jnp.array([1, 5]), 2, 0.5).tolist()
    [[0.25, 0.75], [0.25, 0.25]]
    """
    if labels.ndim == 1:
        if not jnp.issubdtype(labels.dtype, jnp.integer):
            raise ValueError(f"labels [b] must be integers, but are {labels.dtype}.")
        labels = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    if labels.ndim != 2 or labels.shape[-1] != num_classes:
        raise ValueError(
            f"labels must be [b] or [b, {num_classes}], but are {labels.shape}."
        )
    targets = labels.astype(jnp.float32)  # [b, k]
    if label_smoothing:
        targets = (1.0 - label_smoothing) * targets + label_smoothing / num_classes
    return targets


def _as_float32(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    # Equal shapes, since [k] against [b, k] would broadcast without a word.
    if logits.shape != targets.shape:
        raise ValueError(f"logits {logits.shape} but targets {targets.shape}.")
    return logits.astype(jnp.float32), targets.astype(jnp.float32)


LOSSES = {"softmax_xent": softmax_xent, "sigmoid_xent": sigmoid_xent}
DISTILLATIONS = {"hard": hard_distillation, "soft": soft_distillation}


@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss in its two parts, between which mixup mixes the targets."""

    name: str
    label_smoothing: float

    def targets(self, labels: jax.Array, num_classes: int) -> jax.Array:
        """Labels [b] or [b, k] -> smoothed float32 targets [b, k]."""
        return to_targets(labels, num_classes, self.label_smoothing)

    def __call__(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        """Logits and targets [b, k] -> the loss of each example, float32 [b]."""
        return LOSSES[self.name](logits, targets)


def make(
    *,
    name: Literal["softmax_xent", "sigmoid_xent"] = "softmax_xent",
    label_smoothing: float = 0.0,
) -> Loss:
    """The training loss of the config's `loss` section.

    Raises:
        UserError: An unknown name, or smoothing outside [0, 1).

    >>> loss = make(name="softmax_xent", label_smoothing=0.1)
    >>> targets = loss.targets(jnp.array([0, 1]), 2)
    >>> loss(jnp.zeros((2, 2)), targets).shape
    (2,)
    """
    if name not in LOSSES:
        raise UserError(f'Loss "{name}" is unknown; it is one of {", ".join(LOSSES)}.')
    if not 0 <= label_smoothing < 1:
        raise UserError(
            f"label_smoothing must be in [0, 1), but it is {label_smoothing}."
        )
    return Loss(name, label_smoothing)
