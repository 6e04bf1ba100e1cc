"""Multinomial logistic regression on frozen representations, by CLIP's protocol.

Axes: n images, d features, c classes.

As in CLIP (arXiv:2103.00020, appendix A.3) the features are not standardised, L-BFGS
runs over all images at once, for 1,000 iterations at most, and the strength of the
regularisation is the one that is best on held-out images; then all are fitted:

    min over W [d, c], b [c] of  sum_i xent(x_i W + b, y_i) + |W|^2 / (2 C)

which is scikit-learn's LogisticRegression(C=C).
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh

from vit_jax import distributed
from vit_jax.errors import UserError
from vit_jax.evaluators.base import Result, ResultsOf
from vit_jax.evaluators.features import OnFeatures, Represented, agreed
from vit_jax.evaluators.logistic import Fit, LogisticRegression, Weights
from vit_jax.state import Params

HELD_OUT = 0.1  # share of the training split that chooses between strengths
_ROWS = 4096  # images that are classified at a time


class LinearProbe(OnFeatures):
    """One entry of `config.evals` with `type="linear_probe"`."""

    def __init__(
        self,
        name: str,
        mesh: Mesh,
        training_data: dict[str, Any],
        training_batch_size: int,
        *,
        type: str = "linear_probe",
        every: int | None = None,
        train_split: str = "train",
        split: str = "test",
        batch_size: int | None = None,
        feature: str = "pre_logits",
        c_sweep: tuple[float, ...] = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0),
        max_iterations: int = 1000,
        data: dict[str, Any],
    ) -> None:
        """Opens the data.

        Args:
          name: of the entry; its result is called NAME/accuracy.
          mesh: see `OnFeatures` for this and what is not explained here.
          training_data: see there.
          training_batch_size: see there.
          type: read by the table of evaluators.
          every: steps between evaluations; None is once, at the end.
          train_split: that is fitted. With more than one C, the last tenth of
            `np.random.default_rng(0).permutation` of it chooses one, the smaller of
            equally good ones, and with that all of it is fitted.
          split: that is tested on.
          batch_size: global.
          feature: that stands for an image, of those that the model can capture.
          c_sweep: values of C to choose from; the smaller, the more it regularises.
          max_iterations: of L-BFGS, for each fit; the record says where it ended.
          data: keys of `config.data` that differ for this evaluation.
        """
        super().__init__(
            name,
            mesh,
            training_data,
            training_batch_size,
            every=every,
            train_split=train_split,
            split=split,
            batch_size=batch_size,
            feature=feature,
            data=data,
            protocol={
                "type": type,
                "c_sweep": c_sweep,
                "max_iterations": max_iterations,
            },
        )
        if not c_sweep or min(c_sweep) <= 0:
            raise UserError(
                f"{self.where}.c_sweep is {c_sweep}: it should be one or more numbers "
                "above 0"
            )
        if max_iterations < 1:
            raise UserError(
                f"{self.where}.max_iterations is {max_iterations}: it should be at "
                "least 1"
            )
        self.cs, self.max_iterations = sorted(set(c_sweep)), max_iterations

    def result_names(self) -> list[str]:
        return [f"{self.name}/accuracy"]

    @classmethod
    def possible_results(cls, entry: Mapping[str, Any], of: ResultsOf) -> list[str]:
        del entry, of
        return ["accuracy"]

    def run(self, params: Params, check: Callable[[], None]) -> Result:
        train, test, classes = self.represent(params, check)

        def tick() -> None:
            distributed.progress()
            check()

        regression = LogisticRegression(self.mesh, *train, classes)
        fit = functools.partial(
            regression.fit, max_iterations=self.max_iterations, tick=tick
        )
        tried = self._choose(train, fit)
        c = max(tried, key=lambda x: x["accuracy"])["c"] if tried else self.cs[0]
        found = fit(c, np.ones(len(train.labels), bool))
        (correct,) = agreed([count_correct(found.weights, test, slice(None))])
        record = {
            **self.describe(classes),
            "c": c,
            "correct": correct,
            **found.about(),
            "held_out": tried,
        }
        return Result({f"{self.name}/accuracy": correct / len(test.labels)}, record)

    def _choose(
        self, train: Represented, fit: Callable[..., Fit]
    ) -> list[dict[str, Any]]:
        """How each C does on the images that are held out; the smallest first."""
        if len(self.cs) == 1:
            return []
        fitted, held_out = hold_out(len(train.labels))
        select = np.zeros(len(train.labels), bool)
        select[fitted] = True
        tried = []
        for c in self.cs:
            found = fit(c, select)
            (correct,) = agreed([count_correct(found.weights, train, held_out)])
            accuracy = correct / len(held_out)
            tried.append({"c": c, "accuracy": accuracy, **found.about()})
        return tried


def hold_out(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of images to fit, and of those to choose a strength by.

    >>> hold_out(10)
    (array([4, 6, 2, 7, 3, 5, 9, 0, 8]), array([1]))
    """
    order = np.random.default_rng(0).permutation(n)
    count = max(1, math.floor(HELD_OUT * n))
    return order[:-count], order[-count:]


def count_correct(weights: Weights, data: Represented, which: Any) -> int:
    """How many of the images at `which` get their class; of equal scores the lower."""
    features, labels = data.features[which], data.labels[which]
    count = 0
    for start in range(0, len(labels), _ROWS):
        rows = slice(start, start + _ROWS)
        scores = features[rows].astype(np.float64) @ weights.kernel + weights.bias
        count += int((scores.argmax(axis=1) == labels[rows]).sum())
    return count
