"""A folder of image files: DIR/SPLIT/CLASS/IMAGE, or DIR/CLASS/IMAGE."""

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vit_jax import limits
from vit_jax.data import decode, holdout, image_file, sampler, splits
from vit_jax.data.crop import Crop
from vit_jax.data.sources import layout as layouts
from vit_jax.data.sources.base import sample_of
from vit_jax.data.sources.layout import Layout, named, printable
from vit_jax.errors import UserError


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
        notes: tuple[str, ...] = (),
        max_pixels: int = limits.IMAGE_PIXELS,
    ):
        """`files` are paths under data_dir, `labels` int32 [n]; see `decode`."""
        self.name = data_dir
        self.label_names: tuple[str, ...] | None = label_names
        self.num_classes: int | None = len(label_names)
        self.notes, self._max_pixels = notes, max_pixels
        # One array of bytes instead of a million strings: workers get a copy.
        self._files = np.array([os.fsencode(f) for f in files])
        self._labels = labels
        digest = hashlib.sha256(repr((label_names, len(files))).encode())
        digest.update(b"\0".join(self._files.tolist()))
        self.fingerprint = digest.hexdigest()[:16]
        self.sample = sample_of(len(files), self._path)

    def __len__(self) -> int:
        return len(self._files)

    def read(self, index: int, crop: Crop | None = None) -> tuple[np.ndarray, int]:
        where = self.describe(index)
        try:
            data = image_file.read(self._path(index))
        except OSError as e:
            raise UserError(f"{where} cannot be read: {e.strerror}.") from e
        image = decode.decode(data, where=where, crop=crop, max_pixels=self._max_pixels)
        return image, int(self._labels[index])

    def labels(self) -> np.ndarray:
        return self._labels

    def describe(self, index: int) -> str:
        return printable(self._path(index))

    def _path(self, index: int) -> str:
        return os.path.join(self.name, os.fsdecode(self._files[index].item()))


class Images(NamedTuple):
    """The images of one split.

    Attributes:
        files: paths under the folder that was given.
        labels: int32 [n].
        names: of the images in the split, CLASS/..., bytes [n].
    """

    files: list[str]
    labels: np.ndarray
    names: np.ndarray

    def take(self, rows: np.ndarray) -> "Images":
        files = [self.files[i] for i in rows.tolist()]
        return Images(files, self.labels[rows], self.names[rows])


def open_folder(
    data_dir: str,
    split: str,
    held_out: float | None = None,
    *,
    max_pixels: int = limits.IMAGE_PIXELS,
) -> FolderSource:
    """The images of a split; `layout` says how they may lie.

    Classes are the sorted names of the class folders of training, for every split. A
    whole split is in the order of classes, then of paths below the class. A slice, as
    in train[:90%], is one of `sampler.fixed_order` of the names CLASS/IMAGE.

    Without split folders all images are of the split that is asked for, whichever it
    is, unless a share of them is held out.

    Args:
        data_dir: the folder.
        split: see `splits`; also by another name, such as Training or val.
        held_out: see `holdout`; None or 0 is nothing.
        max_pixels: of an image, see `decode`.

    Raises:
        UserError: no such folder or split, no images, a class that training does not
            know, or the name of a class that is not UTF-8.
    """
    wanted = splits.split_names(split)
    layout = layouts.find(data_dir, wanted)
    opener = _Opener(data_dir, layout, held_out or 0.0)
    holdout.check_distinct({n: opener.place(n) for n in wanted}, opener.said)
    found = {n: images for n in wanted if (images := opener.images(n)) is not None}
    sizes = dict.fromkeys(opener.splits or ("train", "test"), 0)
    sizes |= {n: len(images.files) for n, images in found.items()}
    try:
        ranges = splits.resolve(split, sizes, where=opener.said)
    except UserError as e:
        raise UserError(f"{e}{opener.advice(wanted)}") from e
    parts = [_slice(found[r.name], r) for r in ranges]
    return FolderSource(
        [file for part in parts for file in part.files],
        np.concatenate([part.labels for part in parts]),
        data_dir=data_dir,
        label_names=tuple(opener.classes),
        notes=tuple(opener.notes),
        max_pixels=max_pixels,
    )


def split_folders(data_dir: str, wanted: Sequence[str]) -> tuple[str, ...]:
    """The split folders that there are; none where there are class folders only."""
    return layouts.find(data_dir, ["train", *wanted]).splits


def _slice(images: Images, part: splits.Range) -> Images:
    if part.stop - part.start == len(images.files):
        return images
    return images.take(sampler.fixed_order(images.names)[part.start : part.stop])


class _Opener:
    """Lists the images of the splits of one folder.

    Attributes:
        said: the folder of the splits or classes, fit to be printed.
        splits: the split folders; none where there are class folders only.
        classes: the names of the classes.
        notes: what a user should know of what was found.
    """

    def __init__(self, data_dir: str, layout: Layout, held_out: float):
        self._data_dir, self._root, self._held_out = data_dir, layout.root, held_out
        self.said = printable(self._path(layout.root))
        self.notes: list[str] = []
        self.splits = layout.splits
        if held_out:  # a folder of images without classes is nothing to test on
            self.splits = tuple(n for n in self.splits if self._has_classes(n))
            holdout.check_effect(held_out, self.splits, self.said)
        self._training = self._find_training()
        self.classes: list[str] = []
        if self._training is not None:
            self.classes = self._class_folders(self._training)
        self._listed: dict[str, Images] = {}
        if layout.root:
            self._note(f"{printable(data_dir)}: its images are in {self.said}")
        self._note_neighbours()

    def images(self, name: str) -> Images | None:
        """Those of a split; None if there is no such split."""
        place = self.place(name)
        if place is None:
            return None
        self._note(*holdout.note(self.said, name, place))
        folder = os.path.join(self._root, place.split)
        if folder not in self._listed:
            self._listed[folder] = self._list(folder)
        images = self._listed[folder]
        if place.held is None:
            return images
        held = holdout.choose(images.labels, images.names.tolist(), self._held_out)
        self._note(f"{self.said}: {holdout.describe(held, self._held_out)}")
        return images.take(np.flatnonzero(held == place.held))

    def place(self, name: str) -> holdout.Place | None:
        """Where the images of a split are."""
        return holdout.place(name, self.splits, self._held_out)

    def advice(self, wanted: Sequence[str]) -> str:
        """What to do where a split is missing."""
        if not self.splits:
            return f" It has class folders ({named(self.classes)}), no split folders."
        return "" if self._held_out else holdout.advice(wanted, self.splits)

    def _find_training(self) -> str | None:
        """The folder, under data_dir, of the class folders of training."""
        name = splits.find("train", self.splits) if self.splits else ""
        folder = None if name is None else os.path.join(self._root, name)
        if folder is None or not layouts.folders(self._path(folder)):
            return None
        return folder

    def _list(self, folder: str) -> Images:
        """The images of the class folders in a folder."""
        present = self._class_folders(folder)
        self.classes = self.classes or present
        numbers = {name: i for i, name in enumerate(self.classes)}
        names, labels, unknown = list[str](), list[int](), list[str]()
        left_out = Counter({layouts.NO_CLASS: layouts.loose_images(self._path(folder))})
        for name in present:
            found, other = layouts.images(self._path(folder, name))
            left_out += other
            if found and name not in numbers:
                unknown.append(name)
            elif found:
                names += [os.path.join(name, file) for file in found]
                labels += [numbers[name]] * len(found)
        said = printable(self._path(folder))
        if unknown:
            raise UserError(
                f"{said} has classes that {printable(self._path(self._training or ''))}"
                f" has not: {named(unknown)}."
            )
        listed = layouts.listed(left_out)
        if not names:
            raise UserError(
                f"{said} has no images ({', '.join(decode.EXTENSIONS)}) in its "
                f"{len(present)} class folders{f'; it has {listed}' if listed else ''}."
            )
        if listed:
            self._note(f"{said}: left out {listed}")
        return Images(
            [os.path.join(folder, name) for name in names],
            np.array(labels, np.int32),
            np.array([os.fsencode(name) for name in names]),
        )

    def _class_folders(self, folder: str) -> list[str]:
        names, path = layouts.folders(self._path(folder)), self._path(folder)
        if not names:
            raise UserError(
                f"{printable(path)} has no class folders; expected "
                f"{printable(os.path.join(path, 'CLASS', 'IMAGE.jpg'))}."
            )
        bad = [n for n in names if not _is_utf8(n)]
        encoding = sys.getfilesystemencoding()
        if bad and encoding != "utf-8":
            raise UserError(
                f"{printable(path)} has class folders such as {named(bad[:1])}, and "
                f"this process reads names as {encoding}: set LC_ALL=C.UTF-8 or "
                "PYTHONUTF8=1 before it starts."
            )
        if bad:
            raise UserError(
                f"{printable(path)} has class folders whose names are not UTF-8: "
                f"{named(bad)}. Rename them: class names are written to text files."
            )
        return names

    def _has_classes(self, split: str) -> bool:
        return bool(layouts.folders(self._path(self._root, split)))

    def _note_neighbours(self) -> None:
        """Whoever gives DIR/train where DIR has a test folder may mean DIR."""
        parent, name = os.path.split(os.path.abspath(self._data_dir))
        if self.splits or splits.purpose(name) != "train":
            return
        test = splits.find("test", layouts.folders(parent))
        if test is not None:
            self._note(
                f"{printable(os.path.join(parent, test))} is not read; to evaluate on "
                f"it, set config.data.data_dir={printable(parent)}"
            )

    def _path(self, *parts: str) -> str:
        return os.path.normpath(os.path.join(self._data_dir, *parts))

    def _note(self, *texts: str) -> None:
        self.notes += [text for text in texts if text not in self.notes]


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
