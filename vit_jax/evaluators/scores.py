"""What an evaluation asks of each example on the device, and its sums on the host.

Axes: b batch, k classes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import objectives, steps
from vit_jax.data import Dataset
from vit_jax.errors import NonFiniteLossError, UserError
from vit_jax.evaluators.base import apply_at_any_size
from vit_jax.program import Program

Prediction = Callable[[Any, steps.Batch], tuple[jax.Array, jax.Array]]

TOP = 5
BINS = 15  # of the confidence, as in Guo et al., arXiv:1706.04599
CONFUSION_CLASSES = 1000  # the most that a matrix of [k, k] counts is kept for


def make_step(
    program: Program,
    dataset: Dataset,
    *,
    classes: Sequence[int] | None = None,
) -> steps.EvalStep:
    """A pure function (params, batch) -> what `Totals.add` takes.

    It gives integers, booleans and float32 of single examples, and sums no floats, so
    that the sums depend on no mesh. Of equal logits the first counts as the highest. An
    example whose set of labels is empty has no right answer and does not count, as in
    ImageNet-ReaL (Beyer et al., arXiv:2006.07159).

    Args:
      program: of the model, with the loss, which says what a probability is.
      dataset: that the batches are of.
      classes: that logits and labels are restricted to, before anything else.
    """
    predict = make_prediction(program, dataset, classes)
    loss = program.eval_loss

    def eval_step(params: Any, batch: steps.Batch) -> steps.Scalars:
        logits, labels = predict(params, batch)
        k = logits.shape[-1]
        targets = loss.targets(labels, k)  # [b, k]
        is_label = targets > 0.5
        counted, rows = batch["mask"], {}
        if labels.ndim == 1:
            rows["label"] = labels
        else:
            counted = counted & jnp.any(is_label, axis=-1)
        highest = jnp.argmax(logits, axis=-1)  # [b]
        correct = counted & one_of(is_label, highest[:, None])
        rows |= {
            "counted": counted,
            "prediction": highest.astype(jnp.int32),
            "correct": correct,
            "confidence": confidence(logits, loss.name),
            "loss": loss(logits, targets),
            "class_examples": jnp.sum(is_label & counted[:, None], 0, jnp.int32),
            "class_correct": jnp.sum(is_label & correct[:, None], 0, jnp.int32),
        }
        if k > TOP:
            _, best = jax.lax.top_k(logits, TOP)  # [b, TOP]; of equals the first
            rows["in_top"] = counted & one_of(is_label, best)
        return rows

    return eval_step


def make_prediction(
    program: Program, dataset: Dataset, classes: Sequence[int] | None
) -> Prediction:
    """A pure function (params, batch) -> logits float32 [b, k], and labels [b(, k)].

    The arguments are those of `make_step`.
    """
    mean, std = jnp.array(dataset.mean), jnp.array(dataset.std)
    apply = apply_at_any_size(program)

    def predict(params: Any, batch: steps.Batch) -> tuple[jax.Array, jax.Array]:
        images = objectives.normalize(batch["image"], mean, std)
        logits = apply({"params": params}, images, train=False)
        logits, labels = logits.astype(jnp.float32), batch["label"]
        if classes is not None:
            return restrict(logits, labels, classes)
        return logits, labels

    return predict


def restrict(
    logits: jax.Array, labels: jax.Array, classes: Sequence[int]
) -> tuple[jax.Array, jax.Array]:
    """Of logits [b, n] and labels (int [b] or 0/1 [b, n]) the part that is `classes`.

    Class `classes[i]` becomes i, and any other -1.

    >>> restrict(jnp.array([[1., 2., 3.]]), jnp.array([2]), [0, 2])
    (Array([[1., 3.]], dtype=float32), Array([1], dtype=int32))
    """
    chosen = np.array(classes)
    if labels.ndim == 2:
        return logits[:, chosen], labels[:, chosen]
    position = np.full(logits.shape[-1], -1, np.int32)
    position[chosen] = np.arange(len(chosen))
    found = jnp.array(position).at[labels].get(mode="fill", fill_value=-1)
    return logits[:, chosen], found


def one_of(is_label: jax.Array, predictions: jax.Array) -> jax.Array:
    """bool [b]: one of the predictions [b, n] is a label, of those in bool [b, k]."""
    return jnp.any(jnp.take_along_axis(is_label, predictions, axis=-1), axis=-1)


def confidence(logits: jax.Array, loss: str) -> jax.Array:
    """The probability [b] that the model gives its highest class.

    For the sigmoid's loss that is of this class alone, sigmoid(logit): the classes do
    not exclude each other there.
    """
    if loss == "sigmoid_xent":
        return jax.nn.sigmoid(jnp.max(logits, axis=-1))
    return jnp.max(jax.nn.softmax(logits, axis=-1), axis=-1)


class Totals:
    """Sums over batches: exact counts, and float64.

    Attributes:
      examples: number of those that count.
      correct: whose highest logit is (one of) their label(s); `in_top`: one of the TOP
        highest.
      loss: summed.
      bins: examples [BINS] by confidence; `bins_correct` and `bins_confidence` are sums
        over them.
      class_examples: examples [k] by label, where a label is a set in each of its;
        `class_correct`: the correct ones among them.
      class_predicted: examples [k] by prediction, where a label is one class.
      confusion: counts [k, k] by label and prediction, or None.
    """

    def __init__(self, num_classes: int, *, multi_hot: bool) -> None:
        k = num_classes
        self.examples = self.correct = self.in_top = self.outside = 0
        self.loss = 0.0
        self.bins = np.zeros(BINS, np.int64)
        self.bins_correct = np.zeros(BINS, np.int64)
        self.bins_confidence = np.zeros(BINS)
        self.class_examples = np.zeros(k, np.int64)
        self.class_correct = np.zeros(k, np.int64)
        self.class_predicted = None if multi_hot else np.zeros(k, np.int64)
        self.confusion: np.ndarray | None = None
        if not multi_hot and k <= CONFUSION_CLASSES:
            self.confusion = np.zeros((k, k), np.int64)

    def add(self, rows: Mapping[str, np.ndarray]) -> None:
        """Adds what a step gave for a batch, on the host."""
        counted = rows["counted"]
        self.examples += int(counted.sum())
        self.correct += int(rows["correct"].sum())
        self.in_top += int(rows["in_top"].sum()) if "in_top" in rows else 0
        self.loss += float(rows["loss"][counted].sum(dtype=np.float64))
        self.class_examples += rows["class_examples"]
        self.class_correct += rows["class_correct"]
        self._add_confidence(rows["confidence"][counted], rows["correct"][counted])
        if "label" in rows:
            label, prediction = rows["label"][counted], rows["prediction"][counted]
            known = (label >= 0) & (label < len(self.class_examples))
            self.outside += int((~known).sum())
            if self.class_predicted is not None:
                k = len(self.class_predicted)
                self.class_predicted += np.bincount(prediction, minlength=k)
            if self.confusion is not None:
                np.add.at(self.confusion, (label[known], prediction[known]), 1)

    def _add_confidence(self, confidence: np.ndarray, correct: np.ndarray) -> None:
        """To the bins (i / BINS, (i + 1) / BINS]."""
        edges = np.arange(1, BINS) / BINS
        bins = np.searchsorted(edges, confidence.astype(np.float64), side="left")
        self.bins += np.bincount(bins, minlength=BINS)
        self.bins_correct += np.bincount(bins[correct], minlength=BINS)
        self.bins_confidence += np.bincount(bins, confidence, minlength=BINS)

    def check(self, where: str) -> None:
        """Refuses results that would mean nothing.

        Raises:
          UserError: no example counts, or a label is of no class.
          NonFiniteLossError: the loss is not finite.
        """
        if self.outside:
            raise UserError(
                f"{where}: {self.outside} of {self.examples} labels are none of the "
                f"{len(self.class_examples)} classes that it tells apart; correct the "
                "labels, or choose another split or other classes"
            )
        if self.examples == 0:
            raise UserError(f"{where}: no example of the split has a label")
        check_loss(self.loss, self.examples, where)

    def scalars(self) -> dict[str, float | int]:
        """What `scalar_names` names."""
        found: dict[str, float | int] = {
            "accuracy": self.correct / self.examples,
            "mean_class_accuracy": self.mean_class_accuracy(),
            "top5_accuracy": self.in_top / self.examples,
            "loss": self.loss / self.examples,
            "calibration_error": self.calibration_error(),
            "examples": self.examples,
        }
        return {name: found[name] for name in scalar_names(len(self.class_examples))}

    def calibration_error(self) -> float:
        """ECE: the gap of accuracy and mean confidence, averaged over the examples.

        sum_i |B_i| / n |acc(B_i) - conf(B_i)|, arXiv:1706.04599, equation 3.
        """
        gaps = np.abs(self.bins_correct - self.bins_confidence)
        return float(gaps.sum() / self.examples)

    def mean_class_accuracy(self) -> float:
        """Of the classes that occur: balanced accuracy."""
        accuracy = _share(self.class_correct, self.class_examples)
        known = [value for value in accuracy if value is not None]
        return sum(known) / len(known)

    def record(self) -> dict[str, Any]:
        """What is not a scalar."""
        return {
            "mean_class_accuracy": self.mean_class_accuracy(),
            "calibration": {
                "examples": self.bins,
                "accuracy": _share(self.bins_correct, self.bins),
                "confidence": _share(self.bins_confidence, self.bins),
            },
            "per_class": self._per_class(),
        }

    def _per_class(self) -> dict[str, Any]:
        """Where a label is one class, `accuracy` is the class's recall."""
        recall = _share(self.class_correct, self.class_examples)
        found: dict[str, Any] = {"examples": self.class_examples, "accuracy": recall}
        if self.class_predicted is not None:
            precision = _share(self.class_correct, self.class_predicted)
            both = zip(precision, recall, strict=True)
            found |= {"precision": precision, "recall": recall}
            found["f1"] = [f1(p, r) for p, r in both]
        return found


def check_loss(loss: float, examples: int, where: str) -> None:
    """Refuses results of a model whose outputs are not numbers.

    Raises:
      NonFiniteLossError: the loss is not finite.
    """
    if not math.isfinite(loss):
        raise NonFiniteLossError(
            f"{where}: the loss of {examples} examples is {loss:.4g}: the parameters, "
            "or what the model makes of them, are not finite"
        )


def f1(precision: float | None, recall: float | None) -> float | None:
    """2 p r / (p + r); None where there is neither a label nor a prediction.

    >>> f1(0.5, 1.0), f1(None, 0.0), f1(None, None)
    (0.6666666666666666, 0.0, None)
    """
    if precision is None and recall is None:
        return None
    p, r = precision or 0.0, recall or 0.0
    return 2 * p * r / (p + r) if p + r else 0.0


def scalar_names(num_classes: int) -> list[str]:
    """The scalars of `Totals`; the best five of five would mean nothing."""
    top = ["top5_accuracy"] if num_classes > TOP else []
    return [
        "accuracy",
        "mean_class_accuracy",
        *top,
        "loss",
        "calibration_error",
        "examples",
    ]


def _share(parts: np.ndarray, of: np.ndarray) -> list[float | None]:
    """parts / of; None where there is nothing to divide by."""
    return [
        p / n if n else None for p, n in zip(parts.tolist(), of.tolist(), strict=True)
    ]
