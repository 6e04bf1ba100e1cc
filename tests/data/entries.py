"""A few records of each dataset in the catalog, as TFDS itself writes them.

The examples are those of `tfds.testing.mock_data`, the features those of the real
builder, and the writer is TFDS's. Lists of objects are made here: the mock's have an
attribute too few or too many, and no box that TFDS would write.
"""

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from vit_jax.data import catalog

# TFDS has no builder of these.
WITHOUT_BUILDER = ("imagenet21k", "imagenet21k_winter21")


def clevr_objects(i: int, rng: np.random.Generator) -> dict[str, Any]:
    """Between 3 and 10 objects, as in CLEVR."""
    count = 3 + 3 * i % 8
    return {
        "objects": {
            "color": rng.integers(8, size=count),
            "material": rng.integers(2, size=count),
            "shape": rng.integers(3, size=count),
            "size": rng.integers(2, size=count),
            "rotation": rng.random(count, np.float32),
            "3d_coords": rng.random((count, 3), np.float32),
            "pixel_coords": 7 + 6 * rng.random((count, 3), np.float32),
        },
        "question_answer": {"question": ["?"], "answer": ["!"]},
    }


def kitti_objects(i: int, rng: np.random.Generator) -> dict[str, Any]:
    """Objects on the road; in one picture no vehicle, in another nothing at all."""
    count = (4, 0)[i] if i < 2 else 6 * i
    kinds = rng.integers(3, 8, count) if i == 0 else rng.integers(8, size=count)
    corners = np.sort(rng.random((count, 2, 2), np.float32), axis=1)
    return {
        "objects": {
            "type": kinds,
            "truncated": rng.random(count, np.float32),
            "occluded": rng.integers(4, size=count),
            "alpha": rng.random(count, np.float32),
            "bbox": corners.reshape(count, 4),
            "dimensions": rng.random((count, 3), np.float32),
            "location": 60 * rng.random((count, 3), np.float32),
            "rotation_y": rng.random(count, np.float32),
        }
    }


def pet_head(i: int, rng: np.random.Generator) -> dict[str, Any]:
    del i, rng
    return {"head_bbox": np.array([0.1, 0.2, 0.5, 0.6], np.float32)}


def binary_image(i: int, rng: np.random.Generator) -> dict[str, Any]:
    del i
    return {"image": rng.integers(0, 2, (64, 64, 1), np.uint8)}


REPAIRS = {
    "clevr": clevr_objects,
    "dsprites": binary_image,
    "kitti": kitti_objects,
    "oxford_iiit_pet": pet_head,
}


def features_and_examples(name: str, count: int) -> tuple[Any, str, list[Any]]:
    """The features of a dataset, its version and `count` examples of it."""
    if name in WITHOUT_BUILDER:
        classes = catalog.ENTRIES[name].num_classes
        label = tfds.features.Sequence(tfds.features.ClassLabel(num_classes=classes))
        image = tfds.features.Image(encoding_format="jpeg")
        features = tfds.features.FeaturesDict({"image": image, "label": label})
        rng = np.random.default_rng(0)
        examples = [
            {
                "image": rng.integers(0, 256, (20, 30 + i, 3), np.uint8),
                "label": rng.choice(classes, i + 1, replace=False).tolist(),
            }
            for i in range(count)
        ]
        return features, "1.0.0", examples
    with tfds.testing.mock_data(num_examples=count):
        builder: Any = tfds.builder(catalog.stored_name(name))
        dataset = builder.as_dataset(split="train")
        examples = list(tfds.as_numpy(dataset))
    rng = np.random.default_rng(1)
    for i, example in enumerate(examples):
        example |= REPAIRS[builder.name](i, rng) if builder.name in REPAIRS else {}
    return builder.info.features, str(builder.version), examples


def write(name: str, root: Path, *, split: str, count: int) -> Path:
    """Writes `count` records of a split; returns the folder that TFDS reads."""
    features, version, examples = features_and_examples(name, count)
    dataset, _, config = catalog.stored_name(name).partition("/")
    keys: dict[str, Any] = {"config": config} if config else {}
    tfds.dataset_builders.store_as_tfds_dataset(
        name=dataset,
        version=version,
        features=features,
        split_datasets={split: list(enumerate(examples))},
        data_dir=root,
        file_format="array_record",
        **keys,
    )
    return root / dataset / config / version


def read_by_tfds(folder: Path, split: str) -> list[Any]:
    """The records as TFDS reads them."""
    builder: Any = tfds.builder_from_directory(str(folder))
    return list(builder.as_data_source(split))
