"""Finds the images of a source: folders and tar files; `tables` has CSV and Parquet.

What can be read at any place is left where it is. What cannot, a compressed tar file
or Parquet, is unpacked once into the folder `Options.spill`.
"""

import dataclasses
import glob
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple, TypeVar

from vit_jax.data.decode import is_image
from vit_jax.data.prepare import csv_rows, labels, tables, tars
from vit_jax.data.prepare.items import Items, Labels, in_container
from vit_jax.data.sources import layout
from vit_jax.data.sources.layout import is_file, is_folder
from vit_jax.errors import UserError

_BESIDE = "folders beside images that lie in none"
# What folders of splits are called.
_SPLITS = re.compile(
    r"(train|test|val|valid|dev|eval|unlabel)\w*|.*[-_](train|test|val)", re.IGNORECASE
)
_SOURCE = re.compile(r"((?P<split>[A-Za-z][\w-]*)=)?(?P<path>.+)")


_Found = TypeVar("_Found")


class Part(NamedTuple):
    """Images of one split."""

    split: str
    items: Items


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finder:
    """Lists the images of sources.

    Attributes:
        spill: folder for what has to be unpacked first.
        pool: runs what takes long, a file at a time.
        columns: of tables.
        labels: of images that lie in no class folder: a file, see `labels.read`.
        left_out: counts, by their extension, the files that are no images.
        labelled: where `labels` were given to images.
    """

    spill: str
    pool: Executor
    columns: tables.Columns
    labels: str | None
    left_out: Counter[str] = dataclasses.field(default_factory=Counter)
    labelled: list[str] = dataclasses.field(default_factory=list)

    def find(self, source: str) -> list[Part]:
        """The images of [SPLIT=]PATH, where PATH may be a pattern with `*`.

        Raises:
            UserError: nothing there, or in no layout that is known.
        """
        match = _SOURCE.fullmatch(source)
        if match is None:
            raise UserError(f'source "{source}": expected PATH or SPLIT=PATH.')
        pattern = os.path.expanduser(match["path"])
        paths = sorted(glob.glob(pattern)) if "*" in pattern else [pattern]
        if not paths or not all(map(os.path.exists, paths)):
            raise UserError(f'source "{source}": there is no {pattern}.')
        parts = [p for path in paths for p in self._find(path, match["split"])]
        if not parts:
            raise UserError(
                f'source "{source}" has no images; expected folders SPLIT/CLASS/IMAGE, '
                "or with SPLIT=PATH: CLASS/IMAGE, tar files, a CSV or Parquet files."
            )
        return parts

    def _find(self, path: str, split: str | None) -> list[Part]:
        if os.path.isdir(path):
            return self._folder(path, split)
        csv_rows.check_regular(path)
        if path.endswith(tars.ENDINGS):
            return self._tar(path, split)
        if path.endswith(csv_rows.ENDINGS):
            return [Part(*p) for p in tables.read_csv(path, split, self.columns)]
        if path.endswith(".parquet"):
            return self._parquet([path], split)
        raise UserError(
            f"{path}: expected a folder, {', '.join(tars.ENDINGS)}, "
            f"{', '.join(csv_rows.ENDINGS)} or .parquet."
        )

    def _folder(self, path: str, split: str | None) -> list[Part]:
        files, folders = _file_names(path), layout.folders(path)
        if found := _parquet_files(path):
            return self._parquet(found, split)
        if found := [f for f in files if f.endswith(tars.ENDINGS)]:
            return [
                Part(_given(split, path), items)
                for items in self._class_tars([os.path.join(path, f) for f in found])
            ]
        if any(map(is_image, files)):
            self.left_out[_BESIDE] += len(folders)
            items = self._loose(path)
            return [Part(_given(split, path), self._flat(items))]
        if split is not None:
            return [Part(split, self._class(path, name)) for name in folders]
        parts = []
        for name in folders:
            inner = os.path.join(path, name)
            if layout.loose_images(inner):
                raise UserError(
                    f"{path} has class folders, such as {name}, but no split folders; "
                    f"say which split it is: train={path}."
                )
            classes = layout.folders(inner)
            parts += [Part(name, self._class(inner, c)) for c in classes]
        if folders and not any(map(_SPLITS.fullmatch, folders)):
            raise UserError(
                f"{path} has the folders {', '.join(folders[:5])}: by their names none "
                f"is a split. Say which it is: train={os.path.join(path, folders[0])}."
            )
        return parts

    def _class(self, root: str, name: str) -> Items:
        """The images below a class folder, at any depth."""
        found, others = layout.images(os.path.join(root, name))
        self.left_out.update(others)
        if not found:
            has = f"; it has {layout.listed(others)}" if others else ""
            raise UserError(
                f"{os.path.join(root, name)} has no images{has}; add some, or remove "
                "it."
            )
        return _of_folder(root, [os.path.join(name, file) for file in found], name)

    def _loose(self, root: str) -> Items:
        """The images that lie in a folder itself."""
        names = []
        with os.scandir(root) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                if not self._counts(entry.name):
                    continue
                if not is_file(entry):
                    self.left_out[_kind_of(entry)] += 1
                    continue
                names.append(entry.name)
        if not names:
            raise UserError(f"{root} has no images; add some, or remove it.")
        return _of_folder(root, names, "")

    def _counts(self, name: str) -> bool:
        if not (good := is_image(name)):
            self.left_out[tars.ending(name)] += 1
        return good

    def _tar(self, path: str, split: str | None) -> list[Part]:
        """A tar of class tars, of folders [SPLIT/]CLASS/, or of images alone."""
        path = self._plain(path)
        first = next(tars.members(path), None)
        if first is None:
            raise UserError(f"{path} is empty.")
        if first[0].endswith(".tar"):
            inner = [(path, *m) for m in tars.members(path, left_out=self.left_out)]
            return [Part(_given(split, path), i) for i in self._inner(inner)]
        groups: dict[_Place, list[tuple[str, int, int]]] = {}
        for name, offset, size in tars.members(path, left_out=self.left_out):
            if self._counts(name):
                place = _place(name.split("/")[:-1], split)
                groups.setdefault(place, []).append((name, offset, size))
        # Of SPLIT/CLASS/IMAGE only SPLIT, if one is given.
        chosen = {p: m for p, m in groups.items() if p.split == split} or groups
        return [self._group(path, split, *group) for group in sorted(chosen.items())]

    def _group(
        self,
        path: str,
        split: str | None,
        place: "_Place",
        members: list[tuple[str, int, int]],
    ) -> Part:
        """The images of one class of a tar file, or those in none."""
        names, offsets, sizes = zip(*sorted(members), strict=True)
        of = Labels.of_class(place.label, len(names))
        if not place.depth:
            items = in_container(path, names, sizes, of, offsets=offsets)
            return Part(_given(split, path), self._flat(items))
        names = ["/".join(n.split("/")[place.depth - 1 :]) for n in names]
        items = in_container(path, names, sizes, of, offsets=offsets)
        return Part(_given(split or place.split or None, path), items)

    def _class_tars(self, paths: list[str]) -> Iterable[Items]:
        plain = [self._plain(path) for path in paths]
        members = [(p, os.path.basename(p), 0, os.path.getsize(p)) for p in plain]
        return self._inner(members)

    def _inner(self, members: list[tuple[str, str, int, int]]) -> Iterator[Items]:
        """The images of class tars: (path, name, offset in the file, size)."""
        for items, others in self._each(tars.class_tar, members):
            self.left_out.update(others)
            yield items

    def _plain(self, path: str) -> str:
        """The tar file itself, or where a compressed one has been unpacked to."""
        csv_rows.check_regular(path)
        return tars.unpack(path, self.spill)

    def _parquet(self, paths: list[str], split: str | None) -> list[Part]:
        jobs = [(path, self.spill, self.columns) for path in paths]
        found = self._each(tables.unpack_parquet, jobs)
        names = [split or tables.split_of(path) for path in paths]
        return [Part(n, i) for n, i in zip(names, found, strict=True)]

    def _flat(self, items: Items) -> Items:
        """Images in no class folder, with the labels of the file for them."""
        if self.labels is None:
            raise UserError(
                f"{items.containers[0]} holds images that are in no class folder, such "
                f"as {items.name(0)}; give their labels with --labels=FILE."
            )
        self.labelled.append(items.containers[0])
        return labels.apply(items, self.labels)

    def _each(
        self, function: Callable[..., _Found], jobs: list[tuple[Any, ...]]
    ) -> Iterator[_Found]:
        return self.pool.map(_call, [function] * len(jobs), jobs)


class _Place(NamedTuple):
    """Where images of a tar file lie.

    Attributes:
        split: the folder above that of the class; "" if there is none.
        label: the folder of the class.
        depth: how many folders there are down to it; 0 for images in none.
    """

    split: str
    label: str
    depth: int


def _place(folders: Sequence[str], split: str | None) -> _Place:
    """Which of the folders above an image are its split and its class.

    The class is below the last folder that is called like the split that is given, or
    like any; where none is, it is the last folder of all.

    >>> _place(["photos", "train", "cat", "2024"], None)
    _Place(split='train', label='cat', depth=3)
    >>> _place(["photos", "cat"], "train")
    _Place(split='photos', label='cat', depth=2)
    """
    for depth in range(len(folders) - 1, 0, -1):
        name = folders[depth - 1]
        if name == split or (split is None and _SPLITS.fullmatch(name)):
            return _Place(name, folders[depth], depth + 1)
    above = folders[-2] if len(folders) > 1 else ""
    return _Place(above, folders[-1] if folders else "", len(folders))


def _call(function: Callable[..., _Found], arguments: tuple[Any, ...]) -> _Found:
    return function(*arguments)


def _of_folder(root: str, names: Sequence[str], label: str) -> Items:
    """Image files of one class, by their paths under a folder."""
    found = [os.stat(os.path.join(root, name)) for name in names]
    return in_container(
        root,
        names,
        [status.st_size for status in found],
        Labels.of_class(label, len(names)),
        times=[status.st_mtime_ns for status in found],
    )


def _kind_of(entry: os.DirEntry[str]) -> str:
    """What something with the name of an image is that is no file."""
    if is_folder(entry):
        return "folders with the name of an image"
    return layout.DEAD_LINK if entry.is_symlink() else layout.NO_FILE


def _given(split: str | None, path: str) -> str:
    if split is None:
        raise UserError(f"say which split {path} is: SPLIT={path}, such as train=...")
    return split


def _file_names(path: str) -> list[str]:
    """The names of the files in a folder, sorted, without hidden ones."""
    with os.scandir(path) as entries:
        return sorted(e.name for e in entries if e.name[0] != "." and not is_folder(e))


def _parquet_files(path: str) -> list[str]:
    """All below a folder, also through links, each folder once."""
    found: list[str] = []
    seen: set[tuple[int, int]] = set()
    for folder, folders, files in os.walk(path, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if name[0] != ".")
        found += [os.path.join(folder, f) for f in files if f.endswith(".parquet")]
    return sorted(found)
