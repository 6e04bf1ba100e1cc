from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vit_jax import data
from vit_jax.data.sources.folder import FolderSource, open_folder
from vit_jax.errors import UserError

RNG = np.random.default_rng(0)


def opened(root: Path, split: str = "train") -> FolderSource:
    return open_folder(str(root), split)


def write(path, size=(20, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RNG.integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def root(tmp_path):
    for split, classes in (("train", "abc"), ("test", "ac")):
        for label in classes:
            for i in range(3):
                write(tmp_path / split / label / f"{i}.png")
    return tmp_path


def test_order_and_labels(root):
    pixels = write(root / "train/b/1.5.JPEG.png")
    (root / "train/b/notes.txt").write_text("no image")
    (root / "train/b/._1.png").write_text("no image either")
    (root / "train/.cache").mkdir()
    Image.fromarray(pixels).save(root / "train/b/4.JPG", quality=95)
    source = opened(root)
    assert source.label_names == ("a", "b", "c")
    assert source.num_classes == 3
    names = [source.describe(i).removeprefix(f"{root}/") for i in range(len(source))]
    assert names == [
        *(f"train/a/{i}.png" for i in range(3)),
        *("train/b/0.png", "train/b/1.5.JPEG.png", "train/b/1.png", "train/b/2.png"),
        "train/b/4.JPG",
        *(f"train/c/{i}.png" for i in range(3)),
    ]
    assert source.labels().tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2]
    image, label = source.read(4)
    np.testing.assert_array_equal(image, pixels)
    assert label == 1


def test_classes_are_those_of_training(root):
    source = opened(root, "test")
    assert source.label_names == ("a", "b", "c")
    assert source.labels().tolist() == [0, 0, 0, 2, 2, 2]
    both = opened(root, "train[-2:]+test[:1]")
    assert both.labels().tolist() == [2, 2, 0]
    assert both.describe(2).endswith("test/a/0.png")


def test_without_training_images(root):
    (root / "train").rename(root.parent / "elsewhere")
    assert opened(root, "test").label_names == ("a", "c")


def test_fingerprint_is_of_names_not_of_the_place(root):
    before = opened(root).fingerprint
    assert opened(root, "test").fingerprint != before
    moved = root.rename(root.parent / "moved")
    assert opened(moved).fingerprint == before
    write(moved / "train/c/9.png")
    assert opened(moved).fingerprint != before


def test_what_is_missing(root):
    with pytest.raises(UserError, match=r'nowhere" is not a folder'):
        opened(root / "nowhere")
    with pytest.raises(UserError, match=r'no split "val".*\(it has: test, train\)'):
        opened(root, "val")
    with pytest.raises(UserError, match='"train" has 9 records'):
        opened(root, "train[9:]")
    (root / "val").mkdir()
    with pytest.raises(UserError, match=r"val has no class folders; expected .*CLASS"):
        opened(root, "val")
    (root / "train/empty").mkdir()
    with pytest.raises(UserError, match=r"class folder .*train/empty has no images"):
        opened(root)


def test_class_that_training_does_not_know(root):
    write(root / "test/d/0.png")
    with pytest.raises(UserError, match=r"test has classes that .*train has not: d"):
        opened(root, "test")


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff\xe0 not a JPEG"])
@pytest.mark.parametrize("train", [True, False])
def test_broken_file_is_named(root, content, train):
    (root / "train/b/0.png").write_bytes(content)
    dataset = data.make(
        name="folder", data_dir=str(root), image_size=8, train={}, eval={}
    )
    with pytest.raises(UserError, match=r"train/b/0\.png (is empty|cannot be decoded)"):
        dataset.check(num_classes=3, train=train, batch_size=9)


def test_truncated_jpeg_is_named(root):
    path = root / "train/a/x.jpg"
    write(path, (375, 500))
    path.write_bytes(path.read_bytes()[:-2000])
    dataset = data.make(
        name="folder", data_dir=str(root), image_size=8, train={}, eval={}
    )
    batches = dataset.train_batches(batch_size=10, seed=0, start_step=0, total_steps=9)
    with pytest.raises(UserError, match=r"train/a/x\.jpg cannot be decoded: \d+ bytes"):
        next(batches)


def test_file_that_vanished_is_named(root):
    source = opened(root)
    (root / "train/a/0.png").unlink()
    with pytest.raises(UserError, match=r"a/0\.png cannot be read: No such file"):
        source.read(0)
