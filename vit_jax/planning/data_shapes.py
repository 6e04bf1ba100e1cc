"""The shape of a config's training data, without the data."""

import dataclasses
from typing import Any

from vit_jax.data import catalog
from vit_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataShape:
    """What `vit_jax.program.Program` has to know of its data, and what a plan has.

    Attributes:
      image_shape: (height, width, channels).
      label_classes: None, since the labels of all that is known here are numbers.
      mean: of the channels; `std` likewise.
      num_classes: of the dataset, None if it is not known.
      num_examples: of the training split, None if it is not known.
    """

    image_shape: tuple[int, int, int]
    label_classes: int | None = None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    num_classes: int | None
    num_examples: int | None


def of_config(data: dict[str, Any], num_examples: int | None = None) -> DataShape:
    """The shape of `config.data`.

    Args:
      data: the section, complete.
      num_examples: of the training split, for data that the catalog does not have.

    Raises:
      UserError: if the split is not one of a dataset that the catalog has.
    """
    size = data["image_size"]
    height, width = (size, size) if isinstance(size, int) else size
    known, num_classes = of_sets(data)
    num_examples = known if num_examples is None else num_examples
    if num_examples is not None and num_examples < 1:
        raise UserError(f"--num_examples={num_examples}: it should be at least 1")
    return DataShape(
        image_shape=(height, width, 3),
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        num_classes=num_classes,
        num_examples=num_examples,
    )


def of_sets(data: dict[str, Any]) -> tuple[int | None, int | None]:
    """Published examples and classes of `config.data`, or of all parts of its mixture.

    Each is None if it is not known of every part.
    """
    sets = data["mixture"].values() if data["name"] == "mixture" else [data]
    counts, classes = [], set()
    for part in sets:
        entry = catalog.find(part["name"])
        if entry is None:
            return None, None
        split = data["split"] if part["split"] is None else part["split"]
        counts.append(entry.count(split, where=part["name"]))
        classes.add(entry.num_classes)
    return sum(counts), classes.pop() if len(classes) == 1 else None
