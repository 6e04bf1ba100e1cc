"""Linear classifiers of a few images a class, in closed form.

Axes: n images that were chosen, d features, c classes.

The protocol is that of the ViT paper (arXiv:2010.11929, section 4.1) as big_vision's
`evaluators/fewshot_lsr.py` has it: the features of the chosen images are standardised
with their own mean and standard deviation + 1e-5, a constant feature of 100 is the
bias, and the targets are 1 for an image's class and -1 for the others.

    W = argmin |X W - Y|^2 + l2 |W|^2
      = (X^T X + l2 I)^-1 X^T Y = X^T (X X^T + l2 I)^-1 Y

It is solved on the host in float64. The matrix that is decomposed is never larger than
d + 1: with 1,280 features, 25 images of each of 1,000 classes and 50,000 to test on, a
regression takes 12 CPU-seconds, so an accelerator would gain little, and TPUs have no
float64, which small values of l2 need.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from vit_jax import distributed
from vit_jax.errors import UserError
from vit_jax.evaluators.base import Result, ResultsOf
from vit_jax.evaluators.features import OnFeatures, Represented, agreed
from vit_jax.state import Params

BIAS = 100.0
_EPSILON = 1e-5
_ROWS = 4096  # of the design matrix of a split that are made at a time


class FewShot(OnFeatures):
    """One entry of `config.evals` with `type="fewshot"`."""

    def __init__(
        self,
        name: str,
        mesh: Mesh,
        training_data: dict[str, Any],
        training_batch_size: int,
        *,
        type: str = "fewshot",
        every: int | None = None,
        train_split: str = "train",
        split: str = "test",
        batch_size: int | None = None,
        feature: str = "pre_logits",
        shots: tuple[int, ...] = (1, 5, 10, 25),
        l2: float = 1024.0,
        l2_sweep: tuple[float, ...] | None = None,
        seeds: tuple[int, ...] = (0, 1, 2),
        data: dict[str, Any],
    ) -> None:
        """Opens the data.

        Args:
          name: of the entry; results are called NAME/5shot: the accuracy with `l2`,
            averaged over the seeds.
          mesh: see `OnFeatures` for this and what is not explained here.
          training_data: see there.
          training_batch_size: see there.
          type: read by the table of evaluators.
          every: steps between evaluations; None is once, at the end.
          train_split: that the images are chosen from.
          split: that the classifiers are tested on.
          batch_size: global.
          feature: that stands for an image, of those that the model can capture.
          shots: images of each class. A class that has fewer gives all; the record
            says how many do.
          l2: strength of the regularisation.
          l2_sweep: other strengths, whose accuracies are in the record.
          seeds: of the choice of images.
          data: keys of `config.data` that differ for this evaluation.
        """
        sweep = l2_sweep or ()
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
                "shots": shots,
                "l2": l2,
                "l2_sweep": sweep,
                "seeds": seeds,
            },
        )
        for key, values in (("shots", shots), ("seeds", seeds)):
            if not values or len(set(values)) < len(values):
                raise UserError(
                    f"{self.where}.{key} is {values}: it should name one or more, each "
                    "once"
                )
        if min(shots) < 1 or min(seeds) < 0:
            raise UserError(
                f"{self.where}.shots is {shots} and seeds {seeds}: shots should be at "
                "least 1, seeds at least 0"
            )
        if min((l2, *sweep)) <= 0:
            raise UserError(
                f"{self.where}.l2 is {l2} and l2_sweep {sweep}: they should be above 0"
            )
        self.shots, self.seeds = shots, seeds
        self.l2s = (l2, *(x for x in sweep if x != l2))

    def result_names(self) -> list[str]:
        return [f"{self.name}/{k}shot" for k in self.shots]

    @classmethod
    def possible_results(cls, entry: Mapping[str, Any], of: ResultsOf) -> list[str]:
        del of
        return [f"{k}shot" for k in entry["shots"]]

    def run(self, params: Params, check: Callable[[], None]) -> Result:
        train, test, classes = self.represent(params, check)
        counts: list[int] = []
        for seed in self.seeds:
            order = by_class(train.labels, classes, seed)
            for shots in self.shots:
                distributed.progress()
                check()
                chosen = np.concatenate([indices[:shots] for indices in order])
                ridge = Ridge(train.features[chosen], train.labels[chosen], classes)
                counts += ridge.correct(test, self.l2s)
        correct = np.reshape(
            agreed(counts), (len(self.seeds), len(self.shots), len(self.l2s))
        )
        accuracy = correct / len(test.labels)
        headline = zip(self.result_names(), accuracy[:, :, 0].mean(axis=0), strict=True)
        available = np.bincount(train.labels, minlength=classes)
        record = {
            **self.describe(classes),
            "images": {k: int(np.minimum(available, k).sum()) for k in self.shots},
            "classes_with_fewer": {k: int((available < k).sum()) for k in self.shots},
            "accuracies": [
                {
                    "seed": seed,
                    "shots": shots,
                    "l2": l2,
                    "correct": int(correct[i, j, k]),
                    "accuracy": float(accuracy[i, j, k]),
                }
                for i, seed in enumerate(self.seeds)
                for j, shots in enumerate(self.shots)
                for k, l2 in enumerate(self.l2s)
            ],
        }
        return Result({name: float(value) for name, value in headline}, record)


def by_class(labels: np.ndarray, num_classes: int, seed: int) -> list[np.ndarray]:
    """For each class its images in the order in which they are chosen.

    The k shots of a class are the first k: those of few shots are among those of more.

    Args:
      labels: int [n].
      num_classes: c.
      seed: of one generator, which goes through the classes in their order.

    Returns:
      c arrays of positions in `labels`.

    >>> [x.tolist() for x in by_class(np.array([1, 0, 1, 1]), 3, seed=0)]
    [[1], [3, 0, 2], []]
    """
    order = np.argsort(labels, kind="stable")
    ends = np.searchsorted(labels[order], np.arange(1, num_classes))
    rng = np.random.default_rng(seed)
    return [rng.permutation(indices) for indices in np.split(order, ends)]


class Ridge:
    """The solution for any strength of regularisation, by one decomposition."""

    def __init__(self, features: np.ndarray, labels: np.ndarray, num_classes: int):
        """Decomposes X^T X [d + 1, d + 1] or X X^T [n, n], whichever is smaller.

        Args:
          features: [n, d].
          labels: int [n].
          num_classes: c; a class may have no image.
        """
        self._mean = features.mean(axis=0, dtype=np.float64)
        self._std = features.std(axis=0, dtype=np.float64) + _EPSILON
        x = self.design(features)
        if len(x) > x.shape[1]:
            self._eigenvalues, self._left = np.linalg.eigh(x.T @ x)
            self._right = self._left.T @ times_targets(x, labels, num_classes)
        else:
            self._eigenvalues, q = np.linalg.eigh(x @ x.T)
            self._left = x.T @ q
            self._right = times_targets(q, labels, num_classes)

    def design(self, features: np.ndarray) -> np.ndarray:
        """X: features [n, d] as the regression sees them, float64 [n, d + 1]."""
        x = np.full((len(features), len(self._mean) + 1), BIAS)
        np.divide(features - self._mean, self._std, out=x[:, :-1])
        return x

    def weights(self, l2: float) -> np.ndarray:
        """W [d + 1, c]."""
        return (self._left / (self._eigenvalues + l2)) @ self._right

    def correct(self, test: Represented, l2s: Sequence[float]) -> list[int]:
        """How many images get their class, for each strength.

        Of equal scores the lower class counts.
        """
        weights = [self.weights(l2) for l2 in l2s]
        counts = [0] * len(weights)
        for start in range(0, len(test.labels), _ROWS):
            rows = slice(start, start + _ROWS)
            x = self.design(test.features[rows])
            for i, w in enumerate(weights):
                best = np.argmax(x @ w, axis=1)
                counts[i] += int((best == test.labels[rows]).sum())
        return counts


def times_targets(a: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """a^T Y [r, c] of a [n, r], where Y [n, c] is 1 at the labels and -1 elsewhere.

    Y itself, which may be larger than all else, is not made.

    >>> times_targets(np.array([[1.0], [10.0]]), np.array([0, 2]), 3)
    array([[ -9., -11.,   9.]])
    """
    sums = np.zeros((num_classes, a.shape[1]))
    np.add.at(sums, labels, a)
    return (2 * sums - a.sum(axis=0)).T
