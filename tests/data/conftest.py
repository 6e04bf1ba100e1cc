"""Datasets for the readers to read, written by TFDS itself."""

from pathlib import Path

import numpy as np
import pytest

CLASSES = ["cat", "dog", "cow"]
SIZES = {"train": 23, "test": 7}


@pytest.fixture(autouse=True)
def cache_home(tmp_path, monkeypatch):
    """Offset indices of one test are not found by the next."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def tfds_dir(tmp_path_factory) -> Path:
    """{array_record,tfrecord}/animals/1.2.0: 3 files a split, many kinds of feature."""
    import tensorflow_datasets as tfds

    class Animals(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.2.0")

        def _info(self):
            class_label = tfds.features.ClassLabel(num_classes=3)
            features = {
                "image": tfds.features.Image(encoding_format="jpeg"),
                "small": tfds.features.Image(shape=(8, 9, 1)),
                "label": tfds.features.ClassLabel(names=CLASSES),
                "labels": tfds.features.Sequence(class_label),
                "soft": tfds.features.Tensor(shape=(3,), dtype=np.float32),
                "number": np.int64,
                "text": tfds.features.Text(),
                "nested": {"image": tfds.features.Image(), "label": class_label},
                "objects": tfds.features.Sequence(
                    {
                        "label": tfds.features.ClassLabel(names=CLASSES),
                        "deep": {"label": tfds.features.ClassLabel(names=CLASSES)},
                        "labels": tfds.features.Sequence(class_label),
                        "number": np.int64,
                        "image": tfds.features.Image(shape=(2, 2, 3)),
                    }
                ),
                "point": tfds.features.Tensor(shape=(3,), dtype=np.float32),
                "hidden": class_label,
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            del dl_manager
            return {name: self._generate_examples(name) for name in SIZES}

        def _generate_examples(self, split):
            rng = np.random.default_rng(len(split))
            for i in range(SIZES[split]):
                image = rng.integers(0, 256, (20 + i, 30, 3), np.uint8)
                yield (
                    i,
                    {
                        "image": image,
                        "small": rng.integers(0, 256, (8, 9, 1), np.uint8),
                        "label": i % 3,
                        "labels": [c for c in range(3) if (i >> c) & 1],
                        "soft": rng.random(3, np.float32),
                        "number": 1000 * i - 5000,
                        "text": f"{split} {i}",
                        "nested": {"image": image[:4], "label": 2},
                        "objects": [
                            {
                                "label": rng.integers(3),
                                "deep": {"label": rng.integers(3)},
                                "labels": [0, 1],
                                "number": 7,
                                "image": image[:2, :2],
                            }
                            for _ in range(i % 4)
                        ],
                        "point": [10 * i, -3, np.nan],
                        "hidden": -1,
                    },
                )

    root = tmp_path_factory.mktemp("tfds")
    for file_format in ("array_record", "tfrecord"):
        builder = Animals(data_dir=root / file_format, file_format=file_format)
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(num_shards=3)
        )
    return root
