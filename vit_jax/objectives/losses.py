"""Per-example losses, in float32, and weights of classes.

Axes: b batch, k classes.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.errors import UserError


def softmax_xent(
    logits: jax.Array, targets: jax.Array, weights: jax.Array | None = None
) -> jax.Array:
    """Cross-entropy of softmax(logits) [b, k] against target distributions [b, k].

    Returns -sum_k w_k targets_k log softmax(logits)_k, [b], in float32 and in nats;
    without `weights` [k] these are 1. A row of zero targets costs 0.

    >>> float(softmax_xent(jnp.zeros((1, 4)), jnp.eye(4)[:1])[0])  # log(4)
    1.3862943649291992
    """
    logits, targets = _as_float32(logits, targets)
    if weights is not None:
        targets = targets * weights
    return -jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1)  # [b]


def sigmoid_xent(
    logits: jax.Array, targets: jax.Array, weights: jax.Array | None = None
) -> jax.Array:
    """Binary cross-entropies of sigmoid(logits) [b, k], summed over the classes.

    Returns sum_k w_k (-targets_k log s(logits_k) - (1 - targets_k) log s(-logits_k)),
    [b], in float32; without `weights` [k] these are 1. The sum over classes, not their
    mean, as big_vision's `sigmoid_xent`.

    >>> float(sigmoid_xent(jnp.zeros((1, 2)), jnp.eye(2)[:1])[0])  # 2 log(2)
    1.3862943649291992
    """
    logits, targets = _as_float32(logits, targets)
    positive = jax.nn.log_sigmoid(logits)
    negative = jax.nn.log_sigmoid(-logits)
    each = targets * positive + (1.0 - targets) * negative  # [b, k]
    if weights is not None:
        each = each * weights
    return -jnp.sum(each, axis=-1)  # [b]


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


def balanced_weights(counts: np.ndarray, examples: int) -> tuple[float, ...]:
    """n / (k n_c) for class c of n_c examples out of n, and k classes that have any.

    As scikit-learn's `compute_class_weight("balanced")`. A class without an example
    weighs 1: only smoothed labels and sigmoid losses ask for it.

    Args:
        counts: n_c, [k].
        examples: n.

    >>> balanced_weights(np.array([95, 5, 0]), 100)
    (0.5263157894736842, 10.0, 1.0)
    """
    there = counts > 0
    weights = np.ones(len(counts))
    weights[there] = examples / (there.sum() * counts[there])
    return tuple(weights.tolist())


@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss in its two parts, between which mixup mixes the targets."""

    name: str
    label_smoothing: float
    class_weights: tuple[float, ...] | None = None

    def targets(self, labels: jax.Array, num_classes: int) -> jax.Array:
        """Labels [b] or [b, k] -> smoothed float32 targets [b, k]."""
        return to_targets(labels, num_classes, self.label_smoothing)

    def __call__(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        """Logits and targets [b, k] -> the loss of each example, float32 [b]."""
        if self.class_weights is None:
            return LOSSES[self.name](logits, targets)
        weights = jnp.array(self.class_weights, jnp.float32)
        return LOSSES[self.name](logits, targets, weights)

    def example_weights(self, labels: jax.Array) -> jax.Array | None:
        """What each example counts in the mean over a batch; None: each the same.

        As in torch, the mean of `softmax_xent` is divided by the weights of the
        examples' classes where labels are class numbers [b], and by the number of
        examples where they are vectors, as mixed ones are; and so is `sigmoid_xent`.
        A class number out of range weighs 0.
        """
        if self.class_weights is None or self.name != "softmax_xent":
            return None
        if labels.ndim != 1:
            return None
        weights = jnp.array(self.class_weights, jnp.float32)
        return jnp.sum(to_targets(labels, len(weights)) * weights, axis=-1)  # [b]


def make(
    *,
    name: Literal["softmax_xent", "sigmoid_xent"] = "softmax_xent",
    label_smoothing: float = 0.0,
    class_weights: Literal["balanced"] | tuple[float, ...] | None = None,
) -> Loss:
    """The training loss of the config's `loss` section.

    Args:
        name: `softmax_xent` for one class an image, `sigmoid_xent` for any number.
        label_smoothing: share of a label that is spread over all classes.
        class_weights: how much each class counts, for data of which some classes have
            few images; the same as torch's `CrossEntropyLoss(weight)` and
            `BCEWithLogitsLoss(weight)`. One number for each class, or "balanced": n /
            (k n_c) of n training images, n_c of them of class c, and k classes.
            Evaluations weigh no classes.

    Raises:
        UserError: An unknown name, smoothing outside [0, 1), or weights that are
            negative or all 0.

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
    # Until the images of each class have been counted, see `vit_jax.run`.
    assert class_weights != "balanced"
    if class_weights is not None and not (
        min(class_weights, default=0) >= 0 < sum(class_weights)
    ):
        raise UserError(
            f"config.loss.class_weights is {class_weights}: expected numbers of 0 or "
            "more, one for each class, and not all of them 0"
        )
    return Loss(name, label_smoothing, class_weights)
