"""The shape of data that is not opened: enough to build a model and its steps."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataShape:
    """What `vit_jax.program.Program` has to know of its data, and what a plan has.

    Attributes:
      image_shape: (height, width, channels).
      label_classes: None, since labels that are not read are taken to be numbers.
      mean: of the channels; `std` likewise.
      num_classes: of the dataset, or of a head that was trained on it (0 without one);
        None if it is not known.
      num_examples: of the training split, None if it is not known.
    """

    image_shape: tuple[int, int, int]
    label_classes: int | None = None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    num_classes: int | None
    num_examples: int | None = None


def of_section(
    data: dict[str, Any], *, num_classes: int | None, num_examples: int | None = None
) -> DataShape:
    """The shape that `config.data` says, which is not opened.

    Args:
      data: the section, complete.
      num_classes: which it does not say; likewise `num_examples`.
    """
    size = data["image_size"]
    height, width = (size, size) if isinstance(size, int) else size
    return DataShape(
        image_shape=(height, width, 3),
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        num_classes=num_classes,
        num_examples=num_examples,
    )
