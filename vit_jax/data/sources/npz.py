"""NumPy archives: x_SPLIT and y_SPLIT, or SPLIT_images and SPLIT_labels."""

import os
import zipfile
from typing import BinaryIO

import numpy as np

from vit_jax.data import splits
from vit_jax.data.sources.arrays import ArraySource
from vit_jax.errors import UserError


def open_npz(path: str, split: str) -> ArraySource:
    """A .npz file with images, uint8 [n, h, w] or [n, h, w, c], and labels.

    The keys are those of Keras' and MedMNIST's files: `x_train`, `y_train`, `x_test`,
    ..., or `train_images`, `train_labels`, .... Labels are integers [n] or [n, 1], or
    multi-hot [n, classes]. Everything is loaded into memory.

    Raises:
        UserError: no such file, not an archive, arrays missing or not images.
    """
    if not os.path.isfile(path):
        raise UserError(
            f'config.data.data_dir="{path}" is not a file; with '
            'config.data.name="npz" it must be the .npz file itself.'
        )
    with open(path, "rb") as file:
        archive = _open(file, path)
        keys = _split_keys(archive.files)
        if not keys:
            raise UserError(
                f"{path} has the arrays {', '.join(archive.files) or 'none'}; expected "
                "x_train and y_train, or train_images and train_labels (and so on for "
                "other splits)."
            )
        names = splits.split_names(split)
        loaded = {n: _load(archive, keys[n], path) for n in names if n in keys}
    sizes = {n: len(loaded[n][0]) if n in loaded else 0 for n in keys}
    ranges = splits.resolve(split, sizes, where=path)
    return ArraySource(
        [loaded[r.name][0] for r in ranges],
        [loaded[r.name][1] for r in ranges],
        ranges=ranges,
        name=path,
        num_classes=None,
    )


def _open(file: BinaryIO, path: str) -> np.lib.npyio.NpzFile:
    try:
        archive = np.load(file, allow_pickle=False)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as e:
        raise UserError(f"{path} is not a readable .npz file: {e}") from e
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise UserError(f"{path} is a single array; expected a .npz file with several.")
    return archive


def _split_keys(names: list[str]) -> dict[str, tuple[str, str]]:
    """{split: (key of the images, key of the labels)}."""
    keys = {}
    for name in names:
        if name.startswith("x_"):
            images, labels, split = name, f"y_{name[2:]}", name[2:]
        elif name.endswith("_images"):
            split = name.removesuffix("_images")
            images, labels = name, f"{split}_labels"
        else:
            continue
        if labels in names:
            keys[split] = images, labels
    return keys


def _load(
    archive: np.lib.npyio.NpzFile, keys: tuple[str, str], path: str
) -> tuple[np.ndarray, np.ndarray]:
    try:
        images, labels = archive[keys[0]], archive[keys[1]]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as e:
        raise UserError(f"{path}: {' or '.join(keys)} cannot be read: {e}") from e
    if labels.ndim == 2 and labels.shape[1] == 1 and labels.dtype.kind in "iu":
        labels = labels[:, 0]
    return images, labels
