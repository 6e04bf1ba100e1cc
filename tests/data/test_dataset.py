"""What a dataset says of itself, and what it checks before a run."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from tests.data.small import mini
from vit_jax import data
from vit_jax.errors import UserError


def test_properties():
    dataset = mini(split="train[:99%]", image_size=(28, 30), mean=(0.1, 0.2, 0.3))
    assert dataset.image_shape == (28, 30, 3)
    assert dataset.num_examples == 7920
    assert dataset.num_classes == 10
    assert dataset.label_classes is None
    assert dataset.label_names is not None
    assert dataset.label_names[0] == "T-shirt/top"
    assert (dataset.mean, dataset.std) == ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    assert dataset.fingerprint == mini(split="train[:7920]").fingerprint
    assert dataset.fingerprint != mini().fingerprint


@pytest.mark.parametrize("train", [True, False])
def test_check_labels(tmp_path, train, tfds_dir):
    labels = np.arange(1000) % 5
    labels[777] = 9
    path = tmp_path / "x.npz"
    np.savez(path, x_train=np.zeros((1000, 8, 8), np.uint8), y_train=labels)

    def check(**keys: Any):
        keys = {"name": "npz", "data_dir": str(path), "image_size": 8} | keys
        dataset = data.make(**keys, train={}, eval={})
        dataset.check(num_classes=5, train=train, batch_size=4)

    check(split="train[:777]")
    with pytest.raises(
        UserError,
        match=r"split train, record 777: label 9 is out of range 0\.\.4 \(1 of",
    ):
        check(split="train[700:]")
    labels[777] = -1
    np.savez(path, x_train=np.zeros((1000, 8, 8), np.uint8), y_train=labels)
    with pytest.raises(UserError, match=r"record 777: label -1 is out of range"):
        check()
    animals = {"name": "animals", "data_dir": str(tfds_dir / "tfrecord")}
    with pytest.raises(UserError, match=r"record 0: label 1000 is out of range 0\.\.4"):
        check(**animals, label_key="number")
    with pytest.raises(UserError, match=r"record 0 has label -1, out of range 0\.\.2"):
        check(**animals, label_key="hidden")


def test_check_number_of_classes():
    with pytest.raises(UserError, match=r"has 10 classes, .* only 9; .*num_classes=10"):
        mini().check(num_classes=9, train=True, batch_size=4)
    mini().check(num_classes=10, train=True, batch_size=4)
    mini().check(num_classes=1000, train=True, batch_size=100_000)


def test_check_finds_images_of_another_size():
    dataset = mini(image_size=32, train={"crop": "none"})
    with pytest.raises(
        UserError, match=r"split train, record \d+: an image of 28 x 28, but .* 32 x 32"
    ):
        dataset.check(num_classes=10, train=True, batch_size=4)
    dataset.check(num_classes=10, train=False, batch_size=4)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"image_size": 0}, "image_size=0; expected pixels"),
        ({"image_size": (8, -1)}, r"image_size=\(8, -1\)"),
        ({"num_workers": -1}, "num_workers=-1; expected 0 to 1,024"),
        ({"num_threads": 0}, "num_threads=0; expected 1 to 1,024"),
        ({"train": {"crop": "crop"}}, "expected one of"),
        (
            {"mean": (123.675, 116.28, 103.53)},
            r"mean=\(123.* pixels in 0\.\.1.*config\.data\.mean=0\.485,0\.456,0\.406",
        ),
        (
            {"std": (58.395, 57.12, 57.375)},
            r"0\.001 to 1; .*config\.data\.std=0\.229,0\.224,0\.225",
        ),
        ({"std": (-1.0, 1.0, 1.0)}, r"each number should be 0\.001 to 1\.$"),
        ({"std": (0.5, 0.0, 0.5)}, r"should be 0\.001 to 1\.$"),
        ({"std": (1e-300, 1.0, 1.0)}, r"should be 0\.001 to 1\.$"),
        ({"max_pixels": 0}, r"max_pixels=0; expected 1 to 1,073,741,824"),
        ({"max_pixels": 2**31}, r"max_pixels=2147483648; expected 1 to"),
        ({"std": (0.5, np.inf, 0.5)}, r"should be 0\.001 to 1\.$"),
        ({"std": (0.5, np.nan, 0.5)}, r"should be 0\.001 to 1\.$"),
        ({"mean": (-0.1, 0.5, 0.5)}, r"should be in 0\.\.1\.$"),
        ({"mean": (np.nan, 0.5, 0.5)}, r"should be in 0\.\.1"),
    ],
    ids=str,
)
def test_bad_keys(keys, message):
    with pytest.raises(UserError, match=message):
        mini(**keys)


def test_importing_is_cheap():
    """The command line checks its keys against `make` before anything slow."""
    slow = ("grain", "tensorflow", "tensorflow_datasets", "jax")
    code = f"import sys, vit_jax.data; print([m for m in {slow} if m in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stdout == "[]\n"


def test_other_class_numbers(tfds_dir):
    """Of one class an image, and of several."""
    keys: dict[str, Any] = {"name": "animals", "image_size": 8, "train": {}, "eval": {}}
    keys["data_dir"] = str(tfds_dir / "array_record")
    places, names = (4, 0, 2), ("b", "x", "c", "y", "a")
    for label_key in ("label", "labels"):
        before = data.make(**keys, label_key=label_key)
        after = before.renumbered(places, num_classes=5, label_names=names)
        assert (after.num_classes, after.label_names) == (5, names)
        assert after.fingerprint == before.fingerprint
        assert (after.label_classes is None) == (label_key == "label")
        (old,), (new,) = (list(d.eval_batches(batch_size=23)) for d in (before, after))
        np.testing.assert_array_equal(old["image"], new["image"])
        if label_key == "label":
            assert new["label"].tolist() == [places[i] for i in old["label"]]
        else:
            np.testing.assert_array_equal(new["label"][:, places], old["label"])
            assert not new["label"][:, [1, 3]].any()


def test_other_class_numbers_in_memory():
    before, places = mini(), np.roll(np.arange(10), 3)
    after = before.renumbered(
        places.tolist(), num_classes=10, label_names=[*"abcdefghij"]
    )
    labels = before.source.labels()
    np.testing.assert_array_equal(after.source.labels(), places[labels])
    (old,), (new,) = (
        list(d.eval_batches(batch_size=8000))[:1] for d in (before, after)
    )
    np.testing.assert_array_equal(old["image"], new["image"])
    np.testing.assert_array_equal(new["label"], places[old["label"]])
