"""How many images each class of the training data has, for weights of classes."""

import numpy as np

from vit_jax.data.dataset import Dataset
from vit_jax.data.sources.mixture import MixtureSource
from vit_jax.errors import UserError

_BY_HAND = "give numbers, one for each class: --config.loss.class_weights=1.0,2.5,..."


def count(dataset: Dataset, num_classes: int) -> np.ndarray:
    """The sums of all labels, float64 [num_classes]: no label is left out or guessed.

    Class numbers that the head does not have count for none; of images with several
    labels each counts.

    Raises:
      UserError: if the labels are not at hand, or shown in other shares.
    """
    source = dataset.source
    if isinstance(source, MixtureSource):
        raise UserError(
            "config.loss.class_weights=balanced: a mixture shows its parts by their "
            f"weights, whatever their sizes; {_BY_HAND}"
        )
    labels = source.labels()
    if labels is None:
        raise UserError(
            f"config.loss.class_weights=balanced: the labels of {source.name} are not "
            "known before every record has been read, so they cannot be counted "
            f"quickly; {_BY_HAND}"
        )
    if labels.ndim == 1:
        inside = labels[(labels >= 0) & (labels < num_classes)]
        return np.bincount(inside, minlength=num_classes).astype(np.float64)
    return labels.sum(axis=0, dtype=np.float64)
