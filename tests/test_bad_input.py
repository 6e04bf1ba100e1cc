"""What a user can get wrong on the command line: one clear message, exit code 2.

`docs/errors.md` lists these cases with what is printed; `make errors` writes it anew.
"""

import gzip
import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import cli

FOLDER = ["--config.data.name=folder", "--config.evals.test.split=test"]


def images(root: Path, *classes: str) -> Path:
    """A folder of class folders, made by PIL."""
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(8):
                pixels = random.integers(0, 256, (28, 28, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.jpg")
    return root


def truncated(tmp_path: Path) -> list[str]:
    root = images(tmp_path / "data", "a", "b")
    for path in (root / "test" / "b").iterdir():
        path.write_bytes(path.read_bytes()[:200])
    return [*FOLDER, f"--config.data.data_dir={root}"]


def latin_class(tmp_path: Path) -> list[str]:
    root = images(tmp_path / "data", "a", "b")
    (root / "train" / os.fsdecode(b"caf\xe9")).mkdir()
    return [*FOLDER, f"--config.data.data_dir={root}"]


def label_out_of_range(tmp_path: Path) -> list[str]:
    """IDX files whose labels go up to 11, with a head of 10."""
    for name in ("train", "t10k"):
        with gzip.open(tmp_path / f"{name}-images-idx3-ubyte.gz", "wb") as f:
            f.write(struct.pack(">4i", 2051, 64, 28, 28) + bytes(64 * 28 * 28))
        with gzip.open(tmp_path / f"{name}-labels-idx1-ubyte.gz", "wb") as f:
            f.write(struct.pack(">2i", 2049, 64) + bytes(i % 12 for i in range(64)))
    return [
        "--config.data.name=idx",
        "--config.model.num_classes=10",
        "--config.evals.test.split=test",
        f"--config.data.data_dir={tmp_path}",
    ]


def mixed_classes(tmp_path: Path) -> list[str]:
    """A mixture of two folders, of which one has a class that the other has not."""
    first, second = images(tmp_path / "1", "a", "b"), images(tmp_path / "2", "a", "c")
    return [
        "--config.data.name=mixture",
        "--config.data.mixture.one.name=folder",
        f"--config.data.mixture.one.data_dir={first}",
        "--config.data.mixture.two.name=folder",
        f"--config.data.mixture.two.data_dir={second}",
    ]


CASES = {
    "misspelt key": (["--config.optim.learning_rat=1"], "learning_rate"),
    "misspelt section": (["--config.optm.learning_rate=1"], '"optim"'),
    "wrong type": (["--config.batch_size=many"], "should be an int"),
    "unknown choice": (["--config.model.pool=tokn"], '"token"'),
    "misspelt flag": (["--workdr=/tmp/x"], '"--workdir"'),
    "both steps and epochs": (["--config.total_epochs=3"], "exactly one"),
    "unknown variant": (["--config.model.variant=X/16"], "X/16"),
    "missing dataset": (
        ["--config.data.name=imagenet2012", "--config.data.data_dir=/nowhere"],
        "/nowhere",
    ),
    "missing split": (["--config.data.split=trian"], "train"),
    "empty split": (["--config.data.split=train[:0]"], "train[:0]"),
    "batch not divisible by the mesh": (["--config.batch_size=9"], "nearest that are"),
    "evaluation with a batch of no machine": (
        ["--config.evals.test.batch_size=1e12"],
        "at most 16,777,216",
    ),
    "pixels without a limit": (["--config.data.max_pixels=0"], "max_pixels=0"),
    "mesh of too many devices": (["--config.mesh.data=3"], "must multiply to 8"),
    "key that is not read": (["--config.optim.momentum=0.9"], "momentum"),
    "best of no evaluation": (
        ["--config.checkpoint.best=tset/accuracy"],
        "test/accuracy",
    ),
    "patch that does not fit": (["--config.model.patch_size=9"], "28"),
}


def fails(tmp_path: Path, *args: str, run: Callable[..., str] = cli.call) -> str:
    """Runs, expects code 2 and one message without a traceback; returns it."""
    output = run(
        f"--config={cli.EVERYTHING}", f"--workdir={tmp_path}/workdir", *args, expect=2
    )
    assert "Traceback" not in output
    message = output[output.index("error: ") :]
    assert "\nerror" not in message
    if path := os.environ.get("VIT_JAX_ERRORS"):
        record(Path(path), tmp_path, args, message)
    return message


def record(path: Path, tmp_path: Path, args: tuple[str, ...], message: str) -> None:
    """Appends a case to docs/errors.md."""
    shown = " ".join(args) or "(the workdir alone)"
    text = f"    {shown}\n\n```\n{message.strip()}\n```\n\n"
    with path.open("a") as f:
        f.write(text.replace(str(tmp_path), "DIR"))


@pytest.mark.parametrize("case", CASES)
def test_bad_arguments(case: str, tmp_path: Path) -> None:
    args, expected = CASES[case]
    assert expected in fails(tmp_path, *args)


@pytest.mark.parametrize(
    "make, expected",
    [
        (truncated, "test/b/0.jpg"),
        (latin_class, r"not UTF-8: caf\xe9"),
        (label_out_of_range, "out of range"),
        (mixed_classes, 'has classes that one (DIR/1) does not know: "c"'),
    ],
)
def test_bad_data(make, expected: str, tmp_path: Path) -> None:
    message = fails(tmp_path, *make(tmp_path))
    assert expected in message.replace(str(tmp_path), "DIR")


def test_workdir_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "workdir").write_text("a file")
    assert "cannot be written" in fails(tmp_path)


def test_workdir_of_another_model(tmp_path: Path) -> None:
    workdir = f"--workdir={tmp_path}/workdir"
    cli.run(f"--config={cli.EVERYTHING}", workdir, "--config.total_steps=8")
    before = (tmp_path / "workdir" / "config.json").read_text()
    message = fails(tmp_path, "--config.total_steps=8", "--config.model.mlp_dim=96")
    assert "MlpBlock_0/Dense_0/kernel: (32, 64) float32 in the checkpoint" in message
    assert "(32, 96) float32 in this config" in message
    assert (tmp_path / "workdir" / "config.json").read_text() == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 800 KiB."""
    path = tmp_path / "small"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=800k", "tmpfs", str(path)]
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small disk needs root")
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this system does not let root mount a tmpfs")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_full_disk(small_disk: Path) -> None:
    message = fails(small_disk, "--config.checkpoint.keep=100", run=cli.run)
    assert "space" in message
    assert "run the same command again" in message
    # What was committed before is whole: with room the run goes on from it.
    workdir = small_disk / "workdir"
    steps = cli.saved_steps(workdir)
    if steps:
        cli.saved_arrays(workdir, steps[-1])
