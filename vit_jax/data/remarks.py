"""What looks wrong with the classes of the data, as far as labels are at hand."""

from collections.abc import Collection, Hashable

import numpy as np

from vit_jax.data.dataset import Dataset

_NAMED = 10  # at most so many classes are named in a warning


def of_training(dataset: Dataset) -> list[str]:
    """Warnings: only one class, or classes without an image."""
    counts = _counts(dataset)
    if counts is None:
        return []
    warnings = one_class(dataset)
    named = dataset.label_names or range(dataset.num_classes or 0)
    missing = [name for name in named if name not in counts]
    if missing:
        warnings.append(
            f"{len(missing)} of {len(named)} classes have no training image in "
            f"{dataset.source.name}: {_listed(missing)}. They cannot be learned: add "
            "images, remove the class, or shuffle records that are sorted by class"
        )
    return warnings


def one_class(dataset: Dataset) -> list[str]:
    """A warning, where all images are of one class."""
    counts = _counts(dataset)
    if counts is None or len(counts) > 1:
        return []
    return [
        f"all {dataset.num_examples:,} training images are of one class, "
        f"{_listed(counts)}: there is nothing to learn, and an accuracy of 1 will "
        "mean nothing"
    ]


def of_evaluation(name: str, dataset: Dataset, training: Dataset) -> list[str]:
    """Warnings: images of classes that training never shows.

    Args:
        name: of the evaluation.
        dataset: that it reads.
        training: that is trained on.
    """
    counts, trained = _counts(dataset), _counts(training)
    both_named = None not in (dataset.label_names, training.label_names)
    same = dataset.source.name == training.source.name
    if counts is None or trained is None or not (both_named or same):
        return []
    unseen = [c for c in counts if c not in trained]
    if not unseen:
        return []
    images = sum(counts[c] for c in unseen)
    return [
        f"evaluation {name}: {images:,} of its {dataset.num_examples:,} images are of "
        f"classes that have no training image: {_listed(unseen)}"
    ]


def _counts(dataset: Dataset) -> dict[Hashable, int] | None:
    """Images of each class that occurs, by its name, or else its number."""
    labels, names = dataset.source.labels(), dataset.label_names
    if labels is None or labels.ndim != 1:
        return None
    numbers, counts = np.unique(labels, return_counts=True)
    return {
        names[i] if names and 0 <= i < len(names) else i: count
        for i, count in zip(numbers.tolist(), counts.tolist(), strict=True)
    }


def _listed(classes: Collection[Hashable]) -> str:
    more = f" and {len(classes) - _NAMED} more" if len(classes) > _NAMED else ""
    return ", ".join(str(c) for c in list(classes)[:_NAMED]) + more
