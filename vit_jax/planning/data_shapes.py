"""The shape of a config's training data, without the data."""

import dataclasses
from typing import Any

from vit_jax.data import splits
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


# Examples of each split, and classes, as TFDS's catalogue states them
# (tensorflow.org/datasets/catalog). imagenet21k, which has no builder there: Ridnik et
# al., 2021 (arXiv:2104.10972), the fall 2011 release, and the paper's section 4.1.
# fashion_mnist_mini comes with this package.
_SIZES: dict[str, tuple[dict[str, int], int]] = {
    "cifar10": ({"train": 50_000, "test": 10_000}, 10),
    "cifar100": ({"train": 50_000, "test": 10_000}, 100),
    "fashion_mnist": ({"train": 60_000, "test": 10_000}, 10),
    "fashion_mnist_mini": ({"train": 8_000, "test": 2_000}, 10),
    "imagenet2012": ({"train": 1_281_167, "validation": 50_000}, 1_000),
    "imagenet21k": ({"train": 14_197_122}, 21_843),
    "mnist": ({"train": 60_000, "test": 10_000}, 10),
    "oxford_flowers102": ({"train": 1_020, "validation": 1_020, "test": 6_149}, 102),
    "oxford_iiit_pet": ({"train": 3_680, "test": 3_669}, 37),
    "places365_small": ({"train": 1_803_460, "validation": 36_500}, 365),
}


def of_config(data: dict[str, Any], num_examples: int | None = None) -> DataShape:
    """The shape of `config.data`.

    Args:
      data: the section, complete.
      num_examples: of the training split, for data that the table does not have.

    Raises:
      UserError: if the split is not one of a dataset that the table has.
    """
    size = data["image_size"]
    height, width = (size, size) if isinstance(size, int) else size
    name = data["name"].partition(":")[0]
    sizes, num_classes = _SIZES[name] if name in _SIZES else ({}, None)
    if num_examples is None and sizes:
        parts = splits.resolve(data["split"], sizes, where=name)
        num_examples = sum(part.stop - part.start for part in parts)
    if num_examples is not None and num_examples < 1:
        raise UserError(f"--num_examples={num_examples}: it should be at least 1")
    return DataShape(
        image_shape=(height, width, 3),
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        num_classes=num_classes,
        num_examples=num_examples,
    )
