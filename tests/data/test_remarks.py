"""Warnings of classes that cannot be learned."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vit_jax import data
from vit_jax.data import remarks


def folder(root: Path, **sizes: int) -> Path:
    """{SPLIT_CLASS: number of images}."""
    for name, n in sizes.items():
        path = root.joinpath(*name.split("_"))
        path.mkdir(parents=True)
        for i in range(n):
            (path / f"{i}.png").touch()
    return root


def opened(name: str, data_dir: Path, split: str = "train") -> data.Dataset:
    return data.make(
        name=name, data_dir=str(data_dir), split=split, image_size=8, train={}, eval={}
    )


def test_all_is_well(tmp_path):
    folder(tmp_path, train_a=3, train_b=1, test_a=1)
    train, test = opened("folder", tmp_path), opened("folder", tmp_path, "test")
    assert remarks.of_training(train) == []
    assert remarks.of_evaluation("test", test, train) == []


def test_one_class(tmp_path):
    (said,) = remarks.of_training(opened("folder", folder(tmp_path, train_only=3)))
    assert said.startswith("all 3 training images are of one class, only: ")


def test_a_class_without_an_image(tmp_path):
    folder(tmp_path, train_a=3, train_b=0, train_c=1, train_d=0, test_b=4, test_c=1)
    train, test = opened("folder", tmp_path), opened("folder", tmp_path, "test")
    assert train.label_names == tuple("abcd")
    (said,) = remarks.of_training(train)
    assert said.startswith(f"2 of 4 classes have no training image in {tmp_path}: b, d")
    (said,) = remarks.of_evaluation("val", test, train)
    assert said.startswith("evaluation val: 4 of its 5 images are of classes that have")
    assert said.endswith(": b")


def test_classes_of_another_folder_are_compared_by_name(tmp_path):
    folder(tmp_path / "a", train_cat=1, train_dog=1)
    folder(tmp_path / "b", train_dog=2, train_emu=3, test_dog=2, test_emu=3)
    train = opened("folder", tmp_path / "a")
    (said,) = remarks.of_evaluation(
        "b", opened("folder", tmp_path / "b", "test"), train
    )
    assert "3 of its 5 images" in said and said.endswith(": emu")


@pytest.mark.parametrize("cut", ["3", "75%"])
def test_slices_of_records_that_are_sorted_by_class(tmp_path, cut):
    labels = np.repeat(np.arange(4), 4)
    path = tmp_path / "x.npz"
    np.savez(path, x_train=np.zeros((16, 8, 8), np.uint8), y_train=labels)
    train, test = (opened("npz", path, f"train[{s}]") for s in (f":{cut}", f"{cut}:"))
    said = remarks.of_training(train)
    assert any("classes have no training image" in s and "sorted" in s for s in said)
    (said,) = remarks.of_evaluation("test", test, train)
    unseen = set(labels[16 * 3 // 4 if cut == "75%" else 3 :]) - set(
        np.asarray(train.source.labels())
    )
    assert said.endswith(f": {', '.join(map(str, sorted(unseen)))}")


def test_labels_that_are_not_at_hand(tmp_path):
    """Vectors of classes, or of two sources that number their classes on their own."""
    arrays: dict[str, Any] = {"x_train": np.zeros((4, 8, 8), np.uint8)}
    for name, labels in (("hot", np.eye(4)), ("a", [0] * 4), ("b", [0, 1, 5, 9])):
        arrays["y_train"] = np.array(labels)
        np.savez(tmp_path / f"{name}.npz", **arrays)
    hot, a, b = (opened("npz", tmp_path / f"{n}.npz") for n in ("hot", "a", "b"))
    assert remarks.of_training(hot) == remarks.of_evaluation("x", hot, a) == []
    assert remarks.of_evaluation("x", b, a) == []
