"""Evaluations that run during training and alone, by their type in the config."""

from vit_jax.evaluators import records
from vit_jax.evaluators.base import Evaluator, Examples, Result
from vit_jax.evaluators.classification import Classification
from vit_jax.evaluators.corruptions import Corruptions
from vit_jax.evaluators.fewshot import FewShot
from vit_jax.evaluators.knn import KNN
from vit_jax.evaluators.linear_probe import LinearProbe

EVALUATORS = {
    "classification": Classification,
    "corruptions": Corruptions,
    "fewshot": FewShot,
    "knn": KNN,
    "linear_probe": LinearProbe,
}

__all__ = [
    "EVALUATORS",
    "KNN",
    "Classification",
    "Corruptions",
    "Evaluator",
    "Examples",
    "FewShot",
    "LinearProbe",
    "Result",
    "records",
]
