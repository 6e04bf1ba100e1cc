"""What stands in the picture of a sweep, read back from matplotlib."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from vit_jax.launch import job
from vit_jax.launch.sweep import picture
from vit_jax.launch.sweep.table import Row, ranked
from vit_jax.launch.sweep.trials import Status, Trial

METRIC = "test/accuracy"


def row(value: float, state: str = "finished", **parameters: Any) -> Row:
    trial = Trial("name", parameters, job.Job("c.py", "w"), {}, Path("log.txt"))
    return Row(trial, Status(state, last=value, best=value))


ROWS = ranked(
    [
        row(0.5, rate=1e-4, pool="gap", depth=2),
        row(0.7, rate=1e-3, pool="token", depth=2),
        row(0.8, rate=1e-3, pool="gap", depth=2),
        row(float("nan"), "diverged", rate=1e-1, pool="token", depth=2),
    ],
    METRIC,
)


def drawn(key: str) -> tuple[Any, dict[str, Any]]:
    """The panel of a parameter, and what it holds by label."""
    axes = Figure().subplots()
    picture.panel(axes, ROWS, key)
    return axes, dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))


def test_numbers_over_decades() -> None:
    axes, marks = drawn("rate")
    assert axes.get_xscale() == "log"
    points = np.asarray(marks["trial"].get_offsets())
    assert sorted(map(tuple, points)) == [(1e-4, 0.5), (1e-3, 0.7), (1e-3, 0.8)]
    assert tuple(np.asarray(marks["best trial"].get_offsets())[0]) == (1e-3, 0.8)
    assert list(marks["mean"].get_xdata()) == [1e-4, 1e-3]
    assert list(marks["mean"].get_ydata()) == pytest.approx([0.5, 0.75])
    assert marks["mean"].get_linestyle() == "-"
    # What has diverged has a place, but no value.
    assert np.asarray(marks["diverged or failed"].get_offsets())[0][0] == 1e-1


def test_names_stand_side_by_side() -> None:
    axes, marks = drawn("pool")
    assert axes.get_xscale() == "linear"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["gap", "token"]
    points = np.asarray(marks["trial"].get_offsets())
    assert sorted(map(tuple, points)) == [(0, 0.5), (0, 0.8), (1, 0.7)]
    assert marks["mean"].get_linestyle() == "None"  # nothing lies between two names


def test_a_panel_for_each_parameter_that_varies(tmp_path: Path) -> None:
    assert picture.varying(ROWS) == ["rate", "pool"]
    assert picture.varying(ROWS[:1]) == ["rate", "pool", "depth"]
    picture.draw(ROWS, METRIC, "title", tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
