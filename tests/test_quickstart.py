"""The quickstart is as good as it says, within the time that it says."""

import os
import resource
from pathlib import Path

import numpy as np
import pytest

from tests import cli

# All three: VIT_JAX_SEEDS=3 make test-slow PYTEST_ARGS="-k quickstart"
SEEDS = int(os.environ.get("VIT_JAX_SEEDS", "1"))
RANDOM_FOREST = 0.846  # scikit-learn, raw pixels, the same 8,000 and 2,000 images


@pytest.mark.slow
def test_quickstart_beats_a_random_forest(tmp_path: Path) -> None:
    accuracies = []
    for seed in range(SEEDS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        cli.run(
            "--config=configs/quickstart.py",
            f"--workdir={tmp_path}/{seed}",
            f"--config.seed={seed}",
            optimised=True,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        user, system = (
            after.ru_utime - before.ru_utime,
            after.ru_stime - before.ru_stime,
        )
        accuracies.append(cli.metric_lines(tmp_path / str(seed))[-1]["test/accuracy"])
        print(f"seed {seed}: {accuracies[-1]}, {user + system:.0f} CPU-seconds")
    assert np.mean(accuracies) >= RANDOM_FOREST + 0.009


@pytest.mark.campaign
def test_fused_attention_learns_as_the_plain_one(tmp_path: Path) -> None:
    """The kernels, interpreted, in the first 250 steps: the same loss to 1e-3."""
    losses = []
    for attention in ("plain", "fused"):
        cli.run(
            "--config=configs/quickstart.py",
            f"--workdir={tmp_path}/{attention}",
            f"--config.model.attention={attention}",
            "--config.total_epochs=none",
            "--config.total_steps=250",
            "--config.log_every=1",
        )
        lines = cli.metric_lines(tmp_path / attention)
        losses.append([line["train/loss"] for line in lines])
    assert len(losses[0]) == 250
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)
