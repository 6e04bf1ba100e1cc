"""What is known of a dataset before it is read."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import numpy as np

from vit_jax.data import splits

Features = Mapping[str, np.ndarray]
Slices = Callable[[Mapping[str, int]], dict[str, str]]


class Derived(NamedTuple):
    """A label that is computed from features of a record.

    Attributes:
        keys: of the features, int64 or float32 arrays, flattened; [0] where absent.
        function: {key: values} -> class number.
    """

    keys: tuple[str, ...]
    function: Callable[[Features], int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A dataset by its name in `config.data.name`.

    Attributes:
        stored_as: NAME or NAME/CONFIG of TFDS that holds it, or the name itself.
        num_classes: of its labels.
        stored: published number of records of each split, as TFDS splits them.
        access: licence, or how one gets it.
        source: where the figures stand.
        configs: of the TFDS dataset, one of which must be chosen: NAME/CONFIG.
        image_key: the feature that is the image.
        label_key: the feature that is the label.
        multi_label: whether an image may have several labels, or none.
        label_names: one for each class; None: read with the dataset.
        classes_present: the classes that occur, where not all do.
        slices: from the records of each stored split to more splits, as expressions.
        label: how the label is computed; None: it is the feature `label_key`.
        pixels: what is done to the pixels first.
        group: of VTAB's tasks.
        files: what `vit_jax.data.prepare` makes it of, as its arguments.
    """

    stored_as: str
    num_classes: int
    stored: Mapping[str, int]
    access: str
    source: str
    configs: tuple[str, ...] = ()
    image_key: str = "image"
    label_key: str = "label"
    multi_label: bool = False
    label_names: tuple[str, ...] | None = None
    classes_present: tuple[int, ...] | None = None
    slices: Slices | None = None
    label: Derived | None = None
    pixels: Callable[[np.ndarray], np.ndarray] | None = None
    group: Literal["Natural", "Specialized", "Structured"] | None = None
    files: str | None = None

    def named_splits(self, sizes: Mapping[str, int]) -> dict[str, str]:
        """The splits that are expressions of the stored ones, whose sizes these are."""
        return {} if self.slices is None else self.slices(sizes)

    def count(self, split: str, *, where: str) -> int:
        """The published number of records of a split expression.

        Raises:
            UserError: if there is no such split.
        """
        named = self.named_splits(self.stored)
        ranges = splits.resolve(split, self.stored, where=where, named=named)
        return sum(part.stop - part.start for part in ranges)

    def counts(self) -> dict[str, int]:
        """The published number of records of each split; VTAB's where it has those."""
        names = self.named_splits(self.stored) or self.stored
        return {name: self.count(name, where=self.stored_as) for name in names}
