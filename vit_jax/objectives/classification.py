"""Learning the labels of images: one class each, or any number.

Axes: b batch, h height, w width, c channels, k classes.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.objectives.base import (
    Batch,
    Given,
    Losses,
    Params,
    Prepared,
    Stateless,
    normalize,
)
from vit_jax.objectives.losses import Loss
from vit_jax.objectives.mixing import Mixing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification(Stateless):
    """Learns labels, class numbers [b] or vectors [b, k].

    The loss of a step is the mean over its examples (by weight, see
    `Loss.example_weights`). Where labels are class numbers the log has `accuracy`, the
    share of examples whose likeliest class is that of the label (of the larger part, of
    images that are mixed).

    Attributes:
      apply: `module.apply` of the model.
      loss: from `losses.make`.
      mixing: of the examples of a batch.
      num_classes: k, the width of the head.
      mean: of the channels of images scaled to 0..1; and `std`.
    """

    apply: Callable[..., Any]
    loss: Loss
    mixing: Mixing
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def prepare(self, batch: Batch, key: jax.Array) -> Prepared:
        """Normalised images, targets [b, k], and what each loss is multiplied by."""
        mask, labels = batch["mask"], batch["label"]
        images = normalize(batch["image"], jnp.array(self.mean), jnp.array(self.std))
        targets = self.loss.targets(labels, self.num_classes)
        if self.mixing.on:
            images, targets = self.mixing(key, images, targets, mask)
        examples = jnp.sum(mask, dtype=jnp.int32)
        whole = {"image": images, "label": labels, "targets": targets, "mask": mask}
        weights = None if self.mixing.on else self.loss.example_weights(labels)
        if weights is not None:  # the mean of scaled losses is that by weight
            weight = jnp.sum(jnp.where(mask, weights, 0.0))  # of the whole batch
            scale = examples / jnp.where(weight > 0, weight, 1.0)
            whole["scale"] = jnp.broadcast_to(scale, mask.shape)
        return Prepared(whole, examples)

    def losses(
        self, params: Params, batch: Batch, key: jax.Array, given: Given
    ) -> Losses:
        logits = self.outputs(params, batch, key)
        with jax.named_scope("loss"):
            return self.of_logits(logits, batch)

    def outputs(
        self, params: Params, batch: Batch, key: jax.Array, **options: Any
    ) -> Any:
        """What the model gives in training: the logits [b, k].

        Args:
          params: of the model.
          batch: as `prepare` leaves it.
          key: of dropout and of all else that is random in the model.
          **options: of the model's `apply`, such as `capture`.
        """
        rngs = {"dropout": key}
        return self.apply(
            {"params": params}, batch["image"], train=True, rngs=rngs, **options
        )

    def of_logits(self, logits: jax.Array, batch: Batch) -> Losses:
        """The losses of logits [b, k], and whether each is right."""
        loss = self.loss(logits, batch["targets"])
        if "scale" in batch:
            loss = loss * batch["scale"]
        if batch["label"].ndim > 1:  # then there is no one right class
            return Losses(loss, {})
        right = jnp.argmax(logits, -1) == jnp.argmax(batch["targets"], -1)
        return Losses(loss, {"accuracy": right})
