"""TFDS datasets that lie prepared on disk, read without TensorFlow or TFDS.

DIR/NAME/[CONFIG/]VERSION/ holds dataset_info.json (splits, file format, records of
each file), features.json (what a record holds) and the files, each record of which is
a tf.train.Example with encoded images.
"""

import hashlib
import os
import re

import numpy as np

from vit_jax import limits
from vit_jax.data import catalog, decode, splits
from vit_jax.data.crop import Crop, cut
from vit_jax.data.sources import description
from vit_jax.data.sources.arrays import labels_are_sets
from vit_jax.data.sources.base import BUILT_IN, sample_of
from vit_jax.data.sources.description import Label
from vit_jax.data.sources.example import Feature, parse_example
from vit_jax.data.sources.layout import is_folder
from vit_jax.data.sources.records import ArrayRecords, TfRecords
from vit_jax.errors import BadExample, UserError, did_you_mean

_NAME = re.compile(r"(?P<name>\w+)(/(?P<config>[\w.-]+))?(:(?P<version>[\d.]+))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_READERS = {"array_record": ArrayRecords, "tfrecord": TfRecords}


class TfdsSource:
    """Records of a prepared TFDS dataset. See `base.Source`."""

    in_memory = False
    notes: tuple[str, ...] = ()

    def __init__(
        self,
        records: ArrayRecords | TfRecords,
        *,
        folder: str,
        image_key: str,
        label_key: str,
        label: Label,
        label_names: tuple[str, ...] | None,
        fingerprint: str,
        entry: catalog.Entry | None = None,
        max_pixels: int = limits.IMAGE_PIXELS,
    ):
        """`entry` tells of labels that are computed, and of pixels that are changed."""
        self._max_pixels = max_pixels
        self.sample = sample_of(len(records.files), records.files.__getitem__)
        self.name = folder
        self.fingerprint = fingerprint
        self.label_names = label_names
        self.num_classes = label.num_classes
        self.multi_hot = label.kind != "class"
        self._label_kind = label.kind
        self._records = records
        self._image_key, self._label_key = image_key, label_key
        self._derived = None if entry is None else entry.label
        self._pixels = None if entry is None else entry.pixels

    def __len__(self) -> int:
        return len(self._records)

    def labels(self) -> None:
        """Unknown before every record is read."""

    def describe(self, index: int) -> str:
        return self._records.describe(index)

    def read(
        self, index: int, crop: Crop | None = None
    ) -> tuple[np.ndarray, int | np.ndarray]:
        keys = (self._image_key, self._label_key)
        parts = () if self._derived is None else self._derived.keys
        try:
            example = parse_example(self._records[index], (*keys, *parts))
        except ValueError as e:
            if isinstance(e, UserError):
                raise
            raise self._error(index, f"is not a tf.train.Example ({e})") from e
        if self._derived is not None:
            features = {
                key: np.asarray(example[key]) if key in example else np.zeros(0)
                for key in parts
            }
            example[self._label_key] = np.array([self._derived.function(features)])
        missing = [k for k in keys if k not in example and not self.multi_hot]
        image = example.get(self._image_key, ())
        if missing or len(image) != 1 or isinstance(image, np.ndarray):
            what = " and ".join(missing) or self._image_key
            raise self._error(index, f'holds no single "{what}"')
        changed = self._pixels is not None  # of all of them
        pixels = decode.decode(
            image[0],
            where=self.describe(index),
            crop=None if changed else crop,
            max_pixels=self._max_pixels,
        )
        if self._pixels is not None:
            pixels = cut(self._pixels(pixels), crop)
        label = example.get(self._label_key, np.zeros(0, np.int64))
        return pixels, self._class_or_vector(index, label)

    def _class_or_vector(self, index: int, label: Feature) -> int | np.ndarray:
        k = self.num_classes
        if isinstance(label, list):
            raise self._error(index, f'has bytes as "{self._label_key}"')
        if self._label_kind == "vector":
            if len(label) != k:
                raise self._error(index, f"has {len(label)} label values, not {k}")
            if not labels_are_sets(label):
                values = ", ".join(f"{x:g}" for x in label[:5])
                what = f'has the values {values} as "{self._label_key}", and a label'
                raise self._error(index, f"{what} of several classes is within 0..1")
            return label.astype(np.float32)
        if k is not None and len(label) and not 0 <= min(label) <= max(label) < k:
            bad = next(x for x in label.tolist() if not 0 <= x < k)
            raise self._error(index, f"has label {bad}, out of range 0..{k - 1}")
        if self._label_kind == "class":
            if len(label) != 1:
                raise self._error(index, f"has {len(label)} labels instead of one")
            if abs(int(label[0])) >= 2**31:
                raise self._error(index, f"has label {label[0]}, past 32 bits")
            return int(label[0])
        vector = np.zeros(k or 0, np.float32)
        vector[label.astype(np.int64)] = 1
        return vector

    def _error(self, index: int, what: str) -> BadExample:
        return BadExample(
            f"{self.describe(index)} {what}; choose another split or "
            "config.data.label_key, or prepare the dataset again."
        )


def open_tfds(
    name: str,
    data_dir: str | None,
    *,
    split: str,
    image_key: str | None,
    label_key: str | None,
    max_pixels: int = limits.IMAGE_PIXELS,
) -> TfdsSource:
    """Opens a dataset that TFDS prepared under data_dir.

    Args:
        name: NAME, NAME/CONFIG, NAME:VERSION or NAME/CONFIG:VERSION. Without a version
            the newest one on disk.
        data_dir: default $TFDS_DATA_DIR, else ~/tensorflow_datasets. Or the dataset's
            own folder, the one with dataset_info.json.
        split: see `splits.resolve`.
        image_key: a feature that is an image; nested ones as "a/b". Default: as in the
            catalog, else "image".
        label_key: a ClassLabel or integer; a sequence of ClassLabels, which becomes
            multi-hot, also those in a sequence of features, such as "objects/label";
            or a vector of numbers. Default: as in the catalog, else "label".
        max_pixels: of an image, see `decode`.

    Raises:
        UserError: whatever is missing, or is in a format that is not read.
    """
    root = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    entry = catalog.find(name)
    image_key, label_key = _keys(name, entry, image_key, label_key)
    folder = _find(catalog.stored_name(name), os.path.expanduser(root))
    info = description.read_info(folder)
    if info.file_format not in _READERS:
        raise UserError(
            f"{folder} is stored as {info.file_format}; supported are array_record and "
            "tfrecord: prepare it again with file_format set to one of them."
        )
    sizes = info.sizes
    named = None if entry is None else entry.named_splits(sizes)
    ranges = splits.resolve(split, sizes, where=folder, named=named)
    label, label_names = _labels(folder, image_key, label_key, entry)
    lengths = {name: split.lengths for name, split in info.splits.items()}
    identity = (info.name, info.config, info.version, lengths)
    described = repr((identity, ranges, image_key, label_key))
    shards = [s for r in ranges for s in description.shards(folder, info, r)]
    return TfdsSource(
        _READERS[info.file_format](shards),
        folder=folder,
        image_key=image_key,
        label_key=label_key,
        label=label,
        label_names=label_names,
        fingerprint=hashlib.sha256(described.encode()).hexdigest()[:16],
        entry=entry,
        max_pixels=max_pixels,
    )


def _labels(
    folder: str, image_key: str, label_key: str, entry: catalog.Entry | None
) -> tuple[Label, tuple[str, ...] | None]:
    """How labels are stored and what the classes are called; checks the image too."""
    features = description.read_features(folder)
    names = description.read_label_names(folder, label_key)
    if features is not None:
        image, of_many = description.find_feature(
            features, image_key, "image_key", folder
        )
        description.check_image(image, image_key, of_many=of_many)
    if entry is not None and entry.label is not None:
        label = Label("class", entry.num_classes)
    elif features is None:  # prepared before TFDS 4.3
        label = Label("class", len(names) if names else None)
    else:
        feature, of_many = description.find_feature(
            features, label_key, "label_key", folder
        )
        label = description.label_of(feature, label_key, of_many=of_many)
    if entry is not None and len(entry.label_names or ()) == label.num_classes:
        names = entry.label_names
    description.check_names(names, label, folder)
    return label, names


def _keys(
    name: str, entry: catalog.Entry | None, image_key: str | None, label_key: str | None
) -> tuple[str, str]:
    """The features that are the image and the label."""
    if entry is None:
        return image_key or "image", label_key or "label"
    if entry.label is None:
        return image_key or entry.image_key, label_key or entry.label_key
    if label_key is not None:
        raise UserError(
            f'config.data.label_key="{label_key}" has no effect with '
            f'config.data.name="{name}", whose label is computed; set it to None.'
        )
    return image_key or entry.image_key, name.partition(":")[0]


def _how_to_prepare(name: str, root: str) -> str:
    """The command that makes a dataset that is not there."""
    prepare = "python -m vit_jax.data.prepare"
    entry = catalog.find(name)
    if entry is not None and entry.files is not None:
        return (
            f"{prepare} {entry.files} --data_dir={root} --name={entry.stored_as}, with "
            f"the files of its owners ({entry.access})"
        )
    return (
        f"of your own files by {prepare}, else by tensorflow_datasets.builder"
        f'("{name}", data_dir="{root}").download_and_prepare()'
    )


def _find(name: str, root: str) -> str:
    """The folder with dataset_info.json of a dataset."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise UserError(
            f'config.data.name="{name}" is not understood; expected '
            f"{', '.join(BUILT_IN)}, or a TFDS dataset as NAME, NAME/CONFIG or "
            "NAME:VERSION."
        )
    if os.path.isfile(os.path.join(root, description.INFO)):
        found = description.read_info(root).name
        if found != match["name"]:
            raise UserError(
                f'config.data.name="{name}", but config.data.data_dir="{root}" holds '
                f'"{found}"; set config.data.name="{found}".'
            )
        return root
    datasets = [f for f in _folders(root) if f != "downloads"]
    if match["name"] not in datasets:
        there = f"it has: {', '.join(datasets)}" if datasets else "it has none"
        raise UserError(
            f'config.data.name="{name}": no such dataset in {root} ({there}); '
            f"{did_you_mean(match['name'], (*BUILT_IN, *datasets))}. It must be "
            f"prepared before: {_how_to_prepare(name, root)}."
        )
    folder = os.path.join(root, match["name"])
    configs = [f for f in _folders(folder) if not _VERSION.fullmatch(f)]
    config = match["config"]
    if config is None and len(configs) > 1 and not _versions(folder):
        raise UserError(
            f'config.data.name="{name}" has several configs in {folder}: '
            f"{', '.join(configs)}; choose one, as {match['name']}/{configs[0]}."
        )
    if config is None and configs and not _versions(folder):
        config = configs[0]
    if config is not None:
        if config not in configs:
            raise UserError(
                f'config.data.name="{name}": {folder} has no config "{config}" '
                f"(it has: {', '.join(configs) or 'none'})."
            )
        folder = os.path.join(folder, config)
    versions = _versions(folder)
    version = match["version"] or (versions[-1] if versions else None)
    if version is None or version not in versions:
        raise UserError(
            f'config.data.name="{name}": {folder} has no version '
            f"{version or 'folder'} with a dataset_info.json "
            f"(it has: {', '.join(versions) or 'none'})."
        )
    return os.path.join(folder, version)


def _folders(path: str) -> list[str]:
    if not os.path.isdir(path):
        return []
    with os.scandir(path) as entries:
        return sorted(e.name for e in entries if is_folder(e) and e.name[0] != ".")


def _versions(folder: str) -> list[str]:
    """The versions in a folder, oldest first."""
    versions = [f for f in _folders(folder) if _VERSION.fullmatch(f)]
    there = (os.path.join(folder, v, description.INFO) for v in versions)
    found = [v for v, info in zip(versions, there, strict=True) if os.path.isfile(info)]
    return sorted(found, key=lambda v: [int(x) for x in v.split(".")])
