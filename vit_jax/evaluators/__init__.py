"""Evaluations that run during training and alone, by their type in the config."""

from vit_jax.evaluators import records
from vit_jax.evaluators.base import Evaluator, Examples, Result
from vit_jax.evaluators.classification import Classification

EVALUATORS = {"classification": Classification}

__all__ = [
    "EVALUATORS",
    "Classification",
    "Evaluator",
    "Examples",
    "Result",
    "records",
]
