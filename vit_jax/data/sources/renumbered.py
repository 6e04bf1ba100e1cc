"""A source whose classes have the numbers that a model gives them."""

from collections.abc import Sequence

import numpy as np

from vit_jax.data.crop import Crop
from vit_jax.data.sources.base import Source
from vit_jax.errors import BadExample


class RenumberedSource:
    """The records of another source. See `base.Source`."""

    def __init__(
        self,
        source: Source,
        places: Sequence[int],
        *,
        num_classes: int,
        label_names: Sequence[str],
    ):
        """Class i becomes `places[i]`, one of `num_classes`."""
        self._source = source
        self._places = np.array(places, np.int32)
        self.name = source.name
        self.num_classes: int | None = num_classes
        self.label_names: tuple[str, ...] | None = tuple(label_names)
        self.multi_hot = source.multi_hot
        self.fingerprint, self.sample = source.fingerprint, source.sample
        self.in_memory = source.in_memory
        self.notes = source.notes

    def __len__(self) -> int:
        return len(self._source)

    def read(
        self, index: int, crop: Crop | None = None
    ) -> tuple[np.ndarray, int | np.ndarray]:
        image, label = self._source.read(index, crop)
        if self.multi_hot:
            vector = np.zeros(self.num_classes or 0, np.float32)
            vector[self._places] = label
            return image, vector
        if not 0 <= label < len(self._places):
            raise BadExample(
                f"{self.describe(index)} has label {label}, out of range "
                f"0..{len(self._places) - 1}; correct the labels."
            )
        return image, int(self._places[label])

    def describe(self, index: int) -> str:
        return self._source.describe(index)

    def labels(self) -> np.ndarray | None:
        labels = self._source.labels()
        if labels is None:
            return None
        if self.multi_hot:
            vectors = np.zeros((len(labels), self.num_classes or 0), np.float32)
            vectors[:, self._places] = labels
            return vectors
        inside = (labels >= 0) & (labels < len(self._places))
        return np.where(inside, self._places[np.where(inside, labels, 0)], -1)
