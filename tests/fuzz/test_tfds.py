"""Damaged descriptions of a dataset that TFDS itself has written."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fuzz import mutation
from vit_jax.data import open_source

pytestmark = pytest.mark.slow

N = 9
LABELS = ("label", "labels", "soft", "number", "objects/label")
NAMES = ("cat", "dog", "cow")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a dataset of two splits, in files of array_record and tfrecord."""
    import tensorflow_datasets as tfds

    rng, features = np.random.default_rng(0), tfds.features
    described = features.FeaturesDict(
        {
            "image": features.Image(shape=(4, 5, 3)),
            "label": features.ClassLabel(names=NAMES),
            "labels": features.Sequence(features.ClassLabel(num_classes=3)),
            "soft": features.Tensor(shape=(3,), dtype=np.float32),
            "number": features.Scalar(dtype=np.int64),
            "objects": features.Sequence({"label": features.ClassLabel(num_classes=3)}),
        }
    )
    examples = [
        (
            i,
            {
                "image": rng.integers(0, 256, (4, 5, 3), np.uint8),
                "label": i % 3,
                "labels": [i % 3],
                "soft": np.eye(3, dtype=np.float32)[i % 3],
                "number": i % 3,
                "objects": [{"label": i % 3}],
            },
        )
        for i in range(N)
    ]
    root = tmp_path_factory.mktemp("tfds")
    for file_format in ("array_record", "tfrecord"):
        tfds.dataset_builders.store_as_tfds_dataset(
            name="things",
            version="1.0.0",
            features=described,
            split_datasets={"train": examples, "test": examples[:2]},
            data_dir=root / file_format,
            file_format=file_format,
        )
    return root


def label_of(label: Any) -> int:
    """The class of a label of any of these kinds."""
    return int(np.argmax(label)) if np.ndim(label) else int(label)


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_descriptions(
    file_format: str,
    file: str,
    prepared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is read is all there is, with its own labels, or it is refused."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "data"
    shutil.copytree(prepared / file_format, root)
    path = root / "things/1.0.0" / file
    whole, turn = path.read_text(), 0

    def use(data: bytes) -> None:
        nonlocal turn
        path.write_bytes(data)
        turn += 1
        source = open_source(
            name="things",
            data_dir=str(root),
            split="train",
            image_key="image",
            label_key=LABELS[turn % len(LABELS)],
        )
        found = [source.read(i) for i in range(len(source))]
        assert sorted(label_of(label) for _, label in found) == sorted([0, 1, 2] * 3)
        assert all(image.shape == (4, 5, 3) for image, _ in found)

    assert mutation.check(use, iter([whole.encode()] * 5), tmp_path / "input") == (5, 0)
    texts = (text.encode() for text in mutation.changed(whole, 700))
    used, refused = mutation.check(use, texts, tmp_path / "input")
    assert mutation.SECONDS or (used and refused)  # of a few, all may be alike
    damaged = mutation.mutations([whole.encode()], 300)
    mutation.check(use, damaged, tmp_path / "input")


def test_names_of_classes(prepared: Path, tmp_path: Path) -> None:
    """As many as there are classes, or none are known, or it is refused."""
    shutil.copytree(prepared / "array_record", tmp_path / "data")
    path = tmp_path / "data/things/1.0.0/label.labels.txt"
    whole = path.read_bytes()
    assert json.dumps(whole.decode().split()) == json.dumps(NAMES)

    def use(data: bytes) -> None:
        path.write_bytes(data)
        source = open_source(
            name="things",
            data_dir=str(tmp_path / "data"),
            split="train",
            image_key="image",
            label_key="label",
        )
        names = source.label_names
        assert names is None or len(names) == source.num_classes == 3

    assert mutation.check(use, iter([whole]), tmp_path / "input") == (1, 0)
    used, refused = mutation.check(
        use, mutation.mutations([whole], 500), tmp_path / "input"
    )
    assert mutation.SECONDS or (used and refused)  # of a few, all may be alike
