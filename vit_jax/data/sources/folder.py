"""A folder of image files: DIR/SPLIT/CLASS/*.jpg."""

import hashlib
import os
from collections.abc import Sequence

import numpy as np

from vit_jax.data import decode, splits
from vit_jax.data.crop import Crop
from vit_jax.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png")


class FolderSource:
    """Image files, read when they are needed. See `base.Source`."""

    in_memory = False
    multi_hot = False

    def __init__(
        self,
        files: Sequence[str],
        labels: np.ndarray,
        *,
        data_dir: str,
        label_names: tuple[str, ...],
    ):
        """`files` are paths under data_dir, `labels` int32 [n]."""
        self.name = data_dir
        self.label_names: tuple[str, ...] | None = label_names
        self.num_classes: int | None = len(label_names)
        # One array of bytes instead of a million strings: workers get a copy.
        self._files = np.array([os.fsencode(f) for f in files])
        self._labels = labels
        digest = hashlib.sha256(repr((label_names, len(files))).encode())
        digest.update(b"\0".join(self._files.tolist()))
        self.fingerprint = digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._files)

    def read(self, index: int, crop: Crop | None = None) -> tuple[np.ndarray, int]:
        path = self.describe(index)
        try:
            with open(path, "rb") as file:
                data = file.read()
        except OSError as e:
            raise UserError(f"{path} cannot be read: {e.strerror}.") from e
        image = decode.decode(data, where=path, crop=crop)
        return image, int(self._labels[index])

    def labels(self) -> np.ndarray:
        return self._labels

    def describe(self, index: int) -> str:
        return os.path.join(self.name, os.fsdecode(self._files[index].item()))


def open_folder(data_dir: str, split: str) -> FolderSource:
    """data_dir/{train,test,...}/CLASS/*.{jpg,jpeg,png}.

    Classes are the sorted names of the class folders of `train` (where there is one),
    for every split; records are in the order of classes, then file names. Names that
    start with a dot are left out.

    Raises:
        UserError: no such folder or split, no classes, a class without images, or one
            that training does not know.
    """
    if not os.path.isdir(data_dir):
        raise UserError(f'config.data.data_dir="{data_dir}" is not a folder.')
    names = _folders(data_dir)
    wanted = [n for n in splits.split_names(split) if n in names]
    classes = _folders(os.path.join(data_dir, "train")) if "train" in names else []
    for name in wanted:
        found = _folders(os.path.join(data_dir, name))
        classes = classes or found
        unknown = sorted(set(found) - set(classes))
        if unknown:
            raise UserError(
                f"{os.path.join(data_dir, name)} has classes that "
                f"{os.path.join(data_dir, 'train')} has not: {', '.join(unknown[:10])}."
            )
    files = {n: _files(data_dir, n, classes) for n in wanted}
    sizes = {n: len(files[n][0]) if n in files else 0 for n in names}
    ranges = splits.resolve(split, sizes, where=data_dir)
    return FolderSource(
        [f for r in ranges for f in files[r.name][0][r.start : r.stop]],
        np.concatenate([files[r.name][1][r.start : r.stop] for r in ranges]),
        data_dir=data_dir,
        label_names=tuple(classes),
    )


def _folders(path: str) -> list[str]:
    with os.scandir(path) as entries:
        return sorted(e.name for e in entries if e.is_dir() and e.name[0] != ".")


def _files(
    data_dir: str, split: str, classes: Sequence[str]
) -> tuple[list[str], np.ndarray]:
    """The files of a split, as paths under data_dir, and their labels."""
    present = _folders(os.path.join(data_dir, split))
    if not present:
        raise UserError(
            f"{os.path.join(data_dir, split)} has no class folders; expected "
            f"{os.path.join(data_dir, split, 'CLASS', 'IMAGE.jpg')}."
        )
    files, labels = [], []
    for label, name in enumerate(classes):
        if name not in present:
            continue
        folder = os.path.join(split, name)
        with os.scandir(os.path.join(data_dir, folder)) as entries:
            found = sorted(e.name for e in entries if _is_image(e.name))
        if not found:
            raise UserError(
                f"class folder {os.path.join(data_dir, folder)} has no images "
                f"({', '.join(EXTENSIONS)}); add some, or remove the folder."
            )
        files += [os.path.join(folder, f) for f in found]
        labels += [label] * len(found)
    return files, np.array(labels, np.int32)


def _is_image(name: str) -> bool:
    return name[0] != "." and name.lower().endswith(EXTENSIONS)
