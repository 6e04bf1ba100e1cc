"""What a model makes of the images of a split, and what evaluations of that share.

Memory: the representations of both splits lie whole in each process's memory, n images
x d features x 4 bytes: 3.9 GB for the 1.28 million images of ImageNet and B/16's 768.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vit_jax import distributed, objectives, progress, sharding, steps
from vit_jax.errors import NonFiniteLossError, UserError
from vit_jax.evaluators.base import (
    Evaluator,
    Examples,
    a_batch_late,
    apply_at_any_size,
)
from vit_jax.program import Program
from vit_jax.state import Params

FeatureStep = Callable[[Params, steps.Batch], dict[str, jax.Array]]


class Represented(NamedTuple):
    """The images of a split as a model sees them, in the order of the records.

    Attributes:
      features: float32 [n, d].
      labels: int32 [n].
    """

    features: np.ndarray
    labels: np.ndarray


class OnFeatures(Evaluator):
    """An evaluation of frozen representations: fitted to a split, tested on another."""

    def __init__(
        self,
        name: str,
        mesh: Mesh,
        training_data: dict[str, Any],
        training_batch_size: int,
        *,
        every: int | None,
        train_split: str,
        split: str,
        batch_size: int | None,
        feature: str,
        data: dict[str, Any],
        protocol: dict[str, Any],
    ) -> None:
        """Opens the data.

        Args:
          name: of the entry.
          mesh: that the batches are laid out over.
          training_data: `config.data`, which holds but for what is said here.
          training_batch_size: `config.batch_size`, the default of `batch_size`.
          every: steps between evaluations; None is once, at the end.
          train_split: that the method is fitted to; its images are prepared as for
            evaluation.
          split: that it is tested on.
          batch_size: global.
          feature: that stands for an image; see `make_feature_step`.
          data: keys of `config.data` that differ for this evaluation.
          protocol: for the record: `type`, and the keys of the method itself.
        """
        super().__init__(name, every)
        self.where, self.feature, self.mesh = f"config.evals.{name}", feature, mesh
        self.protocol = {**protocol, "feature": feature}
        self.train, self.test = (
            Examples(
                mesh,
                training_data,
                training_batch_size,
                where=self.where,
                split=part,
                batch_size=batch_size,
                data=data,
            )
            for part in (train_split, split)
        )
        known = [x.dataset.num_classes for x in (self.train, self.test)]
        # As far as the data says; else the labels do, once they have been read.
        self.known_classes = None if None in known else max(k or 0 for k in known)

    def check(
        self,
        num_classes: int,
        program: Program,
        params: Params,
        label_names: Sequence[str] | None = None,
    ) -> None:
        del num_classes, label_names  # the labels need not be those of the head
        train = self.train.dataset
        if None not in (train.label_names, train.num_classes):
            self.notes = self.test.match_classes(
                train.num_classes or 0, train.label_names, whose="train_split"
            )
        for examples in (self.train, self.test):
            dataset = examples.dataset
            if dataset.label_classes is not None:
                raise UserError(
                    f'{self.where}: type="{self.protocol["type"]}" needs one class an '
                    f"image, but the labels of {dataset.source.name} are vectors over "
                    f"{dataset.label_classes} classes; choose another dataset, or "
                    'type="classification"'
                )
            examples.check(None)
        step = make_feature_step(
            apply_at_any_size(program),
            feature=self.feature,
            mean=self.train.dataset.mean,
            std=self.train.dataset.std,
        )
        self._to_compile = step, params, self.train.try_step(step, params)

    def all_examples(self) -> list[Examples]:
        return [self.train, self.test]

    def compile(self) -> None:
        step, params, batch = self._to_compile
        self._step = steps.compile_eval_step(step, self.mesh, params, batch)

    def represent(
        self, params: Params, check: Callable[[], None]
    ) -> tuple[Represented, Represented, int]:
        """Both splits, and the number of their classes.

        Raises:
          UserError: a label is out of range.
        """
        splits = [
            represent(examples, self._step, params, check)
            for examples in (self.train, self.test)
        ]
        classes = self.known_classes
        if classes is None:
            classes = 1 + max(int(split.labels.max()) for split in splits)
        for split, examples in zip(splits, (self.train, self.test), strict=True):
            bad = np.flatnonzero((split.labels < 0) | (split.labels >= classes))
            if len(bad):
                raise UserError(
                    f"{self.where}: {examples.dataset.source.name} has labels out of "
                    f"range 0..{classes - 1}, {len(bad)} of {len(split.labels)}, such "
                    f"as {split.labels[bad[0]]}"
                )
        return splits[0], splits[1], classes

    def describe(self, classes: int) -> dict[str, Any]:
        """For the record: the protocol, and both splits."""
        return {
            **self.protocol,
            "classes": classes,
            "train": self.train.describe(),
            "test": self.test.describe(),
        }


def make_feature_step(
    apply: Callable[..., Any],
    *,
    feature: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> FeatureStep:
    """A pure function (params, batch) -> features float32 [b, d], label and mask.

    Args:
      apply: of the model.
      feature: what its `capture` names; one vector for each image.
      mean: of normalised images' channels; and `std`.

    Raises:
      UserError: when it is traced, if there is no such feature, or it is no vector.
    """

    def feature_step(params: Params, batch: steps.Batch) -> dict[str, jax.Array]:
        images = objectives.normalize(batch["image"], jnp.array(mean), jnp.array(std))
        _, found = apply({"params": params}, images, train=False, capture=(feature,))
        features = found[feature]
        if features.ndim != 2:
            raise UserError(
                f'feature "{feature}" is {list(features.shape[1:])} for an image, '
                'which should be one vector [d], as "pre_logits" of a model that pools'
            )
        return {
            "features": features.astype(jnp.float32),
            "label": batch["label"],
            "mask": batch["mask"],
        }

    return feature_step


def represent(
    examples: Examples,
    step: FeatureStep,
    params: Params,
    check: Callable[[], None],
) -> Represented:
    """The representations of all examples, in every process; masked rows are left out.

    Args:
      examples: of a split.
      step: a compiled feature step, whose results each device has whole.
      params: of the model.
      check: called once a batch; what it raises ends the evaluation.

    Raises:
      NonFiniteLossError: a feature is not finite.
    """
    total = examples.dataset.num_examples
    labels, features, done = np.empty(total, np.int32), None, 0
    quiet = not distributed.is_first()
    with progress.of_items(
        total, "Representing", "images", passing=True, quiet=quiet
    ) as tell:
        batches = examples.batches(check)
        for results in a_batch_late(step(params, batch) for batch in batches):
            found = jax.device_get(results)
            if features is None:
                features = np.empty((total, found["features"].shape[1]), np.float32)
            mask = found["mask"]
            end = done + int(mask.sum())
            features[done:end] = found["features"][mask]
            labels[done:end] = found["label"][mask]
            tell(end - done)
            done = end
    assert features is not None, "a dataset without an example"
    bad = done - int(np.isfinite(features[:done]).all(axis=1).sum())
    if bad:
        raise NonFiniteLossError(
            f"{examples.dataset.source.name}: the features of {bad} of {done} images "
            "are not finite: the parameters, or what the model makes of them, are not"
        )
    return Represented(features[:done], labels[:done])


def agreed(counts: Sequence[int]) -> list[int]:
    """Counts as process 0 has them.

    Every process counts by itself, from the same features. But hosts with different
    CPUs may round differently, and on what is best all have to agree.
    """
    if jax.process_count() == 1:
        return list(counts)
    of_first = multihost_utils.broadcast_one_to_all(np.asarray(counts, np.int32))
    return np.asarray(of_first).tolist()


def spread(mesh: Mesh, rows: np.ndarray) -> jax.Array:
    """An array that is shared out among all devices by its rows.

    Args:
      mesh: of the devices.
      rows: the same in every process; rows of zeros are added until it divides.
    """
    size = -(-len(rows) // mesh.size)

    def part(index: Any) -> np.ndarray:
        found = rows[index[0]]
        return np.pad(found, [(0, size - len(found))] + [(0, 0)] * (rows.ndim - 1))

    by_rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return place((size * mesh.size, *rows.shape[1:]), by_rows, part)


def replicate(mesh: Mesh, array: Any) -> jax.Array:
    """An array, the same in every process, whole on all devices."""
    array = np.asarray(array)
    return place(array.shape, sharding.replicated(mesh), lambda _: array)


def place(
    shape: tuple[int, ...],
    laid_out: NamedSharding,
    part: Callable[[Any], np.ndarray],
) -> jax.Array:
    """An array on the devices, of the parts that `part` gives for an index."""
    indices = laid_out.addressable_devices_indices_map(shape)
    parts = [jax.device_put(part(index), device) for device, index in indices.items()]
    return jax.make_array_from_single_device_arrays(shape, laid_out, parts)
