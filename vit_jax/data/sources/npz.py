"""NumPy archives: x_SPLIT and y_SPLIT, SPLIT_images and SPLIT_labels, or x and y."""

import contextlib
import os
from collections.abc import Collection, Iterator, Sequence
from typing import BinaryIO

import numpy as np

from vit_jax import limits
from vit_jax.data import splits
from vit_jax.data.sources import convert
from vit_jax.data.sources.arrays import ArraySource, Loaded, open_arrays
from vit_jax.errors import NUMPY_ERRORS, ZIP_ERRORS, UserError

# Words of the keys of images and of labels, in any case.
_IMAGES = ("x", "image", "images", "img", "imgs", "data")
_LABELS = ("y", "label", "labels", "target", "targets")


def open_npz(path: str, split: str, held_out: float | None = None) -> ArraySource:
    """A .npz file with images and labels, as `convert` takes them.

    The keys are those of Keras' and MedMNIST's files: `x_train`, `y_train`, `x_test`,
    ..., or `train_images`, `train_labels`, ...; or images and labels alone, `x` and
    `y`, `data` and `target`, which are of any split unless some are held out. Labels
    are numbers [n] or [n, 1], names [n], or multi-hot [n, classes]. Everything is
    loaded into memory.

    Raises:
        UserError: no such file, not an archive, arrays missing or not images.
    """
    with _archive(path) as archive:
        keys = _split_keys(archive.files)
        if not keys:
            raise UserError(
                f"{path} has the arrays {', '.join(archive.files) or 'none'}; expected "
                "x_train and y_train, or train_images and train_labels (and so on for "
                "other splits), or x and y."
            )
        labels = {
            name: convert.to_labels(_load(archive, label, path), f"{path} {name}")
            for name, (_, label) in keys.items()
        }
        existing = [name for name in keys if name]
        train = splits.find("train", existing) or next(iter(keys))
        labels, names = convert.number_names(labels, train, path)

        def load(name: str) -> Loaded:
            images = _load(archive, keys[name][0], path)
            where = f"{path} {name}".rstrip()
            return Loaded(convert.to_images(images, where), labels[name])

        return open_arrays(
            split,
            existing,
            load,
            name=path,
            held_out=held_out or 0.0,
            labels=list(labels.values()),
            label_names=names,
        )


def split_keys(path: str) -> list[str]:
    """The splits of a file; none where images and labels are of no split."""
    with _archive(path) as archive:
        return [name for name in _split_keys(archive.files) if name]


@contextlib.contextmanager
def _archive(path: str) -> Iterator[np.lib.npyio.NpzFile]:
    if not os.path.isfile(path):
        raise UserError(
            f'config.data.data_dir="{path}" is not a file; with '
            'config.data.name="npz" it must be the .npz file itself.'
        )
    with open(path, "rb") as file:
        yield _open(file, path)


def _open(file: BinaryIO, path: str) -> np.lib.npyio.NpzFile:
    try:
        archive = np.load(file, allow_pickle=False)
    except (*ZIP_ERRORS, OSError) as e:
        raise UserError(f"{path} is not a readable .npz file: {e}") from e
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise UserError(f"{path} is a single array; expected a .npz file with several.")
    assert archive.zip is not None  # it is open
    unpacked = sum(info.file_size for info in archive.zip.infolist())
    limits.check_unpacked(path, os.path.getsize(path), unpacked)
    limits.check_memory(path, unpacked)
    return archive


def _split_keys(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """{split: (key of the images, key of the labels)}; "" is no split.

    >>> _split_keys(["x_train", "y_train", "val_images", "val_labels", "z"])
    {'train': ('x_train', 'y_train'), 'val': ('val_images', 'val_labels')}
    >>> _split_keys(["X", "y"]), _split_keys(["x_train"])
    ({'': ('X', 'y')}, {})
    """
    images, labels = (_by_split(names, words) for words in (_IMAGES, _LABELS))
    found = {
        split: (images[split], labels[split]) for split in images if split in labels
    }
    if "" in found and len(found) > 1:
        unnamed = found.pop("")
        if splits.find("train", found) is None:
            found = {"train": unnamed, **found}
    return found


def _by_split(names: Sequence[str], words: Collection[str]) -> dict[str, str]:
    """{split: key}, of the keys that say one of these words."""
    found: dict[str, str] = {}
    for name in names:
        said = name.split("_")
        rest = [word for word in said if word.lower() not in words]
        if len(rest) == len(said) - 1:
            found.setdefault("_".join(rest), name)
    return found


def _load(archive: np.lib.npyio.NpzFile, key: str, path: str) -> np.ndarray:
    try:
        array = archive[key]
    except (*NUMPY_ERRORS, OSError) as e:
        if "allow_pickle" in str(e):
            raise UserError(
                f"{path}: {key} holds Python objects, which may be code; save numbers, "
                "or text with dtype=str."
            ) from e
        raise UserError(f"{path}: {key} cannot be read: {str(e)[:200]}") from e
    if not isinstance(array, np.ndarray):  # NumPy gives the bytes of what is no .npy
        raise UserError(f"{path}: {key} is no array as NumPy writes it.")
    return array
