"""The names of results that a config promises are those that its run logs."""

from pathlib import Path

import pytest

from tests import cli
from vit_jax import config
from vit_jax.config import results

EVERYTHING = str(cli.ROOT / cli.EVERYTHING)


def names_of(*changes: tuple[str, str], prefix: str = "test/") -> list[str]:
    found = results.names(config.load(EVERYTHING, changes).to_dict())
    return [name.removeprefix(prefix) for name in found if name.startswith(prefix)]


@pytest.mark.slow
def test_all_that_a_run_logs(tmp_path: Path) -> None:
    """With an average of the parameters, bad examples and every kind of evaluation."""
    changes = [
        ("total_steps", "2"),
        ("optim.warmup_steps", "0"),
        ("checkpoint.best", "none"),
        ("data.on_bad_example", "skip"),
        ("evals.few.type", "fewshot"),
        ("evals.few.shots", "1,3"),
        ("evals.near.type", "knn"),
        ("evals.probe.type", "linear_probe"),
        ("evals.probe.c_sweep", "1.0,"),
        *((f"evals.{e}.train_split", "train[:200]") for e in ("few", "near", "probe")),
        *((f"evals.{e}.split", "test[:64]") for e in ("test", "few", "near", "probe")),
    ]
    flags = [f"--config.{key}={text}" for key, text in changes]
    cli.run(f"--config={EVERYTHING}", f"--workdir={tmp_path}", *flags)
    logged = set(cli.metric_lines(tmp_path)[-1]) - {"step"}
    assert logged == set(results.names(config.load(EVERYTHING, changes).to_dict()))


@pytest.mark.parametrize(
    "changes, there, not_there",
    [
        ([("evals.test.classes", "0,1,2")], "accuracy", "top5_accuracy"),
        ([("model.num_classes", "10")], "top5_accuracy", "mAP"),
        ([("loss.name", "sigmoid_xent")], "mAP", "bad_examples"),
        ([("ema", "none")], "loss", "raw/loss"),
        ([("evals.test.data.on_bad_example", "skip")], "raw/bad_examples", "mAP"),
    ],
)
def test_names_follow_the_config(changes, there: str, not_there: str) -> None:
    found = names_of(*changes)
    assert there in found and not_there not in found


def test_names_of_corruptions() -> None:
    of_c = ("evals.c.type", "corruptions")
    assert "mean_corruption_error" in names_of(of_c, prefix="c/")
    alone = ("evals.c.relative_to_alexnet", "false")
    assert "mean_corruption_error" not in names_of(of_c, alone, prefix="c/")
