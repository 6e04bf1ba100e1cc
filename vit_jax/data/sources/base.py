"""What a source is, and which module opens which name."""

import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from vit_jax import limits
from vit_jax.data import holdout
from vit_jax.data.crop import Crop
from vit_jax.errors import UserError

BUILT_IN = ("fashion_mnist_mini", "folder", "idx", "npz", "array_record", "mixture")
_SAMPLED = 64  # files
HOLDS_OUT = ("folder", "idx", "npz")  # what people put there themselves


class Source(Protocol):
    """Records 0 .. len-1 of a split, each an image and a label.

    Attributes:
        name: for messages: the dataset and where it lies.
        num_classes: number of classes where the source says so, else None.
        label_names: one for each class, or None.
        multi_hot: whether a label is a float32 vector [k], not one class.
        fingerprint: digest of what the records are, the same wherever they lie.
        sample: digest of how large some of their files are, the same wherever they lie:
            other files under the same names; "" where the fingerprint tells.
        in_memory: whether `read` costs nothing to speak of.
        notes: what a user should know of how the records were found.
    """

    name: str
    num_classes: int | None
    label_names: tuple[str, ...] | None
    multi_hot: bool
    fingerprint: str
    sample: str
    in_memory: bool
    notes: tuple[str, ...]

    def __len__(self) -> int: ...

    def read(
        self, index: int, crop: Crop | None = None
    ) -> tuple[np.ndarray, int | np.ndarray]:
        """The image, uint8 [h, w, 3], and the label.

        Args:
            index: of the record.
            crop: the part of the image that is wanted; default: all.

        Raises:
            BadExample: it is broken, whatever part of it is wanted.
        """
        ...

    def describe(self, index: int) -> str:
        """Names a record, with its file, for messages."""
        ...

    def labels(self) -> np.ndarray | None:
        """All labels, int32 [n], where they cost nothing to get; else None."""
        ...


def sample_of(count: int, path: Callable[[int], str]) -> str:
    """Digest of the sizes of some of `count` files, evenly spaced; -1 of a lost one."""
    sizes = []
    for i in range(0, count, max(1, count // _SAMPLED)):
        try:
            sizes.append(os.stat(path(i)).st_size)
        except OSError:  # told by whoever reads it
            sizes.append(-1)
    return hashlib.sha256(repr(sizes).encode()).hexdigest()[:16]


def open_source(
    *,
    name: str,
    data_dir: str | None,
    split: str,
    image_key: str | None = None,
    label_key: str | None = None,
    held_out: float | None = None,
    max_pixels: int = limits.IMAGE_PIXELS,
) -> Source:
    """Opens `split` of a dataset; see `vit_jax.data.make` for the names."""
    holdout.check(held_out)
    if held_out is not None and name not in HOLDS_OUT:
        raise UserError(
            f"config.data.holdout={held_out:g} has no effect with config.data.name="
            f'"{name}"; set it to None, and slice: --config.data.split="train[:90%]"'
        )
    if name in BUILT_IN and name != "array_record":
        for key, value, default in (
            ("image_key", image_key, "image"),
            ("label_key", label_key, "label"),
        ):
            if value not in (None, default):
                raise UserError(
                    f'config.data.{key}="{value}" has no effect with '
                    f'config.data.name="{name}"; set it to None.'
                )
    if name == "mixture":
        raise UserError(
            'config.data.name="mixture" is for training only, and not within a '
            "mixture; name one dataset here."
        )
    if name == "fashion_mnist_mini":
        if data_dir is not None:
            raise UserError(
                f'config.data.data_dir="{data_dir}" has no effect with '
                'config.data.name="fashion_mnist_mini", which comes with the package; '
                'set it to None, or choose config.data.name="idx" for IDX files in '
                "that folder."
            )
        from vit_jax.data.sources import idx

        return idx.open_fashion_mnist_mini(split)
    if data_dir is not None:
        data_dir = _local(data_dir)
    if name not in BUILT_IN:
        from vit_jax.data.sources import tfds

        return tfds.open_tfds(
            name,
            data_dir,
            split=split,
            image_key=image_key,
            label_key=label_key,
            max_pixels=max_pixels,
        )
    if data_dir is None:
        what = "the .npz file" if name == "npz" else "the folder"
        raise UserError(
            f'config.data.name="{name}" needs config.data.data_dir: {what} to read.'
        )
    if name == "folder":
        from vit_jax.data.sources import folder

        return folder.open_folder(data_dir, split, held_out, max_pixels=max_pixels)
    if name == "idx":
        from vit_jax.data.sources import idx

        return idx.open_idx(data_dir, split, held_out)
    if name == "array_record":
        from vit_jax.data.sources import sharded

        return sharded.open_sharded(
            data_dir,
            split=split,
            image_key=image_key,
            label_key=label_key,
            max_pixels=max_pixels,
        )
    from vit_jax.data.sources import npz

    return npz.open_npz(data_dir, split, held_out)


def lacks_test(name: str, data_dir: str | None, wanted: Sequence[str]) -> bool:
    """Whether there is data to train on, but not all test splits among `wanted`.

    False where that cannot be told: then opening the data says why.
    """
    if name not in HOLDS_OUT or data_dir is None or "://" in data_dir:
        return False
    data_dir = os.path.expanduser(data_dir)
    try:
        if name == "folder":
            from vit_jax.data.sources import folder

            existing = folder.split_folders(data_dir, wanted)
        elif name == "idx":
            from vit_jax.data.sources import idx

            existing = idx.split_files(data_dir)
        else:
            from vit_jax.data.sources import npz

            existing = npz.split_keys(data_dir)
    except UserError:
        return False
    return holdout.lacks_test(wanted, existing)


def _local(data_dir: str) -> str:
    if "://" in data_dir:
        raise UserError(
            f'config.data.data_dir="{data_dir}": records are read at random, which is '
            "a request for each on an object store; copy the dataset to a local disk."
        )
    return os.path.expanduser(data_dir)
