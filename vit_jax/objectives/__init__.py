"""What a run learns; one module an objective. See `base.Objective`."""

from vit_jax.objectives.base import (
    Batch,
    Given,
    Losses,
    Objective,
    Prepared,
    Stateless,
    normalize,
)
from vit_jax.objectives.classification import Classification
from vit_jax.objectives.distillation import Distillation, Distilled, Teacher
from vit_jax.objectives.mixing import Mixing

__all__ = [
    "Batch",
    "Classification",
    "Distillation",
    "Distilled",
    "Given",
    "Losses",
    "Mixing",
    "Objective",
    "Prepared",
    "Stateless",
    "Teacher",
    "normalize",
]
