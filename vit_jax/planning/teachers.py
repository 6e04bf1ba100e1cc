"""The teacher of a config's `distill` section, without its parameters."""

import dataclasses
from typing import Any

import jax
import numpy as np

from vit_jax import models, state, workdirs
from vit_jax.checkpoints import adapt
from vit_jax.checkpoints.teacher import model_of, normalization_of
from vit_jax.errors import UserError
from vit_jax.objectives import Distillation, Teacher


@dataclasses.dataclass(frozen=True, kw_only=True)
class Described:
    """What a plan has to know of a teacher; it can be written as JSON.

    Attributes:
      distillation: the config's section.
      model: the fields of its model.
      mean: of the channels of the images that it was trained with; and `std`.
    """

    distillation: dict[str, Any]
    model: dict[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def build(self, image_shape: tuple[int, int, int]) -> Teacher:
        """The teacher with the shapes of its parameters.

        Args:
          image_shape: (h, w, c) of the student, to which it is resampled.
        """
        model = models.create(**self.model)
        return Teacher(
            distillation=Distillation(**self.distillation),
            apply=model.apply,
            arrays=state.abstract_params(model, image_shape),
            mean=self.mean,
            std=self.std,
        )


def describe(config: dict[str, Any], num_classes: int) -> Described | None:
    """Reads what the teacher is; None if the config has none.

    Args:
      config: complete.
      num_classes: of the student, and so of the teacher.

    Raises:
      UserError: if it cannot be read.
    """
    section = config["distill"]
    if section["teacher"] is None:
        return None
    path = workdirs.absolute(section["teacher"])
    try:
        source = adapt.read_weights(path, weights=section["teacher_weights"])
    except UserError as error:
        raise UserError(
            f"config.distill.teacher: {error}\nA plan counts the teacher too; to plan "
            "without it: --config.distill.teacher=none"
        ) from error
    fields = model_of(source, num_classes, config["model"]["dtype"])
    mean, std = normalization_of(source)
    return Described(distillation=section, model=fields, mean=mean, std=std)


def zeros(arrays: Any) -> Any:
    """Arrays of these shapes, on the host: what they hold costs no time."""
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), arrays)
