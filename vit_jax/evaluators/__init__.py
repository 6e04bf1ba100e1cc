"""Evaluations that run during training and alone, by their type in the config."""

from vit_jax.evaluators import records
from vit_jax.evaluators.base import Evaluator, Examples, Result
from vit_jax.evaluators.classification import Classification
from vit_jax.evaluators.corruptions import Corruptions

EVALUATORS = {"classification": Classification, "corruptions": Corruptions}

__all__ = [
    "EVALUATORS",
    "Classification",
    "Corruptions",
    "Evaluator",
    "Examples",
    "Result",
    "records",
]
