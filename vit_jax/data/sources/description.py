"""What TFDS writes beside the records of a dataset: its splits, files and features.

dataset_info.json and features.json are messages of protocol buffers as JSON: whole
numbers may be text, and what has its default value may be left out.
"""

import json
import os
import re
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from vit_jax import limits
from vit_jax.data.sources.records import Shard
from vit_jax.data.splits import Range
from vit_jax.errors import UserError, did_you_mean

INFO, FEATURES = "dataset_info.json", "features.json"
_DEFAULT_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_LARGEST = 2**53  # a whole number that every reader of JSON has exactly


class Label(NamedTuple):
    """How a label is stored: one class, a list of classes, or a vector [k]."""

    kind: Literal["class", "classes", "vector"]
    num_classes: int | None


class Section:
    """An object of a JSON file; its values are checked as they are taken."""

    def __init__(self, value: Any, where: str):
        """Args: the object, None for an empty one; and where it stands."""
        if not isinstance(value, dict | None):
            raise UserError(f"{where} is no object{_AGAIN}")
        self._value: dict[str, Any] = value or {}
        self.where = where

    def __contains__(self, key: str) -> bool:
        return self._value.get(key) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self._value)

    def __bool__(self) -> bool:
        return bool(self._value)

    def section(self, *keys: str) -> "Section":
        """The object below some keys; an empty one if it is not there."""
        found = self
        for key in keys:
            found = Section(found._value.get(key), f"{found.where}: {key}")
        return found

    def text(self, key: str, default: str | None = None) -> str:
        value = self._value.get(key)
        value = default if value is None else value
        if not isinstance(value, str):
            raise self._wrong(key, "text")
        return value

    def number(self, key: str) -> int:
        return self._number(key, self._value.get(key))

    def numbers(self, key: str) -> list[int]:
        """A list of whole numbers; none if it is not there."""
        return [self._number(key, number) for number in self._list(key)]

    def sections(self, key: str) -> list["Section"]:
        """A list of objects; none if it is not there."""
        return [Section(x, f"{self.where}: an entry of {key}") for x in self._list(key)]

    def _list(self, key: str) -> list[Any]:
        value = self._value.get(key)
        if not isinstance(value, list | None):
            raise self._wrong(key, "a list")
        return value or []

    def _number(self, key: str, value: Any) -> int:
        if isinstance(value, str) and re.fullmatch(r"-?\d{1,20}", value):
            value = int(value)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is not int or abs(value) > _LARGEST:
            raise self._wrong(key, "a whole number")
        return value

    def _wrong(self, key: str, expected: str) -> UserError:
        value = self._value.get(key)
        found = "missing" if value is None else f"{value!r:.60}"
        return UserError(f"{self.where}: {key} is {found}; expected {expected}{_AGAIN}")


_AGAIN = "; copy or prepare the dataset again."


class Split(NamedTuple):
    """The files of a split: how many records each has, and how they are called."""

    lengths: list[int]
    template: str


class Info(NamedTuple):
    """What dataset_info.json says."""

    name: str
    config: str | None
    version: str
    file_format: str
    splits: dict[str, Split]

    @property
    def sizes(self) -> dict[str, int]:
        """The number of records of each split."""
        return {name: sum(split.lengths) for name, split in self.splits.items()}


def read_info(folder: str) -> Info:
    """What the dataset_info.json in a folder says.

    Raises:
        UserError: if it is not there or damaged.
    """
    about = _read(os.path.join(folder, INFO))
    splits: dict[str, Split] = {}
    for split in about.sections("splits"):
        name, lengths = split.text("name"), split.numbers("shardLengths")
        if name in splits or any(n < 0 for n in lengths):
            raise UserError(f"{about.where} has an impossible split {name!r}{_AGAIN}")
        template = split.text("filepathTemplate", "") or _DEFAULT_TEMPLATE
        splits[name] = Split(lengths, template)
    return Info(
        name=about.text("name"),
        config=about.text("configName") if "configName" in about else None,
        version=about.text("version"),
        file_format=about.text("fileFormat", "tfrecord"),
        splits=splits,
    )


def shards(folder: str, info: Info, part: Range) -> Iterator[Shard]:
    """The files that hold records start .. stop-1 of a split.

    Raises:
        UserError: if one is missing.
    """
    sizes, template = info.splits[part.name]
    first = 0
    for i, size in enumerate(sizes):
        start, stop = max(part.start - first, 0), min(part.stop - first, size)
        first += size
        if start >= stop:
            continue
        values = {
            "DATASET": info.name,
            "SPLIT": part.name,
            "FILEFORMAT": info.file_format,
            "SHARD_INDEX": f"{i:05d}",
            "NUM_SHARDS": f"{len(sizes):05d}",
            "SHARD_X_OF_Y": f"{i:05d}-of-{len(sizes):05d}",
        }
        path = os.path.join(folder, _filled(template, values))
        if not os.path.isfile(path):
            raise UserError(
                f"{path} is missing, one of {len(sizes)} files of split "
                f'"{part.name}"; prepare or copy the dataset again.'
            )
        yield Shard(path, size, start, stop)


def _filled(template: str, values: dict[str, str]) -> str:
    """The name of a file; what is no field of a template stays as it is.

    >>> _filled("{DATASET}-{SPLIT}.{x}", {"DATASET": "mnist", "SPLIT": "test"})
    'mnist-test.{x}'
    """

    def value(match: re.Match[str]) -> str:
        return values[match[1]] if match[1] in values else match[0]

    return re.sub(r"\{(\w+)\}", value, template)


def read_features(folder: str) -> Section | None:
    """The features of a record by name; None in an old form that says nothing here."""
    path = os.path.join(folder, FEATURES)
    if not os.path.isfile(path):
        return None
    features = _read(path)
    if "featuresDict" not in features:
        return None
    return features.section("featuresDict", "features")


def find_feature(
    features: Section, key: str, option: str, folder: str
) -> tuple[Section, bool]:
    """The feature that a key names, and whether a record holds a sequence of it.

    Raises:
        UserError: if there is none.
    """
    found = Section(None, "")
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
        found, of_many = features.section(part), of_many or from_sequence
        inner = found.section("sequence", "feature")
        from_sequence = "featuresDict" in inner
        inner = inner if from_sequence else found
        features = inner.section("featuresDict", "features")
    return found, of_many


def _kind(feature: Section) -> str:
    return feature.text("pythonClassName", "unknown").rpartition(".")[2]


def check_image(feature: Section, key: str, *, of_many: bool) -> None:
    """Refuses a feature that is no image."""
    dtype = feature.section("image").text("dtype", "uint8")
    if "image" not in feature or dtype not in ("uint8", "uint16") or of_many:
        what = f"{_kind(feature)}, {dtype}" + (", in a sequence" if of_many else "")
        raise UserError(
            f'config.data.image_key="{key}" is of type {what}; expected an Image of '
            "uint8 or uint16."
        )


def label_of(feature: Section, key: str, *, of_many: bool) -> Label:
    """How a feature that is a label is stored.

    Raises:
        UserError: if it is none.
    """
    inner = feature.section("sequence", "feature", "classLabel")
    if "classLabel" in feature:
        count = _num_classes(feature.section("classLabel"))
        if not of_many:
            return Label("class", count)
        if count is not None:
            return Label("classes", count)
    elif "numClasses" in inner and not of_many:
        return Label("classes", _num_classes(inner))
    tensor = feature.section("tensor")
    shape = tensor.section("shape").numbers("dimensions")
    if tensor and tensor.text("encoding", "none") == "none" and not of_many:
        dtype = tensor.text("dtype")
        if not shape and "int" in dtype:
            return Label("class", None)
        if len(shape) == 1 and 0 < shape[0] <= limits.CLASSES and dtype != "string":
            return Label("vector", shape[0])
    within = ", in a sequence" if of_many else ""
    raise UserError(
        f'config.data.label_key="{key}" is of type {_kind(feature)}{within}; expected '
        "a ClassLabel, an integer, a sequence of ClassLabels, or a vector of numbers."
    )


def _num_classes(label: Section) -> int | None:
    """The number of classes of a ClassLabel; None if it does not say."""
    if "numClasses" not in label:
        return None
    count = label.number("numClasses")
    if not 0 < count <= limits.CLASSES:
        raise UserError(
            f"{label.where}: numClasses is {count:,}; expected 1 to "
            f"{limits.CLASSES:,}{_AGAIN}"
        )
    return count


def read_label_names(folder: str, key: str) -> tuple[str, ...] | None:
    """The names of the classes; None if none are stored.

    Raises:
        UserError: if the file is damaged.
    """
    path = os.path.join(folder, f"{key.replace('/', '-')}.labels.txt")
    if not os.path.isfile(path):
        return None
    try:
        with open(path, encoding="utf-8") as file:
            return tuple(file.read().removesuffix("\n").split("\n"))
    except (OSError, ValueError) as e:
        raise UserError(f"{path} cannot be read: {e}{_AGAIN}") from e


def check_names(names: tuple[str, ...] | None, label: Label, folder: str) -> None:
    """Refuses names that are more or fewer than the classes."""
    if names is not None and label.num_classes not in (None, len(names)):
        raise UserError(
            f"{folder} has {len(names):,} names of classes and {label.num_classes:,} "
            f"classes in {FEATURES}{_AGAIN}"
        )


def _read(path: str) -> Section:
    try:
        with open(path, encoding="utf-8") as file:
            return Section(json.load(file), path)
    except (OSError, ValueError, RecursionError) as e:
        if isinstance(e, UserError):
            raise
        raise UserError(f"{path} cannot be read: {e}{_AGAIN}") from e
