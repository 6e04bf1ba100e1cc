import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vit_jax import data
from vit_jax.data.prepare.classes import number
from vit_jax.data.prepare.items import Labels, in_container
from vit_jax.data.prepare.sources import Part
from vit_jax.data.sources.folder import FolderSource, open_folder
from vit_jax.errors import UserError

RNG = np.random.default_rng(0)


def opened(
    root: Path, split: str = "train", held_out: float | None = None
) -> FolderSource:
    return open_folder(str(root), split, held_out)


def names(source: FolderSource) -> list[str]:
    """Of the records, under the folder that was opened."""
    every = (source.describe(i) for i in range(len(source)))
    return [path.removeprefix(f"{source.name}/") for path in every]


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
    assert names(source) == [
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
    both = opened(root, "train+test")
    assert both.labels().tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0, 2, 2, 2]
    assert both.describe(9).endswith("test/a/0.png")


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
    with pytest.raises(UserError, match=r'no split "fold1".*\(it has: test, train\)'):
        opened(root, "fold1")
    with pytest.raises(UserError, match='"train" has 9 records'):
        opened(root, "train[9:]")
    (root / "val").mkdir()
    with pytest.raises(UserError, match=r"val has no class folders; expected .*CLASS"):
        opened(root, "val")
    (root / "val/a").mkdir()
    (root / "val/a/x.heic").write_text("")
    with pytest.raises(
        UserError,
        match=r"val has no images \(\.jpg.* 1 file: 1 \.heic",
    ):
        opened(root, "val")


def test_whole_splits_are_what_they_were(root):
    """Runs that began with version 0.9 go on: checkpoints hold these fingerprints."""
    assert opened(root).fingerprint == "59a24d8769ba5c68"
    assert opened(root, "test").fingerprint == "cd89b23c8bfd3e54"
    assert opened(root, "train+test").fingerprint == "b5693be1f91f3e8b"
    assert opened(root, "train[:100%]").fingerprint == opened(root).fingerprint


@pytest.mark.parametrize("share", ["75%", "50%", "12"])
def test_slices_hold_all_classes(tmp_path, share):
    for label in "abcd":
        for i in range(16):
            touch(tmp_path / "train" / label / f"{i}.png")
    first = opened(tmp_path, f"train[:{share}]")
    rest = opened(tmp_path, f"train[{share}:]")
    assert sorted(names(first) + names(rest)) == sorted(names(opened(tmp_path)))
    for source in (first, rest):
        assert np.bincount(source.labels(), minlength=4).all()
        assert [name.split("/")[1] for name in names(source)] == [
            "abcd"[label] for label in source.labels()
        ]


def test_slices_are_those_of_the_prepared_dataset(tmp_path):
    """`vit_jax.data.prepare` shuffles by the same permutation of names."""
    files = [f"{label}/{i}.png" for label in "abc" for i in range(5)]
    for file in files:
        touch(tmp_path / "train" / file)
    items = [
        in_container("x", [f], [1], Labels.of_class(f[0], 1), times=[0]) for f in files
    ]
    prepared = number([Part("train", i) for i in items], None).items["train"]
    order = [f"train/{prepared.name(i)}" for i in range(len(files))]
    assert names(opened(tmp_path, "train[:7]")) == order[:7]
    assert names(opened(tmp_path, "train[7:]")) == order[7:]
    assert order != sorted(order)


KINDS = ("jpg", "JPEG", "jfif", "png", "webp", "bmp", "gif", "tif", "jp2", "ppm")


@pytest.mark.parametrize("extension", KINDS)
def test_whatever_is_decoded_is_found(tmp_path, extension):
    path = tmp_path / f"train/a/0.{extension}"
    write(path)
    (source,) = [opened(tmp_path)]
    assert names(source) == [f"train/a/0.{extension}"]
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB")).astype(int)
    close = 4 if extension.lower() in ("jpg", "jpeg", "jfif") else 0
    assert np.abs(source.read(0)[0] - expected).max() <= close


def test_images_are_found_as_torchvision_finds_them(tmp_path):
    """At any depth, through links; a link to a folder that it lies in ends."""
    for name in ("b/1.png", "b/2020/may/2.PNG", "a/x.y/3.webp", "a/dir.jpg/4.png"):
        touch(tmp_path / "train" / name)
    touch(tmp_path / "elsewhere/5.png")
    (tmp_path / "train/a/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "train/c").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "train/b/6.png").symlink_to(tmp_path / "elsewhere/5.png")
    (tmp_path / "train/b/2020/up").symlink_to(tmp_path / "train/b")
    (tmp_path / "train/b/all").symlink_to(tmp_path)  # not the images of other classes
    source = opened(tmp_path)
    assert names(source) == [
        *("train/a/dir.jpg/4.png", "train/a/link/5.png", "train/a/x.y/3.webp"),
        *("train/b/1.png", "train/b/2020/may/2.PNG", "train/b/6.png", "train/c/5.png"),
    ]
    left_out = "left out 2 files: 2 links to a folder above"
    assert source.notes == (f"{tmp_path}/train: {left_out}",)


def test_links_in_a_circle(tmp_path):
    """A link to itself is no file; one to a folder that it lies in adds nothing."""
    for name in ("a/1.png", "b/2.png"):
        touch(tmp_path / name)
    (tmp_path / "a/self.png").symlink_to(tmp_path / "a/self.png")
    (tmp_path / "self").symlink_to(tmp_path / "self")
    (tmp_path / "up").symlink_to(tmp_path)
    (tmp_path / "a/up").symlink_to(tmp_path)
    (tmp_path / "b/top").symlink_to("/")
    os.mkfifo(tmp_path / "b/pipe.png")
    source = opened(tmp_path)
    assert names(source) == ["a/1.png", "b/2.png"]
    assert source.label_names == ("a", "b")
    assert any("1 links to no file, 1 pipes or devices" in n for n in source.notes)


def test_a_locale_that_is_not_utf8(tmp_path, monkeypatch):
    """There even names that are UTF-8 cannot be told: the names are not to blame."""
    touch(tmp_path / os.fsdecode(b"caf\xe9") / "1.png")
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    with pytest.raises(UserError, match=r"reads names as ascii: set LC_ALL=C\.UTF-8"):
        opened(tmp_path)


def test_splits_that_are_the_same_images(tmp_path):
    for i in range(10):
        touch(tmp_path / "a" / f"{i}.png")
    with pytest.raises(UserError, match='"train" and "test" are the same images of'):
        opened(tmp_path, "train+test")
    assert len(opened(tmp_path, "train+test", 0.2)) == 10
    assert len(opened(tmp_path, "train[:50%]+train[50%:]")) == 10
    np.savez(tmp_path / "a.npz", x=np.zeros((4, 2, 2), np.uint8), y=np.arange(4))
    with pytest.raises(UserError, match='"train" and "test" are the same images of'):
        data.open_source(
            name="npz",
            data_dir=str(tmp_path / "a.npz"),
            split="train+test",
            image_key=None,
            label_key=None,
        )


def test_what_is_left_out_is_counted(root):
    for name in ("a/._0.png", "a/sub/.DS_Store", "b/notes.txt", "b/more.TXT", "c/raw"):
        touch(root / "train" / name)
    touch(root / "train/loose.png")
    touch(root / "train/__MACOSX/a/0.png")
    (root / "train/b/dead.png").symlink_to(root / "nowhere")
    source = opened(root)
    assert (len(source), source.label_names) == (9, ("a", "b", "c"))
    assert source.notes == (
        f"{root}/train: left out 7 files: 2 hidden, 2 .txt, 1 in no class folder, "
        "1 links to no file, 1 without an extension",
    )
    assert opened(root, "test").notes == ()


@pytest.mark.parametrize("inner", ["", "images", "data/images"])
def test_class_folders_alone(tmp_path, inner):
    sizes = {"a": 20, "b": 31, "c": 2, "d": 1}
    for label, n in sizes.items():
        for i in range(n):
            touch(tmp_path / inner / label / f"{i}.png")
    touch(tmp_path / "labels.csv")
    train, test = (opened(tmp_path, split, 0.1) for split in ("train", "test"))
    assert np.bincount(test.labels(), minlength=4).tolist() == [2, 3, 1, 0]
    assert np.bincount(train.labels(), minlength=4).tolist() == [18, 28, 1, 1]
    everything = opened(tmp_path)
    assert len(everything) == 54
    assert sorted(names(train) + names(test)) == names(everything)
    assert train.label_names == test.label_names == tuple("abcd")
    where = f"{tmp_path}/{inner}".rstrip("/")
    said = f"{where}: train is 0.9 of each class (48 images), test 0.1 (6), "
    assert f"{said}chosen by their names" in train.notes
    assert (f"{tmp_path}: its images are in {where}" in train.notes) == bool(inner)
    assert names(opened(tmp_path, "val", 0.1)) == names(test)
    assert f'{where} has no splits: all of it is taken for "test"' in (
        opened(tmp_path, "test").notes
    )
    with pytest.raises(UserError, match=r'no split "fold1".* has class folders \(a, b'):
        opened(tmp_path, "fold1")


def test_a_held_out_image_stays_when_others_come(tmp_path):
    for i in range(40):
        touch(tmp_path / "a" / f"{i}.png")
    before = set(names(opened(tmp_path, "test", 0.25)))
    for i in range(40, 60):
        touch(tmp_path / "b" / f"{i}.png")
    assert before < set(names(opened(tmp_path, "test", 0.25)))
    touch(tmp_path / "a" / "more.png")
    assert len(before - set(names(opened(tmp_path, "test", 0.25)))) <= 1


def test_training_images_alone(tmp_path):
    for i in range(20):
        touch(tmp_path / "train/a" / f"{i}.png")
    assert len(opened(tmp_path)) == 20
    with pytest.raises(UserError, match=r'no split "test".*--config.data.holdout=0.1'):
        opened(tmp_path, "test")
    assert len(opened(tmp_path, "train", 0.1)) == 18
    assert len(opened(tmp_path, "test", 0.1)) == 2
    assert len(opened(tmp_path, "train[:50%]", 0.1)) == 9
    touch(tmp_path / "test/1.png")  # without classes: nothing to compare with
    with pytest.raises(UserError, match=r"test has no class folders; expected .*CLASS"):
        opened(tmp_path, "test")
    assert len(opened(tmp_path, "test", 0.1)) == 2
    touch(tmp_path / "test/a/1.png")
    with pytest.raises(UserError, match=r'holdout=0.1 has no effect: .* split "test"'):
        opened(tmp_path, "train", 0.1)


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        ("train", "val", True),
        ("training", "validation", True),
        ("Train", "Test", False),
        ("TRAIN", "Valid", True),
        ("images/train", "images/dev", True),
    ],
)
def test_other_names_of_splits(tmp_path, train, test, said):
    touch(tmp_path / train / "a/0.png")
    touch(tmp_path / train / "b/0.png")
    touch(tmp_path / test / "b/1.png")
    source = opened(tmp_path, "test")
    assert names(source) == [f"{test}/b/1.png"]
    assert source.label_names == ("a", "b")
    assert names(opened(tmp_path)) == [f"{train}/a/0.png", f"{train}/b/0.png"]
    assert any("taken for" in note for note in source.notes) == said


def test_a_class_may_be_called_as_a_split_is(tmp_path):
    for label in ("control", "test"):
        touch(tmp_path / label / "0.png")
    assert opened(tmp_path).label_names == ("control", "test")


def test_folders_of_no_layout(tmp_path):
    touch(tmp_path / "0.png")
    with pytest.raises(UserError, match=r"has no folders; expected SPLIT/CLASS/IMAGE"):
        opened(tmp_path)
    for fold in ("fold1", "fold2"):
        touch(tmp_path / fold / "cat/0.png")
    with pytest.raises(UserError, match=r"fold1, fold2, and each of them has cat\. If"):
        opened(tmp_path)
    assert names(opened(tmp_path, "fold2")) == ["fold2/cat/0.png"]


def test_training_of_a_folder_beside_another(root):
    source = opened(root / "train")
    (note, _) = source.notes
    assert f"{root}/test is not read; to evaluate on it, set config.data" in note


def test_names_that_are_not_utf8(tmp_path):
    latin = os.fsdecode(b"caf\xe9")
    touch(tmp_path / "train/a" / f"{latin}.png")
    source = opened(tmp_path)
    assert source.describe(0) == f"{tmp_path}/train/a/caf\\xe9.png"
    with pytest.raises(UserError, match=r"caf\\xe9\.png is empty"):
        source.read(0)
    touch(tmp_path / "train" / latin / "0.png")
    with pytest.raises(UserError, match=r"train has class .* not UTF-8: caf\\xe9\. "):
        opened(tmp_path)


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


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


def test_other_images_under_the_same_names(root):
    before = opened(root)
    moved = root.rename(root.with_name(f"{root.name}-moved"))
    assert opened(moved).sample == before.sample
    for path in sorted((moved / "train").rglob("*.png")):
        path.write_bytes(path.read_bytes() + b"other")
    after = opened(moved)
    assert after.fingerprint == before.fingerprint
    assert after.sample != before.sample


def test_what_has_gone_is_no_error_yet(root):
    before = opened(root)
    (root / names(before)[0]).unlink()
    assert FolderSource(
        names(before),
        before.labels(),
        data_dir=str(root),
        label_names=("a",),
    ).sample
