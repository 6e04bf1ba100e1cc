"""The twelve runs have the losses that they have always had, from any state on.

Bits differ between kinds of processors, losses to 1e-5 do not. They change when the
arithmetic changes on purpose, and the changelog says why; then

    python -m tests.net.test_net

writes them again. The archives hold workdirs that the first version was stopped in,
which later ones must load and go on from. They are never written again.
"""

import json
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest

from tests import cli
from tests.net import compare, data, recipe

LOSSES = Path(__file__).parent / "losses.json"
STOPPED = Path(__file__).parent / "stopped"

Losses = dict[str, dict[str, float]]  # by step, then by name


def losses(workdir: Path) -> Losses:
    return {
        str(line["step"]): {k: x for k, x in line.items() if k.endswith("/loss")}
        for line in cli.metric_lines(workdir)
    }


def assert_same(found: Losses, name: str) -> None:
    expected = json.loads(LOSSES.read_text())[name]
    assert list(found) == list(expected) == [str(i + 1) for i in range(recipe.STEPS)]
    for step, values in expected.items():
        assert set(found[step]) == set(values)
        for key, value in values.items():
            np.testing.assert_allclose(
                found[step][key], value, rtol=1e-5, err_msg=f"step {step}, {key}"
            )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the data, the first run and its weights."""
    root = tmp_path_factory.mktemp("net")
    compare.train_all(cli.ROOT, root / "runs", [])
    return root / "runs"


@pytest.mark.slow
def test_the_first_has_its_losses(root: Path) -> None:
    assert_same(losses(root / recipe.FIRST), recipe.FIRST)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in recipe.RUNS if n != recipe.FIRST])
def test_the_others_have_theirs(name: str, root: Path) -> None:
    compare.train(cli.ROOT, root, name)
    assert_same(losses(root / name), name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(p.name[:-7] for p in STOPPED.glob("*.tar.xz")))
def test_a_run_that_an_older_version_began(name: str, tmp_path: Path) -> None:
    data.write(tmp_path / "data")
    with tarfile.open(STOPPED / f"{name}.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    before = cli.metric_lines(tmp_path / name)[-1]["step"]
    assert before < recipe.STEPS
    config = f"--config={compare.RECIPE}:{name},{tmp_path}/data"
    output = compare.command(
        cli.ROOT, "vit_jax.main", config, f"--workdir={tmp_path / name}"
    )
    assert "Goes on from step" in output
    assert_same(losses(tmp_path / name), name)


def test_a_difference_is_told() -> None:
    """Of one bit of the weights, the rest, the metrics, or a record."""
    same = compare.Outcome({"params/a": "x"}, ["y"], [{"step": 1, "l": 2.0}], {"e": 3})
    assert compare.differences(same, same) == []
    for other in (
        same._replace(params={"params/a": "z"}),
        same._replace(params={"params/b": "x"}),
        same._replace(rest=["z"]),
        same._replace(metrics=[{"step": 1, "l": 2.1}]),
        same._replace(metrics=[]),
        same._replace(records={"e": 4}),
    ):
        assert compare.differences(same, other) != []


def write_losses() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "runs"
        compare.train_all(cli.ROOT, root, list(recipe.RUNS))
        found = {name: losses(root / name) for name in recipe.RUNS}
    LOSSES.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(write_losses())
