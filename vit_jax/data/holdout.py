"""A part of the training images to evaluate on, for data that has no test split.

Which images it holds depends on the names of the images of a class alone: it stays what
it is when other classes change, and changes little when images come or go.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from vit_jax.data import splits
from vit_jax.errors import UserError

DEFAULT_SHARE = 0.1  # where an evaluation asks for a test split, and there is none
_TESTS = ("test", "validation")  # what splits are for that nothing is trained on


class Place(NamedTuple):
    """Where the records of a split are.

    Attributes:
        split: that exists; "" where all records lie together.
        held: None for all of its records; else whether those held out or the others.
    """

    split: str
    held: bool | None


def place(name: str, existing: Collection[str], share: float) -> Place | None:
    """Where the records of a split are; None if there is no such split.

    Args:
        name: of the split.
        existing: splits; none where all records lie together.
        share: that is held out of training; 0 is nothing.

    >>> place("test", ["train", "val"], 0), place("test", ["train"], 0.1)
    (Place(split='val', held=None), Place(split='train', held=True))
    >>> place("train", [], 0.1), place("train", [], 0)
    (Place(split='', held=False), Place(split='', held=None))
    """
    what = splits.purpose(name)
    if not existing:
        if what is None:
            return None
        return Place("", what in _TESTS if share else None)
    training, found = splits.find("train", existing), splits.find(name, existing)
    if found is not None:
        return Place(found, False if share and found == training else None)
    if share and what in _TESTS and training is not None:
        return Place(training, True)
    return None


def check_distinct(places: Mapping[str, Place | None], where: str) -> None:
    """Refuses splits of which two are the same records.

    Args:
        places: of the splits that are asked for together.
        where: they are, for messages.
    """
    names: dict[Place, str] = {}
    for name, place in places.items():
        if place is not None and names.setdefault(place, name) != name:
            raise UserError(
                f'config.data.split: "{names[place]}" and "{name}" are the same images '
                f"of {where}, and each would be there twice: ask for one of them"
            )


def note(where: str, name: str, place: Place) -> list[str]:
    """What to say where a split is not what its name alone would make one think.

    >>> note("photos", "test", Place("val", None))
    ['photos: its "val" is taken for "test"']
    """
    if place.held is not None:
        return []  # see `describe`
    if not place.split:
        return [f'{where} has no splits: all of it is taken for "{name}"']
    if splits.purpose(place.split) != splits.purpose(name):
        return [f'{where}: its "{place.split}" is taken for "{name}"']
    return []


def lacks_test(wanted: Iterable[str], existing: Collection[str]) -> bool:
    """Whether there are training records, but not all of the test splits in `wanted`.

    >>> lacks_test(["test"], []), lacks_test(["train", "test"], ["train", "dev"])
    (True, False)
    """
    tests = [name for name in wanted if splits.purpose(name) in _TESTS]
    if existing and splits.find("train", existing) is None:
        return False
    return any(splits.find(name, existing) is None for name in tests)


def check_effect(share: float | None, existing: Collection[str], where: str) -> None:
    """Refuses to hold something out where there is a test split."""
    if share and (test := splits.find("test", existing)) is not None:
        raise UserError(
            f"config.data.holdout={share:g} has no effect: {where} has the split "
            f'"{test}"; set it to None, or take that split away.'
        )


def advice(wanted: Iterable[str], existing: Collection[str]) -> str:
    """What to do where a split is missing."""
    if not existing or not lacks_test(wanted, existing):
        return ""
    return (
        " A part of the training images can be held out instead: "
        f"--config.data.holdout={DEFAULT_SHARE:g}."
    )


def choose(labels: np.ndarray, names: Sequence[bytes], share: float) -> np.ndarray:
    """Which images are held out: this share of each class, rounded.

    Of a class of two images or more it is one at least, and never all.

    Args:
        labels: int [n], or multi-hot [n, k], whose images count as one class.
        names: of the images, unique.
        share: above 0, below 1.

    Returns:
        bool [n].

    >>> labels = np.array([0] * 20 + [1] * 3 + [2])
    >>> held = choose(labels, [b"%d" % i for i in range(24)], 0.1)
    >>> np.bincount(labels[held], minlength=3).tolist()
    [2, 1, 0]
    """
    held = np.zeros(len(names), bool)
    digests = np.array([hashlib.sha256(name).digest()[:8] for name in names], "V8")
    keys = digests.view(">u8").astype(np.uint64)
    groups = labels if labels.ndim == 1 else np.zeros(len(labels), np.int64)
    order = np.lexsort((keys, groups))
    edges = np.flatnonzero(np.diff(groups[order])) + 1
    for rows in np.split(order, edges):
        count = min(max(1, round(len(rows) * share)), len(rows) - 1)
        held[rows[:count]] = True
    return held


def check(share: float | None) -> None:
    """Refuses a share that is none."""
    if share is not None and not 0 <= share < 1:
        raise UserError(
            f"config.data.holdout={share}; expected a share of the training images, 0 "
            "or more and below 1, such as 0.1, or None."
        )


def describe(held: np.ndarray, share: float) -> str:
    """What is in which split, from the result of `choose`.

    >>> describe(np.arange(2_000) < 200, 0.1)
    'train is 0.9 of each class (1,800 images), test 0.1 (200), chosen by their names'
    """
    test = int(held.sum())
    return (
        f"train is {1 - share:.3g} of each class ({len(held) - test:,} images), test "
        f"{share:.3g} ({test:,}), chosen by their names"
    )
