"""What is measured where an image may have several labels, or none.

For labels that are vectors and a loss whose classes do not exclude each other,
`sigmoid_xent`. All images count, also those without a label.

Axes: n examples, b batch, k classes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from vit_jax import steps
from vit_jax.data import Dataset
from vit_jax.errors import UserError
from vit_jax.evaluators import scores
from vit_jax.program import Program

# Of n x k logits, which mAP and AUC need all at once: 1 GiB in each process.
MOST_LOGITS = 2**28


def make_step(
    program: Program, dataset: Dataset, *, classes: Sequence[int] | None, rank: bool
) -> steps.EvalStep:
    """A pure function (params, batch) -> what `Totals.add` takes.

    As in `scores.make_step` no floats are summed, so that results depend on no mesh.

    Args:
      program: of the model, with the loss.
      dataset: that the batches are of.
      classes: that logits and labels are restricted to, before anything else.
      rank: whether all logits are returned, for mAP and AUC.
    """
    predict = scores.make_prediction(program, dataset, classes)

    def eval_step(params: Any, batch: steps.Batch) -> steps.Scalars:
        logits, labels = predict(params, batch)
        targets = program.eval_loss.targets(labels, logits.shape[-1])  # [b, k]
        counted = batch["mask"]
        is_label = (targets > 0.5) & counted[:, None]  # [b, k]
        predicted = (logits > 0) & counted[:, None]  # sigmoid(logit) > 1/2
        highest = jnp.argmax(logits, axis=-1)
        rows = {
            "counted": counted,
            "loss": program.eval_loss(logits, targets),
            "tagged": jnp.any(is_label, axis=-1),
            "exact": counted & jnp.all(is_label == predicted, axis=-1),
            "highest_is_label": scores.one_of(is_label, highest[:, None]),
            "labels": jnp.sum(is_label, 0, jnp.int32),
            "predictions": jnp.sum(predicted, 0, jnp.int32),
            "hits": jnp.sum(is_label & predicted, 0, jnp.int32),
        }
        return rows | ({"logits": logits, "is_label": is_label} if rank else {})

    return eval_step


class Totals:
    """Sums over batches: exact counts, and float64.

    Attributes:
      examples: number of all; `exact`: of those whose set of labels is predicted as it
        is; `highest_is_label`: whose highest logit is of one of their labels;
        `tagged`: that have a label.
      loss: summed.
      labels: of each class [k]; `predictions` likewise, and `hits`, which are both.
    """

    confusion = None

    def __init__(self, num_classes: int, *, rank: bool) -> None:
        self.examples = self.exact = self.highest_is_label = self.tagged = 0
        self.loss = 0.0
        self.labels = np.zeros(num_classes, np.int64)
        self.predictions = np.zeros(num_classes, np.int64)
        self.hits = np.zeros(num_classes, np.int64)
        self._rank = rank
        self._logits: list[np.ndarray] = []
        self._is_label: list[np.ndarray] = []

    def add(self, rows: Mapping[str, np.ndarray]) -> None:
        """Adds what a step gave for a batch, on the host."""
        counted = rows["counted"]
        self.examples += int(counted.sum())
        self.tagged += int(rows["tagged"].sum())
        self.exact += int(rows["exact"].sum())
        self.highest_is_label += int(rows["highest_is_label"].sum())
        self.loss += float(rows["loss"][counted].sum(dtype=np.float64))
        for name in ("labels", "predictions", "hits"):
            setattr(self, name, getattr(self, name) + rows[name])
        if self._rank:
            self._logits.append(rows["logits"][counted])
            self._is_label.append(rows["is_label"][counted])

    def check(self, where: str) -> None:
        """Refuses results that would mean nothing.

        Raises:
          UserError: no example has a label.
          NonFiniteLossError: the loss is not finite.
        """
        scores.check_loss(self.loss, self.examples, where)
        if not self.labels.any():
            raise UserError(f"{where}: no example of the split has a label")

    def scalars(self) -> dict[str, float | int]:
        """What `scalar_names` names."""
        precision = _ratio(self.hits.sum(), self.predictions.sum())
        recall = _ratio(self.hits.sum(), self.labels.sum())
        found: dict[str, float | int] = {
            "accuracy": self.exact / self.examples,
            "micro_f1": scores.f1(precision, recall) or 0.0,
            "macro_f1": _mean(self._by_class()["f1"]),
            "precision_at_1": self.highest_is_label / self.examples,
            "loss": self.loss / self.examples,
            "examples": self.examples,
        }
        if self._rank:
            found["mAP"] = _mean(self._ranked(average_precision))
            found["auc"] = _mean(self._ranked(roc_auc))
        return {name: found[name] for name in scalar_names(rank=self._rank)}

    def _ranked(
        self, measure: Callable[[np.ndarray, np.ndarray], float | None]
    ) -> list[float | None]:
        """Of each class."""
        logits = np.concatenate(self._logits)
        is_label = np.concatenate(self._is_label)
        return [measure(logits[:, i], is_label[:, i]) for i in range(len(self.labels))]

    def record(self) -> dict[str, Any]:
        """What is not a scalar."""
        per_class: dict[str, Any] = {"examples": self.labels, **self._by_class()}
        if self._rank:
            per_class["average_precision"] = self._ranked(average_precision)
            per_class["auc"] = self._ranked(roc_auc)
        return {"without_label": self.examples - self.tagged, "per_class": per_class}

    def _by_class(self) -> dict[str, list[float | None]]:
        precision, recall = (
            [_ratio(hits, n) for hits, n in zip(self.hits, of, strict=True)]
            for of in (self.predictions, self.labels)
        )
        both = [scores.f1(p, r) for p, r in zip(precision, recall, strict=True)]
        return {"precision": precision, "recall": recall, "f1": both}


def scalar_names(*, rank: bool) -> list[str]:
    """The scalars of `Totals`."""
    names = ["accuracy", "micro_f1", "macro_f1", "precision_at_1", "loss", "examples"]
    return ["mAP", "auc", *names] if rank else names


def average_precision(values: np.ndarray, is_label: np.ndarray) -> float | None:
    """AP = sum_i (R_i - R_{i-1}) P_i over the different values, from the highest down.

    R_i and P_i are recall and precision of what has the i-th value or a higher one, as
    in scikit-learn's `average_precision_score`.

    Args:
      values: [n], the higher the likelier.
      is_label: bool [n].

    Returns:
      None if no example has the label.

    >>> average_precision(np.array([3.0, 2.0, 1.0]), np.array([True, False, True]))
    0.8333333333333333
    """
    if not is_label.any():
        return None
    order = np.argsort(-values, kind="stable")
    values, hits = values[order], np.cumsum(is_label[order])
    last = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)  # of equals
    gained = np.diff(hits[last], prepend=0)
    return float(np.sum(gained * hits[last] / (last + 1)) / hits[-1])


def roc_auc(values: np.ndarray, is_label: np.ndarray) -> float | None:
    """The area under the ROC curve: how often a labelled example has the higher value.

    Of all pairs of an example with the label and one without; equal values count half,
    as in scikit-learn's `roc_auc_score`. Computed from ranks (Mann and Whitney, 1947).

    Args:
      values: [n], the higher the likelier.
      is_label: bool [n].

    Returns:
      None if all examples have the label, or none has.

    >>> roc_auc(np.array([3.0, 2.0, 1.0]), np.array([True, False, True]))
    0.5
    """
    from scipy import stats  # half a second, which few runs need

    positive = int(is_label.sum())
    pairs = positive * (len(is_label) - positive)
    if not pairs:
        return None
    ranks = stats.rankdata(values)[is_label].sum() - positive * (positive + 1) / 2
    return float(ranks / pairs)


def _ratio(part: Any, of: Any) -> float | None:
    return int(part) / int(of) if of else None


def _mean(values: Sequence[float | None]) -> float:
    """Of those that are known."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else 0.0
