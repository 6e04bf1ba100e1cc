"""Evaluation of weights alone, where there is less than training has."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath

import vit_jax
from tests import cli
from tests.test_class_names import COLOURS, write_colours
from vit_jax import convert

RECIPE = "tests/recipes/colours.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """A run whose training images are gone, and its last results."""
    root = tmp_path_factory.mktemp("evaluating")
    write_colours(root / "data" / "train", 16, COLOURS)
    write_colours(root / "data" / "test", 4, COLOURS)
    changes: dict[str, Any] = {
        "data.data_dir": str(root / "data"),
        "evals.other": None,
        "total_steps": None,
        "total_epochs": 10.0,
        "optim.warmup_steps": 39,  # would not fit into fewer steps
    }
    results = vit_jax.train(str(cli.ROOT / RECIPE), root / "run", changes)
    shutil.rmtree(root / "data" / "train")
    return root / "run", results


def of_test(results: dict[str, float]) -> dict[str, float]:
    return {name: x for name, x in results.items() if name.startswith("test/")}


def test_without_the_training_data(run, capsys: pytest.CaptureFixture[str]) -> None:
    """The number of classes, their names and their order are those of the workdir."""
    workdir, results = run
    assert vit_jax.evaluate(None, workdir) == of_test(results)
    assert "training images" not in capsys.readouterr().out
    with pytest.raises(vit_jax.errors.UserError, match='no split "train"'):
        vit_jax.train(None, workdir, {"total_epochs": 11.0})


def test_of_fewer_classes_by_name(run, tmp_path: Path) -> None:
    workdir, _ = run
    write_colours(tmp_path / "few" / "test", 4, ("270", "90"))
    few = {"data.data_dir": str(tmp_path / "few")}
    found = vit_jax.evaluate(None, workdir, few)
    assert found["test/examples"] == 8
    assert found["test/accuracy"] == 1


def test_of_weights_by_their_path(run, tmp_path: Path) -> None:
    """Of a run, and of a file, whose head says how many classes there are."""
    workdir, results = run
    recipe = str(cli.ROOT / RECIPE)
    changes = {
        "evals.other": None,
        "data.data_dir": str(workdir.parent / "data"),
        "init_from": str(workdir),
    }
    assert vit_jax.evaluate(recipe, tmp_path / "a", changes) == of_test(results)
    assert convert.main(["", str(workdir), str(tmp_path / "b.npz"), "--to=npz"]) == 0
    changes["init_from"] = str(tmp_path / "b.npz")
    found = vit_jax.evaluate(recipe, tmp_path / "b", changes)
    assert found == pytest.approx(of_test(results), rel=1e-6)
    changes["model.num_classes"] = "5"
    with pytest.raises(vit_jax.errors.UserError, match=r"head/bias: \(4,\)"):
        vit_jax.evaluate(recipe, tmp_path / "c", changes)


def test_of_weights_without_a_head(run, tmp_path: Path) -> None:
    """Their features can be evaluated; classes they do not know."""
    workdir, _ = run
    assert (
        convert.main(["", str(workdir), str(tmp_path / "whole.npz"), "--to=npz"]) == 0
    )
    arrays = dict(np.load(tmp_path / "whole.npz"))
    np.savez(
        tmp_path / "body.npz",
        **{name: x for name, x in arrays.items() if not name.startswith("head/")},
    )
    changes = {
        "evals.other": None,
        "evals.near.type": "knn",
        "evals.near.k": "1",
        "evals.near.k_sweep": "1,",
        "evals.near.train_split": "test",
        "data.data_dir": str(workdir.parent / "data"),
        "init_from": str(tmp_path / "body.npz"),
    }
    recipe = str(cli.ROOT / RECIPE)
    with pytest.raises(
        vit_jax.errors.UserError, match="test: the weights have no head"
    ):
        vit_jax.evaluate(recipe, tmp_path / "w", changes)
    found = vit_jax.evaluate(recipe, tmp_path / "w", changes, evals=["near"])
    assert found["near/accuracy"] == 1


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_workdir_that_cannot_be_written(
    code: int,
    run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    """Results are printed and returned. For root, who may write anywhere, an error."""
    workdir, results = run
    if os.geteuid() == 0 or code == errno.EROFS:

        def refuse(path: epath.Path, *_: object, **__: object) -> int:
            raise OSError(code, os.strerror(code), os.fspath(path))

        monkeypatch.setattr(type(epath.Path(workdir)), "write_text", refuse)
        monkeypatch.setattr(type(epath.Path(workdir)), "write_bytes", refuse)
    else:
        workdir.chmod(0o555)
        request.addfinalizer(lambda: workdir.chmod(0o755))
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    assert vit_jax.evaluate(None, workdir) == of_test(results)
    output = capsys.readouterr().out
    assert f"Results are printed, not written: [Errno {code}]" in output
    assert "test/accuracy: 1.0" in output and "written to" not in output
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before
