"""Descriptions of a dataset that are damaged: one message, which names the file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vit_jax.data import open_source
from vit_jax.errors import UserError

FOLDER = "animals/1.2.0"


def opened(root: Path, label_key: str = "label") -> Any:
    return open_source(
        name="animals",
        data_dir=str(root),
        split="train",
        image_key="small",
        label_key=label_key,
    )


def feature(name: str, value: Any) -> Callable[[Any], None]:
    def change(tree: Any) -> None:
        tree["featuresDict"]["features"][name] = value

    return change


def changed_key(*keys: Any, to: Any) -> Callable[[Any], None]:
    def change(tree: Any) -> None:
        for key in keys[:-1]:
            tree = tree[key]
        tree[keys[-1]] = to

    return change


INFO = {
    "no list of splits": (changed_key("splits", to=3), "splits is 3; expected a list"),
    "a split that is none": (changed_key("splits", 0, to="x"), "splits is no object"),
    "a split without a name": (changed_key("splits", 0, to={}), "name is missing; exp"),
    "two of a name": (changed_key("splits", 1, "name", to="train"), "impossible split"),
    "fewer than none": (
        changed_key("splits", 0, "shardLengths", 0, to="-1"),
        "impossible split 'train'",
    ),
    "no number": (
        changed_key("splits", 0, "shardLengths", 0, to="{x}"),
        "shardLengths is .* expected a whole number",
    ),
    "a template that is none": (
        changed_key("splits", 0, "filepathTemplate", to=1.5),
        "filepathTemplate is 1.5; expected text",
    ),
    "a template of another kind": (
        changed_key("splits", 0, "filepathTemplate", to="{DATASET.x}{"),
        "{DATASET.x}{ is missing, one of 3 files",
    ),
    "a format of another kind": (changed_key("fileFormat", to=[1]), "fileFormat is"),
    "no version": (changed_key("version", to=None), "version is missing; expected te"),
}
FEATURES = {
    "features that are none": (
        changed_key("featuresDict", "features", to=3),
        "features.json: featuresDict: features is no object",
    ),
    "a feature that is none": (feature("small", [0]), "small is no object"),
    "an image of another kind": (
        feature("small", {"image": {"dtype": 8}}),
        "dtype is 8; expected text",
    ),
    "classes that are no number": (
        feature("label", {"classLabel": {"numClasses": "many"}}),
        "numClasses is 'many'; expected a whole number",
    ),
    "more classes than memory": (
        feature("label", {"classLabel": {"numClasses": 10**12}}),
        "numClasses is 1,000,000,000,000; expected 1 to",
    ),
    "no class": (feature("label", {"classLabel": {"numClasses": "0"}}), "numClasses"),
    "a feature without a type": (feature("label", {}), "is of type unknown; expected"),
    "other classes than names": (
        feature("label", {"classLabel": {"numClasses": "4"}}),
        "has 3 names of classes and 4 classes in features.json",
    ),
}


@pytest.mark.parametrize("case", [*INFO, *FEATURES])
def test_what_is_damaged_is_named(case: str, tfds_dir: Path, tmp_path: Path) -> None:
    name = "dataset_info.json" if case in INFO else "features.json"
    change, message = {**INFO, **FEATURES}[case]
    shutil.copytree(tfds_dir / "tfrecord", tmp_path / "copy")
    path = tmp_path / "copy" / FOLDER / name
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))
    with pytest.raises(UserError, match=message) as caught:
        opened(tmp_path / "copy")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("features.json", "[" * 100_000, "cannot be read"),
        ("features.json", "3", "features.json is no object"),
        ("label.labels.txt", b"cat\ndog\n\xff\xfe", "label.labels.txt cannot be read"),
        ("label.labels.txt", b"cat\ndog", "2 names of classes and 3 classes"),
    ],
)
def test_files_that_are_damaged(
    name: str, content: str | bytes, message: str, tfds_dir: Path, tmp_path: Path
) -> None:
    shutil.copytree(tfds_dir / "tfrecord", tmp_path / "copy")
    data = content.encode() if isinstance(content, str) else content
    (tmp_path / "copy" / FOLDER / name).write_bytes(data)
    with pytest.raises(UserError, match=message):
        opened(tmp_path / "copy")
