"""Datasets made by PIL and TFDS, with faults; every one is found, and no other."""

import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from vit_jax.data import check, contact_sheet
from vit_jax.data.prepare import Options, prepare

ROOT = Path(__file__).parents[2]
CONFIG = f"--config={ROOT}/configs/quickstart.py"


def images(root: Path, split: str, classes: str, n: int = 6) -> Path:
    """Photos of one colour each, a class a colour."""
    for label in classes:
        for i in range(n):
            path = root / split / label / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            colour = (40 * (ord(label) - ord("a")), 200, 10 + i)
            Image.new("RGB", (28 + i, 40), colour).save(path)
    return root


@pytest.fixture
def root(tmp_path):
    return images(images(tmp_path / "photos", "train", "abc"), "test", "ab", 3)


def run(tmp_path: Path, capsys, *arguments: str) -> tuple[int, list[str], str]:
    """(exit code, findings, what was printed)."""
    flags = [CONFIG, f"--output={tmp_path}/out", *arguments]
    code = check.main(["check", *flags])
    printed = capsys.readouterr()
    lines = printed.err[printed.err.rfind("error: ") :].splitlines()
    found = [line.strip() for line in lines if line.startswith("  ")] if code else []
    if code:
        plural = "" if len(found) == 1 else "s"
        assert lines[0] == f"error: {len(found)} finding{plural}:"
        assert "All is well" not in printed.out
    return code, found, printed.out


def of_folder(root: Path) -> list[str]:
    return ["--config.data.name=folder", f"--config.data.data_dir={root}"]


def test_all_is_well(tmp_path, root, capsys):
    code, _, printed = run(tmp_path, capsys, *of_folder(root))
    assert code == 0
    assert "18 images decoded: height 40 / 40 / 40, width 28 / 30 / 33" in printed
    assert "rarest 0 (a), 6 times" in printed
    assert "evals.test: folder, test\n  6 records; 3 classes" in printed
    assert "1 classes never occur: 2 (c)" in printed  # in a test split, no fault
    assert printed.endswith("All is well.\n")


def test_the_pixels_mean_and_std_are_said(tmp_path, root, capsys):
    files = sorted((root / "train").rglob("*.png"))
    pixels = [np.asarray(Image.open(f).convert("RGB")) / 255 for f in files]
    mean = np.mean([p.mean((0, 1)) for p in pixels], axis=0)
    std = np.sqrt(np.mean([(p**2).mean((0, 1)) for p in pixels], axis=0) - mean**2)
    _, _, printed = run(tmp_path, capsys, *of_folder(root))
    said = re.search(r"their pixels have \S+mean=(\S+) \S+std=([^\s;]+)", printed)
    assert said is not None
    for text, expected in zip(said.groups(), (mean, std), strict=True):
        found = [float(number) for number in text.split(",")]
        np.testing.assert_allclose(found, expected, atol=6e-4)


def test_the_picture_shows_the_transformed_images(tmp_path, root, capsys):
    """Cells of 28 pixels, enlarged 4 times; the colour tells the class."""
    run(tmp_path, capsys, *of_folder(root))
    picture = cv2.imread(f"{tmp_path}/out/contact_sheet.png", cv2.IMREAD_COLOR_RGB)
    assert picture is not None
    side, text, margin = 112, 16, 4
    strip = 3 * (side + text + margin) + text + 2 * margin  # 18 images in rows of 8
    first = picture[strip + text + margin :][:side, :side]
    np.testing.assert_array_equal(first[side // 2, side // 2, :2], [0, 200])
    fourth = picture[strip + text + margin :, 3 * (side + margin) :][:side, :side]
    np.testing.assert_array_equal(fourth[side // 2, side // 2, :2], [40, 200])
    captions = picture[strip + text + margin + side :][:text, :side]
    assert captions.min() < 128  # a name is written there
    assert picture.shape[1] == 8 * (side + margin)


def test_sheet_of_training_is_the_first_batch(tmp_path, root):
    from vit_jax import data

    dataset = data.make(
        name="folder",
        data_dir=str(root),
        image_size=24,
        train={"crop": "inception"},
        eval={},
    )
    strip = contact_sheet.of_training("", dataset, batch_size=16, seed=3, count=8)
    batch = next(
        dataset.train_batches(batch_size=16, seed=3, start_step=0, total_steps=1)
    )
    np.testing.assert_array_equal(strip.images, batch["image"][:8])
    assert list(strip.captions) == ["abc"[i] for i in batch["label"][:8]]


def test_undecodable_files_are_found(tmp_path, root, capsys):
    for name in ("a/1.png", "b/2.png"):
        (root / "test" / name).write_bytes(b"\x89PNG\r\n\x1a\n cut")
    code, (finding,), _ = run(tmp_path, capsys, *of_folder(root))
    assert code == 2
    assert finding.startswith("config.evals.test: 2 of 6 records that were read do not")
    assert "test/a/1.png" in finding and "test/b/2.png" in finding


def test_a_sample_reads_no_more(tmp_path, root, capsys):
    _, _, printed = run(tmp_path, capsys, *of_folder(root), "--sample=4")
    assert printed.count("4 images decoded") == 2
    assert "labels of 18 records (all)" in printed  # names of folders are read anyway


def npz(tmp_path: Path, labels: list[int]) -> list[str]:
    arrays = {
        "train_images": np.zeros((len(labels), 28, 28, 3), np.uint8),
        "train_labels": np.array(labels),
        "test_images": np.zeros((2, 28, 28, 3), np.uint8),
        "test_labels": np.array([0, 1]),
    }
    np.savez(tmp_path / "data.npz", **arrays)
    return ["--config.data.name=npz", f"--config.data.data_dir={tmp_path}/data.npz"]


def test_labels_out_of_range_and_classes_that_never_occur(tmp_path, capsys):
    flags = npz(tmp_path, [0, 1, 3, 7, 9])
    code, found, _ = run(tmp_path, capsys, *flags, "--config.model.num_classes=4")
    assert code == 2
    assert any("2 labels are out of range 0..3" in f and "label 7" in f for f in found)
    assert "config.data: 1 classes never occur: 2" in found


def test_too_small_a_head(tmp_path, root, capsys):
    flags = [*of_folder(root), "--config.model.num_classes=2"]
    code, found, _ = run(tmp_path, capsys, *flags)
    assert code == 2
    assert "config.data: 3 classes, but the model's head has 2" in found


@pytest.mark.parametrize(
    "train, test, shared",
    [
        ("train[:80%]", "train[80%:]", 0),
        ("train[:80%]", "train[70%:]", 1),
        ("train+test", "test", 6),
    ],
)
def test_records_of_training_that_are_evaluated(
    train, test, shared, tmp_path, root, capsys
):
    flags = [f"--config.data.split={train}", f"--config.evals.test.split={test}"]
    code, found, _ = run(tmp_path, capsys, *of_folder(root), *flags)
    overlap = [f for f in found if "are in the split of training too" in f]
    assert len(overlap) == bool(shared)
    assert (code == 2) == bool(found)
    if shared:
        assert overlap[0].startswith(f"config.evals.test: {shared} of its ")


def test_counts_that_are_not_the_published_ones(tmp_path, root, capsys):
    prepare(
        Options(
            sources=(str(root),),
            data_dir=str(tmp_path / "data"),
            name="cifar10",
            num_workers=1,
        )
    )
    flags = ["--config.data.name=cifar10", f"--config.data.data_dir={tmp_path}/data"]
    code, found, _ = run(tmp_path, capsys, *flags)
    assert code == 2
    assert found[:4] == [
        "config.data: 18 records in split train, but cifar10 is published with 50,000",
        "config.data: 3 classes, but cifar10 is published with 10",
        "config.evals.test: 6 records in split test, but cifar10 is published with "
        "10,000",
        "config.evals.test: 3 classes, but cifar10 is published with 10",
    ]


def test_checksums(tmp_path, root, capsys):
    (root / "train/a/9.png").write_bytes((root / "test/b/0.png").read_bytes())
    prepare(
        Options(
            sources=(str(root),),
            data_dir=str(tmp_path / "data"),
            name="mine",
            num_workers=1,
        )
    )
    flags = ["--config.data.name=mine", f"--config.data.data_dir={tmp_path}/data"]
    code, found, _ = run(tmp_path, capsys, *flags, "--verify_checksums")
    assert code == 2 and len(found) == 2
    assert "duplicates (kept: --drop_duplicates leaves them out)" in found[0]
    assert found[1].endswith("LEAKAGE: 7 images of train ARE in test too.")
    folder = tmp_path / "data/mine/1.0.0"
    (path,) = folder.glob("mine-test*")
    content = bytearray(path.read_bytes())
    content[-40000] ^= 1  # in the padding: every record is still read
    path.write_bytes(content)
    assert run(tmp_path, capsys, *flags)[1] == found
    code, (*_, finding), _ = run(tmp_path, capsys, *flags, "--verify_checksums")
    assert code == 2 and finding.endswith(
        "has another checksum than when it was prepared"
    )
    assert str(path) in finding
    for name, damage in (("duplicates.jsonl", "{"), ("manifest.json", "[]")):
        assert (folder / name).exists()
        (folder / name).write_text(damage)
        code, found, _ = run(tmp_path, capsys, *flags)
        assert code == 2 and "prepare says of it cannot be read" in found[-1]


def test_checksums_that_there_are_not(tmp_path, root, capsys):
    code, found, _ = run(tmp_path, capsys, *of_folder(root), "--verify_checksums")
    assert code == 2 and found == [
        f"{root} has no checksums: vit_jax.data.prepare did not write it"
    ]


def test_all_faults_are_listed_at_once(tmp_path, root, capsys):
    flags = [
        *of_folder(root),
        "--config.evals.test.split=tset",
        "--config.data.split=x",
    ]
    code, found, _ = run(tmp_path, capsys, *flags)
    assert code == 2
    assert len(found) == 2 and 'no split "x"' in found[0] and '"tset"' in found[1]


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--smaple=3", 'did you mean "--sample"'),
        ("--sample=0", "expected 1 or more"),
        ("--config.data.nmae=x", '"name"'),
        ("--config.data.image_size=many", "should be"),
    ],
)
def test_bad_flags(flag, message, capsys):
    assert check.main(["check", CONFIG, flag]) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.startswith("error: ")
    assert printed.count("\n") == 1


def test_it_touches_no_accelerator(tmp_path, root):
    """With a platform that there is not, the first look at a device would fail."""
    command = [sys.executable, "-m", "vit_jax.data.check", CONFIG, *of_folder(root)]
    done = subprocess.run(
        [*command, f"--output={tmp_path}/out"],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "none_such"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
