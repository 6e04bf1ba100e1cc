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
import numpy as np
from jax.sharding import Mesh

from vit_jax import losses, sharding
from vit_jax.errors import UserError
from vit_jax.state import Params


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

    def loss(
        self,
        params: Params,
        images: jax.Array,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        student: jax.Array,
    ) -> jax.Array:
        """How far the student is from the teacher, float32 [b].

        Args:
          params: the teacher's.
          images: as the student sees them [b, h, w, 3], mixed and normalised.
          mean: that they were normalised with; and `std`.
          student: its logits [b, k].
        """
        with jax.named_scope("teacher"):
            images = (images * jnp.array(std) + jnp.array(mean)) - jnp.array(self.mean)
            logits = self.apply({"params": params}, images / jnp.array(self.std))
        return self.distillation(student, jax.lax.stop_gradient(logits))

    def abstract_params(self, mesh: Mesh) -> Params:
        """Shapes, types and shardings: every device has all of them."""
        everywhere = sharding.replicated(mesh)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
            self.arrays,
        )

    def place(self, mesh: Mesh) -> Params:
        """The parameters on the devices."""
        everywhere = sharding.replicated(mesh)

        def put(x: np.ndarray) -> jax.Array:
            return jax.make_array_from_callback(x.shape, everywhere, x.__getitem__)

        return jax.tree.map(put, self.arrays)
