"""TFDS datasets that lie prepared on disk, read without TensorFlow or TFDS.

DIR/NAME/[CONFIG/]VERSION/ holds dataset_info.json (splits, file format, records of
each file), features.json (what a record holds) and the files, each record of which is
a tf.train.Example with encoded images.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np

from vit_jax.data import catalog, decode, splits
from vit_jax.data.crop import Crop, cut
from vit_jax.data.sources.arrays import labels_are_sets
from vit_jax.data.sources.base import BUILT_IN
from vit_jax.data.sources.example import Feature, parse_example
from vit_jax.data.sources.records import ArrayRecords, Shard, TfRecords
from vit_jax.data.splits import Range
from vit_jax.errors import BadExample, UserError, did_you_mean

_NAME = re.compile(r"(?P<name>\w+)(/(?P<config>[\w.-]+))?(:(?P<version>[\d.]+))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_DEFAULT_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_READERS = {"array_record": ArrayRecords, "tfrecord": TfRecords}


class Label(NamedTuple):
    """How a label is stored: one class, a list of classes, or a vector [k]."""

    kind: Literal["class", "classes", "vector"]
    num_classes: int | None


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
    ):
        """`entry` tells of labels that are computed, and of pixels that are changed."""
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
        where = self.describe(index)
        if self._pixels is None:
            pixels = decode.decode(image[0], where=where, crop=crop)
        else:
            pixels = cut(self._pixels(decode.decode(image[0], where=where)), crop)
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

    Raises:
        UserError: whatever is missing, or is in a format that is not read.
    """
    root = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    entry = catalog.find(name)
    image_key, label_key = _keys(name, entry, image_key, label_key)
    folder = _find(catalog.stored_name(name), os.path.expanduser(root))
    info = _read_json(os.path.join(folder, "dataset_info.json"))
    file_format = info.get("fileFormat", "tfrecord")
    if file_format not in _READERS:
        raise UserError(
            f"{folder} is stored as {file_format}; supported are array_record and "
            "tfrecord: prepare it again with file_format set to one of them."
        )
    lengths = {
        s["name"]: [int(n) for n in s.get("shardLengths", ())] for s in info["splits"]
    }
    sizes = {s: sum(shards) for s, shards in lengths.items()}
    named = None if entry is None else entry.named_splits(sizes)
    ranges = splits.resolve(split, sizes, where=folder, named=named)
    features = _features(folder)
    label_names = _label_names(folder, label_key)
    if features is not None:
        image, of_many = _feature(features, image_key, "image_key", folder)
        _check_image(image, image_key, of_many=of_many)
    if entry is not None and entry.label is not None:
        label = Label("class", entry.num_classes)
    elif features is None:  # prepared before TFDS 4.3
        label = Label("class", len(label_names) if label_names else None)
    else:
        feature, of_many = _feature(features, label_key, "label_key", folder)
        label = _label(feature, label_key, of_many=of_many)
    if entry is not None and len(entry.label_names or ()) == label.num_classes:
        label_names = entry.label_names
    identity = (info["name"], info.get("configName"), info["version"], lengths)
    described = repr((identity, ranges, image_key, label_key))
    return TfdsSource(
        _READERS[file_format]([s for r in ranges for s in _shards(folder, info, r)]),
        folder=folder,
        image_key=image_key,
        label_key=label_key,
        label=label,
        label_names=label_names,
        fingerprint=hashlib.sha256(described.encode()).hexdigest()[:16],
        entry=entry,
    )


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
    if os.path.isfile(os.path.join(root, "dataset_info.json")):
        found = _read_json(os.path.join(root, "dataset_info.json"))["name"]
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
        return sorted(e.name for e in entries if e.is_dir() and e.name[0] != ".")


def _versions(folder: str) -> list[str]:
    """The versions in a folder, oldest first."""
    versions = [f for f in _folders(folder) if _VERSION.fullmatch(f)]
    there = (os.path.join(folder, v, "dataset_info.json") for v in versions)
    found = [v for v, info in zip(versions, there, strict=True) if os.path.isfile(info)]
    return sorted(found, key=lambda v: [int(x) for x in v.split(".")])


def _read_json(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError) as e:
        raise UserError(f"{path} cannot be read: {e}; prepare it again.") from e


def _features(folder: str) -> dict[str, Any] | None:
    """The features of a record by name; None in an old form that says nothing here."""
    path = os.path.join(folder, "features.json")
    if not os.path.isfile(path):
        return None
    features = _read_json(path)
    return features["featuresDict"]["features"] if "featuresDict" in features else None


def _feature(
    features: dict[str, Any], key: str, option: str, folder: str
) -> tuple[dict[str, Any], bool]:
    """The feature that a key names, and whether a record holds a sequence of it."""
    found: dict[str, Any] = {}
    of_many = from_sequence = False
    for part in key.split("/"):
        if not features:
            raise UserError(
                f'config.data.{option}="{key}": in {folder} there is nothing below '
                f'"{key.removesuffix(f"/{part}")}", which is of type {_kind(found)}.'
            )
        if part not in features:
            raise UserError(
                f'config.data.{option}="{key}": {folder} has no such feature; '
                f"{did_you_mean(part, features)} (it has: {', '.join(features)})."
            )
        found, of_many = features[part], of_many or from_sequence
        inner = found.get("sequence", {}).get("feature", {})
        from_sequence = "featuresDict" in inner
        inner = inner if from_sequence else found
        features = inner.get("featuresDict", {}).get("features", {})
    return found, of_many


def _kind(feature: dict[str, Any]) -> str:
    return feature["pythonClassName"].rpartition(".")[2]


def _check_image(feature: dict[str, Any], key: str, *, of_many: bool) -> None:
    dtype = feature.get("image", {}).get("dtype", "uint8")
    if "image" not in feature or dtype not in ("uint8", "uint16") or of_many:
        what = f"{_kind(feature)}, {dtype}" + (", in a sequence" if of_many else "")
        raise UserError(
            f'config.data.image_key="{key}" is of type {what}; expected an Image of '
            "uint8 or uint16."
        )


def _label(feature: dict[str, Any], key: str, *, of_many: bool) -> Label:
    inner = feature.get("sequence", {}).get("feature", {})
    if "classLabel" in feature:
        count = _int_or_none(feature["classLabel"].get("numClasses"))
        if not of_many:
            return Label("class", count)
        if count is not None:
            return Label("classes", count)
    elif "numClasses" in inner.get("classLabel", {}) and not of_many:
        return Label("classes", int(inner["classLabel"]["numClasses"]))
    tensor = feature.get("tensor", {})
    shape = [int(d) for d in tensor.get("shape", {}).get("dimensions", ())]
    if tensor.get("encoding", "none") == "none" and not of_many:
        if not shape and "int" in tensor.get("dtype", ""):
            return Label("class", None)
        if len(shape) == 1 and shape[0] > 0 and tensor["dtype"] != "string":
            return Label("vector", shape[0])
    within = ", in a sequence" if of_many else ""
    raise UserError(
        f'config.data.label_key="{key}" is of type {_kind(feature)}{within}; expected '
        "a ClassLabel, an integer, a sequence of ClassLabels, or a vector of numbers."
    )


def _int_or_none(text: str | None) -> int | None:
    return None if text is None else int(text)


def _label_names(folder: str, key: str) -> tuple[str, ...] | None:
    path = os.path.join(folder, f"{key.replace('/', '-')}.labels.txt")
    if not os.path.isfile(path):
        return None
    with open(path, encoding="utf-8") as file:
        return tuple(file.read().removesuffix("\n").split("\n"))


def _shards(folder: str, info: dict[str, Any], part: Range) -> Iterator[Shard]:
    """The files that hold records start .. stop-1 of a split."""
    (split,) = (s for s in info["splits"] if s["name"] == part.name)
    template = split.get("filepathTemplate") or _DEFAULT_TEMPLATE
    sizes = [int(n) for n in split["shardLengths"]]
    first = 0
    for i, size in enumerate(sizes):
        start, stop = max(part.start - first, 0), min(part.stop - first, size)
        first += size
        if start >= stop:
            continue
        values = {
            "DATASET": info["name"],
            "SPLIT": part.name,
            "FILEFORMAT": info.get("fileFormat", "tfrecord"),
            "SHARD_INDEX": f"{i:05d}",
            "NUM_SHARDS": f"{len(sizes):05d}",
            "SHARD_X_OF_Y": f"{i:05d}-of-{len(sizes):05d}",
        }
        path = os.path.join(folder, template.format_map(values))
        if not os.path.isfile(path):
            raise UserError(
                f"{path} is missing, one of {len(sizes)} files of split "
                f'"{part.name}"; prepare or copy the dataset again.'
            )
        yield Shard(path, size, start, stop)
