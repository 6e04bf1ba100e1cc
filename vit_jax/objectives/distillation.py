"""Distillation: the student also learns what a teacher says of the same images.

As DeiT does (Touvron et al., arXiv:2012.12877, section 4), with a model that has a
distillation token (`model.distilled`) or with any other.

Axes: b batch, h height, w width, k classes.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from vit_jax.errors import UserError
from vit_jax.objectives import losses
from vit_jax.objectives.base import (
    Batch,
    Given,
    Losses,
    Params,
    Prepared,
    Stateless,
)
from vit_jax.objectives.classification import Classification


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation:
    """The config's section `distill`.

    Attributes:
      teacher: a workdir or another library's checkpoint, all that `vit_jax.load`
        reads; None is off.
      teacher_weights: which weights, if it is a training checkpoint of `torch.save`
        with several: see `weights` of `vit_jax.load`.
      kind: of the loss against the teacher; see `losses.DISTILLATIONS`.
      weight: of that loss; 1 - weight is the one against the labels.
      temperature: that "soft" divides all logits by. DeiT's is 3, with a weight of
        0.1; its "hard" has 0.5.

    Raises:
      UserError: for a value out of its range.
    """

    teacher: str | None = None
    teacher_weights: str | None = None
    kind: Literal["hard", "soft"] = "hard"
    weight: float = 0.5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise UserError(
                f"config.distill.weight is {self.weight}: it should be in [0, 1]"
            )
        if self.temperature <= 0:
            raise UserError(
                f"config.distill.temperature is {self.temperature}: it should be above "
                "0"
            )

    def __call__(self, student: jax.Array, teacher: jax.Array) -> jax.Array:
        """Logits of both [b, k] -> the loss of each example, float32 [b]."""
        return losses.DISTILLATIONS[self.kind](student, teacher, self.temperature)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teacher:
    """A trained model that says logits of the student's batches.

    Attributes:
      distillation: the config's section.
      apply: its `module.apply`.
      arrays: its parameters, a tree on the host.
      mean: of the channels of images in [0, 1] that it was trained with; and `std`.
    """

    distillation: Distillation
    apply: Callable[..., Any]
    arrays: Params
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def logits(self, params: Params, images: jax.Array) -> jax.Array:
        """What it says of images [b, h, w, 3] in 0..1: logits [b, k]."""
        with jax.named_scope("teacher"):
            images = (images - jnp.array(self.mean)) / jnp.array(self.std)
            logits = self.apply({"params": params}, images)
        return jax.lax.stop_gradient(logits)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distilled(Stateless):
    """Learns labels, and what a teacher says of the same images, mixed as they are.

    Attributes:
      labels: the part that is learned from labels.
      teacher: whose parameters are the constants.
      two_heads: the labels teach the model's "head", and the teacher "head_dist".
    """

    labels: Classification
    teacher: Teacher
    two_heads: bool

    @property
    def constants(self) -> Params:
        return self.teacher.arrays

    def prepare(self, batch: Batch, key: jax.Array) -> Prepared:
        return self.labels.prepare(batch, key)

    def losses(
        self, params: Params, batch: Batch, key: jax.Array, given: Given
    ) -> Losses:
        if self.two_heads:
            names = "head", "head_dist"
            _, heads = self.labels.outputs(params, batch, key, capture=names)
            logits, taught = (heads[name] for name in names)
        else:
            logits = taught = self.labels.outputs(params, batch, key)
        distillation = self.teacher.distillation
        with jax.named_scope("loss"):
            mean, std = jnp.array(self.labels.mean), jnp.array(self.labels.std)
            said = self.teacher.logits(given.constants, batch["image"] * std + mean)
            own, values = self.labels.of_logits(logits, batch)
            weight = distillation.weight
            loss = (1.0 - weight) * own + weight * distillation(taught, said)
        return Losses(loss, values)
