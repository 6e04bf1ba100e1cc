"""What a run says of its data before it trains."""

from pathlib import Path

import pytest
from PIL import Image

from tests import cli
from vit_jax import config
from vit_jax.run import Run


def pictures(root: Path, *folders: str, n: int = 20) -> str:
    for i, folder in enumerate(folders):
        (root / folder).mkdir(parents=True)
        for j in range(n):
            Image.new("RGB", (28, 28), (9 * i, j, 99)).save(root / folder / f"{j}.png")
    return f"data.data_dir={root}"


def opened(*overrides: str) -> Run:
    given = ("data.name=folder", "evals.test.split=test", *overrides)
    pairs = [(key, value) for key, _, value in (o.partition("=") for o in given)]
    return Run(**config.load(cli.EVERYTHING, pairs).to_dict())


def test_class_folders_are_split_and_that_is_said(tmp_path: Path) -> None:
    where = pictures(tmp_path, "a", "b")
    (tmp_path / "a" / "notes.txt").write_text("")
    run = opened(where)
    assert (run.dataset.num_examples, run.num_classes) == (36, 2)
    assert run.notes() == [
        f"{tmp_path}: left out 1 file: 1 .txt",
        f"{tmp_path}: train is 0.9 of each class (36 images), test 0.1 (4), chosen by "
        "their names",
    ]
    assert run.warnings() == []
    assert opened(where, "data.holdout=0.5").dataset.num_examples == 20


def test_one_class_and_a_wider_head(tmp_path: Path) -> None:
    where = pictures(tmp_path, "train/a", "test/a")
    run = opened(where, "model.num_classes=10")
    assert run.notes() == [
        "the data has 1 classes, the head 10: config.model.num_classes; 1 leaves none "
        "without an image"
    ]
    (said,) = run.warnings()
    assert said.startswith("all 20 training images are of one class, a")


def test_evaluated_classes_that_are_not_trained(tmp_path: Path) -> None:
    where = pictures(tmp_path, "train/a", "train/b", "test/a", "test/c")
    (tmp_path / "train/c").mkdir()
    run = opened(where)
    assert run.num_classes == 3
    first, second = run.warnings()
    assert first.startswith("1 of 3 classes have no training image")
    assert second.startswith("evaluation test: 20 of its 40 images are of classes")


@pytest.mark.slow
def test_the_command_prints_both(tmp_path: Path) -> None:
    """The warning twice: at the start, and at the end, where it is seen."""
    where = pictures(tmp_path / "data", "a")
    overrides = ("data.name=folder", where, "evals.test.split=test", "total_steps=1")
    overrides = (*overrides, "optim.warmup_steps=0", "checkpoint.best=none")
    args = [f"--config={cli.EVERYTHING}", *(f"--config.{o}" for o in overrides)]
    output = cli.run(*args, f"--workdir={tmp_path}/run")
    assert output.count("WARNING: all 18 training images are of one class, a") == 2
    assert "train is 0.9 of each class (18 images), test 0.1 (2)" in output
