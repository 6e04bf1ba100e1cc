"""Each record once an epoch, none in two splits: by the identity of TFDS's records."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from vit_jax import data

COUNT = 1_510
BATCH = 64


def picture(number: int) -> np.ndarray:
    """A picture that says which record it is."""
    image = np.zeros((4, 4, 3), np.uint8)
    image[:] = number // 256, number % 256, 7
    return image


def number_of(images: np.ndarray) -> np.ndarray:
    return images[..., 0, 0, 0].astype(int) * 256 + images[..., 0, 0, 1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """eurosat/rgb/2.0.0 with more records than VTAB's splits need."""
    root = tmp_path_factory.mktemp("once")
    tfds.dataset_builders.store_as_tfds_dataset(
        name="eurosat",
        config="rgb",
        version="2.0.0",
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(4, 4, 3)),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
        ),
        split_datasets={
            "train": [(i, {"image": picture(i), "label": i % 10}) for i in range(COUNT)]
        },
        data_dir=root,
        file_format="array_record",
    )
    return root


def dataset(folder: Path, split: str, name: str = "eurosat/rgb") -> data.Dataset:
    return data.make(
        name=name,
        data_dir=str(folder),
        split=split,
        image_size=4,
        train={"crop": "none"},
        eval={},
    )


def seen_in_training(
    folder: Path, split: str, *, epochs: int = 1, seed: int = 0
) -> np.ndarray:
    """The records that epochs of training show, in order."""
    source = dataset(folder, split)
    total = epochs * source.num_examples
    batches = source.train_batches(
        batch_size=BATCH, seed=seed, start_step=0, total_steps=-(-total // BATCH)
    )
    return np.concatenate([number_of(b["image"]) for b in batches])[:total]


def by_tfds(folder: Path, split: str) -> np.ndarray:
    builder: Any = tfds.builder_from_directory(str(folder / "eurosat/rgb/2.0.0"))
    return np.array([number_of(r["image"]) for r in builder.as_data_source(split)])


def test_no_record_is_trained_on_and_held_out(folder):
    trained = seen_in_training(folder, "train[:99%]")
    held_out = seen_in_training(folder, "train[99%:]")
    assert len(trained) == round(0.99 * COUNT)
    assert set(trained).isdisjoint(held_out)
    assert np.array_equal(np.sort([*trained, *held_out]), np.arange(COUNT))
    assert set(held_out) == set(by_tfds(folder, "train[99%:]"))


def test_every_epoch_shows_every_record_once(folder):
    """Batches straddle the epochs: 1,510 is no multiple of 64."""
    epochs = seen_in_training(folder, "train", epochs=3).reshape(3, COUNT)
    for epoch in epochs:
        assert np.array_equal(np.sort(epoch), np.arange(COUNT))


def test_orders_of_seeds_and_epochs_are_uncorrelated(folder):
    """Of the pictures that training is shown: |r| < 4.5 / sqrt(N)."""
    orders = [
        order
        for seed in range(3)
        for order in seen_in_training(folder, "train", epochs=2, seed=seed).reshape(
            2, COUNT
        )
    ]
    orders.append(by_tfds(folder, "train"))  # nor with the order on disk
    correlations = np.corrcoef(orders) - np.eye(len(orders))
    assert np.abs(correlations).max() < 4.5 / np.sqrt(COUNT)


@pytest.mark.parametrize(
    ("split", "slices", "count"),
    [
        ("train800", "train[:800]", 800),
        ("val200", "train[906:1106]", 200),  # from 60% of 1,510
        ("train800val200", "train[:800]+train[906:1106]", 1000),
        ("test", "train[1208:]", 302),  # from 80%
    ],
)
def test_vtabs_splits_are_tfdss_slices(folder, split, slices, count):
    source = dataset(folder, split, "vtab/eurosat").source
    got = [number_of(source.read(i)[0]).item() for i in range(len(source))]
    assert len(got) == count
    assert got == by_tfds(folder, slices).tolist()
