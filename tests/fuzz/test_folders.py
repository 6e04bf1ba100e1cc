"""Folders of images as people have them are read whole, or refused."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fuzz import mutation, trees
from vit_jax import data
from vit_jax.predict import find_images, read_all

pytestmark = pytest.mark.slow

PARTS = 3
SPLITS = ("train", "test", "train[:50%]", "train+test", "val", "train[50%:]")


def opened(root: Path, split: str, held_out: float | None) -> data.Dataset:
    return data.make(
        name="folder",
        data_dir=str(root),
        split=split,
        image_size=8,
        holdout=held_out,
        num_workers=0,
        num_threads=1,
        on_bad_example="skip",
        train={},
        eval={},
    )


def read_everything(dataset: data.Dataset) -> int:
    """Reads each record once, as an evaluation does; how many are bad."""
    batches = dataset.eval_batches(batch_size=16, num_classes=dataset.num_classes)
    good = sum(int(batch["mask"].sum()) for batch in batches)
    return dataset.num_examples - good


def left_out(notes: tuple[str, ...]) -> int:
    """How many images are said to lie in no class."""
    counts = re.findall(r"([\d,]+) in no class folder", "\n".join(notes))
    return sum(int(count.replace(",", "")) for count in counts)


@pytest.mark.parametrize("part", range(PARTS))
def test_folders(part: int, tmp_path: Path) -> None:
    """Whole splits hold each image once, and only images; none is lost in silence."""

    def use(number: bytes) -> None:
        root = tmp_path / "tree"
        shutil.rmtree(root, ignore_errors=True)
        tree = trees.Tree(root, int(number))
        split = SPLITS[int(number) // 3 % len(SPLITS)]
        held_out = (None, 0.0, 0.25)[int(number) % 3]
        dataset = opened(root, split, held_out)
        source: Any = dataset.source
        found = [source._path(i) for i in range(len(source))]
        assert len(set(found)) == len(found)
        bad = read_everything(dataset)
        assert bad <= len(tree.bad) * 3  # a link may show the same ones again
        assert dataset.label_names is not None
        assert len(dataset.label_names) == dataset.num_classes
        assert all(note.isprintable() for note in source.notes)
        if held_out and split == "train+test":
            lost = (tree.good | tree.bad) - set(found)
            assert len(lost) <= left_out(source.notes), lost

    numbers = (b"%d" % (PARTS * i + part) for i in mutation.rounds(250))
    used, refused = mutation.check(use, numbers, tmp_path / "input")
    assert mutation.SECONDS or (used and refused)  # of a few, all may be alike


def test_what_predict_finds(tmp_path: Path) -> None:
    """All images, at any depth; those that are broken are counted."""

    class Preprocesses:
        def preprocess(self, image: np.ndarray) -> np.ndarray:
            return image

    def use(number: bytes) -> None:
        root = tmp_path / "tree"
        shutil.rmtree(root, ignore_errors=True)
        tree = trees.Tree(root, int(number))
        files = list(find_images([root]))
        assert {str(file) for file in files} >= tree.good | tree.bad
        read, broken = read_all(Preprocesses(), files)
        assert len(read) + broken == len(files)

    used, refused = mutation.check(
        use, (b"%d" % i for i in mutation.rounds(300)), tmp_path / "input"
    )
    assert mutation.SECONDS or (used and refused)  # of a few, all may be alike
