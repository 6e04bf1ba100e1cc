"""Weighted nearest neighbours, by DINO's protocol.

Axes: n images that vote, m that are classified, d features, k neighbours, c classes.

As in DINO (arXiv:2104.14294, section 4.1, and its `eval_knn.py`) features are made of
length 1, and each of the k images of the training split that are most similar votes for
its class with exp(cosine similarity / temperature).

Of images that are equally similar the one that comes first among the records counts,
and of classes with equal votes the lower.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from vit_jax import distributed, sharding
from vit_jax.errors import UserError
from vit_jax.evaluators.base import Result, ResultsOf
from vit_jax.evaluators.features import OnFeatures, agreed, replicate, spread
from vit_jax.program import Program
from vit_jax.state import Params

_ROWS = 1024  # images that are classified at a time


class KNN(OnFeatures):
    """One entry of `config.evals` with `type="knn"`."""

    def __init__(
        self,
        name: str,
        mesh: Mesh,
        training_data: dict[str, Any],
        training_batch_size: int,
        *,
        type: str = "knn",
        every: int | None = None,
        train_split: str = "train",
        split: str = "test",
        batch_size: int | None = None,
        feature: str = "pre_logits",
        k: int = 20,
        k_sweep: tuple[int, ...] | None = (10, 20, 100, 200),
        temperature: float = 0.07,
        data: dict[str, Any],
    ) -> None:
        """Opens the data.

        Args:
          name: of the entry; results are called NAME/accuracy and, where there are more
            than 5 classes, NAME/top5_accuracy.
          mesh: see `OnFeatures` for this and what is not explained here.
          training_data: see there.
          training_batch_size: see there.
          type: read by the table of evaluators.
          every: steps between evaluations; None is once, at the end.
          train_split: whose images vote.
          split: whose images are classified.
          batch_size: global.
          feature: that stands for an image, of those that the model can capture.
          k: neighbours that vote.
          k_sweep: other numbers, whose accuracies are in the record; None for none.
          temperature: the lower, the more the most similar count.
          data: keys of `config.data` that differ for this evaluation.
        """
        sweep = k_sweep or ()
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
                "k": k,
                "k_sweep": sweep,
                "temperature": temperature,
            },
        )
        self.ks = (k, *(x for x in sweep if x != k))
        if min(self.ks) < 1:
            raise UserError(
                f"{self.where}.k is {k} and k_sweep {sweep}: they should be 1 or more"
            )
        if temperature <= 0:
            raise UserError(
                f"{self.where}.temperature is {temperature}: it should be above 0"
            )
        self.temperature = temperature
        self._top5 = self.known_classes is None or self.known_classes > 5

    def check(
        self,
        num_classes: int,
        program: Program,
        params: Params,
        label_names: Sequence[str] | None = None,
    ) -> None:
        if max(self.ks) > (n := self.train.dataset.num_examples):
            raise UserError(
                f"{self.where}: k is {self.ks[0]} and k_sweep {self.ks[1:]}, but "
                f"train_split has only {n} images"
            )
        super().check(num_classes, program, params, label_names)

    def result_names(self) -> list[str]:
        names = ("accuracy", "top5_accuracy") if self._top5 else ("accuracy",)
        return [f"{self.name}/{what}" for what in names]

    @classmethod
    def possible_results(cls, entry: Mapping[str, Any], of: ResultsOf) -> list[str]:
        del entry, of
        return ["accuracy", "top5_accuracy"]

    def run(self, params: Params, check: Callable[[], None]) -> Result:
        train, test, classes = self.represent(params, check)
        neighbours = Neighbours(self.mesh, train.features, max(self.ks))
        hits = np.zeros((len(self.ks), 2), np.int64)  # the best class, one of the top 5
        start = 0
        for similarity, index in neighbours.of(test.features):
            distributed.progress()
            check()
            expected = test.labels[start : start + len(index)]
            start += len(index)
            for i, k in enumerate(self.ks):
                scores = votes(
                    similarity[:, :k],
                    train.labels[index[:, :k]],
                    classes,
                    temperature=self.temperature,
                )
                found = np.argsort(-scores, axis=1, kind="stable")[:, :5]
                right = found == expected[:, None]
                hits[i] += right[:, 0].sum(), right.sum()
        hits = np.reshape(agreed(hits.ravel().tolist()), hits.shape)
        rates = hits / len(test.labels)
        scalars = dict(zip(self.result_names(), rates[0].tolist(), strict=False))
        found = [
            {
                "k": k,
                "correct": int(hits[i, 0]),
                "accuracy": float(rates[i, 0]),
                **({"top5_accuracy": float(rates[i, 1])} if self._top5 else {}),
            }
            for i, k in enumerate(self.ks)
        ]
        return Result(scalars, {**self.describe(classes), "accuracies": found})


class Neighbours:
    """Vectors, shared out among the devices, and a search for the most similar."""

    def __init__(self, mesh: Mesh, vectors: np.ndarray, k: int):
        """Lays the vectors out: n / devices of them on each.

        Args:
          mesh: of the devices.
          vectors: [n, d], the same in every process.
          k: how many will be asked for; at most n.
        """
        self._mesh = mesh
        self._vectors = spread(mesh, normalized(vectors))
        positions = np.arange(len(self._vectors), dtype=np.int32)
        self._positions = spread(mesh, positions)
        each = len(positions) // mesh.size
        self._search = make_search(mesh, n=len(vectors), each=each, k=k)

    def of(self, queries: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Similarities float32 [rows, k] and positions int32 [rows, k], piece by piece.

        The most similar first, of equals the one that comes first.

        Args:
          queries: [m, d], the same in every process.
        """
        for start in range(0, len(queries), _ROWS):
            piece = normalized(queries[start : start + _ROWS])
            padded = np.pad(piece, ((0, _ROWS - len(piece)), (0, 0)))
            placed = replicate(self._mesh, padded)
            found = self._search(self._vectors, self._positions, placed)
            similarity, index = jax.device_get(found)
            yield similarity[: len(piece)], index[: len(piece)]


@functools.cache
def make_search(mesh: Mesh, *, n: int, each: int, k: int) -> Any:
    """A compiled function, whose results each device has whole.

    Args:
      mesh: of the devices.
      n: of vectors, without those that were added so that the devices divide them.
      each: how many a device holds.
      k: how many are asked for.

    Returns:
      (vectors, positions, queries [m, d]) -> similarities and positions [m, k].
    """
    rows = PartitionSpec(mesh.axis_names)
    of_each = jax.shard_map(
        functools.partial(nearest, n=n, k=min(k, each)),
        mesh=mesh,
        in_specs=(rows, rows, PartitionSpec()),
        out_specs=PartitionSpec(None, mesh.axis_names),
    )

    def search(
        vectors: jax.Array, positions: jax.Array, queries: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        similarity, index = of_each(vectors, positions, queries)
        # Among equals the first wins: the devices hold the vectors in their order.
        similarity, best = jax.lax.top_k(similarity, k)
        return similarity, jnp.take_along_axis(index, best, axis=1)

    return jax.jit(search, out_shardings=sharding.replicated(mesh))


def nearest(
    vectors: jax.Array, positions: jax.Array, queries: jax.Array, *, n: int, k: int
) -> tuple[jax.Array, jax.Array]:
    """The k most similar to each query [m, d] among the vectors of one device.

    Args:
      vectors: [n / devices, d].
      positions: of these among all; those from n on are of no vector.
      queries: [m, d].
      n: of vectors on all devices.
      k: how many.

    Returns:
      Similarities and positions, [m, k].
    """
    similarity = jnp.matmul(queries, vectors.T, precision=jax.lax.Precision.HIGHEST)
    similarity = jnp.where(positions < n, similarity, -jnp.inf)
    similarity, best = jax.lax.top_k(similarity, k)
    return similarity, positions[best]


def normalized(x: np.ndarray) -> np.ndarray:
    """Rows [n, d] made of length 1, float32; a row of zeros stays as it is.

    >>> normalized(np.array([[3.0, 4.0], [0.0, 0.0]]))
    array([[0.6, 0.8], [0. , 0. ]], dtype=float32)
    """
    length = np.sqrt(np.einsum("nd,nd->n", x, x, dtype=np.float64))
    return (x / np.maximum(length, 1e-12)[:, None]).astype(np.float32)


def votes(
    similarity: np.ndarray, labels: np.ndarray, num_classes: int, *, temperature: float
) -> np.ndarray:
    """What neighbours vote for each class, in units of what the most similar votes.

    Args:
      similarity: [m, k], the highest first.
      labels: int [m, k].
      num_classes: c.
      temperature: of the weights exp(similarity / temperature).

    Returns:
      float64 [m, c].

    >>> votes(np.array([[1.0, 1.0, 0.0]]), np.array([[2, 2, 0]]), 3, temperature=1.0)
    array([[0.36787944, 0.        , 2.        ]])
    """
    similarity = similarity.astype(np.float64)
    weights = np.exp((similarity - similarity[:, :1]) / temperature)
    m = len(labels)
    cells = np.arange(m)[:, None] * num_classes + labels
    sums = np.bincount(cells.ravel(), weights.ravel(), minlength=m * num_classes)
    return sums.reshape(m, num_classes)
