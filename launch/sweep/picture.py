"""The picture of a sweep: the metric at the end against each parameter."""

import dataclasses
import importlib.util
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vit_jax.launch.sweep.table import SEED, Row, parameters
from vit_jax.launch.sweep.trials import shown

COLUMNS = 3

# How things are drawn, lowest first.
MEANS: dict[str, Any] = {"color": "#8a9099", "linewidth": 1.2, "marker": "_"}
MEANS |= {"markersize": 16, "zorder": 1}
TRIALS: dict[str, Any] = {"color": "#2f6db5", "s": 36, "alpha": 0.75}
TRIALS |= {"edgecolors": "white", "linewidths": 0.6, "zorder": 2}
BEST: dict[str, Any] = {"facecolors": "none", "edgecolors": "#e8710a"}
BEST |= {"s": 110, "linewidths": 1.8, "zorder": 3}
FAILED: dict[str, Any] = {"color": "#c5221f", "marker": "x", "s": 36}


def is_possible() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(rows: Sequence[Row], metric: str, title: str, path: Path) -> None:
    """Writes the picture: a panel a parameter, a dot a trial.

    Args:
      rows: ranked, so that the first is the best.
      metric: its name.
      title: above all panels.
      path: of a PNG.
    """
    from matplotlib.figure import Figure

    keys = varying(rows)
    columns = min(COLUMNS, len(keys))
    lines = math.ceil(len(keys) / columns)
    width = 1.2 + 4.2 * columns
    figure = Figure(figsize=(max(width, 6.5), 0.9 + 3.6 * lines), layout="constrained")
    figure.suptitle(title, fontsize=11)
    grid = figure.subplots(lines, columns, sharey=True, squeeze=False)
    for axes, key in zip(grid.flat, keys, strict=False):
        panel(axes, rows, key)
    for axes in grid.flat[len(keys) :]:
        axes.set_visible(False)
    for line in grid:
        line[0].set_ylabel(metric)
    handles: dict[str, Any] = {}
    for axes in grid.flat:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=len(handles),
        frameon=False,
        fontsize=9,
    )
    figure.savefig(path, dpi=150)


def varying(rows: Sequence[Row]) -> list[str]:
    """The parameters that have several values; all of them if none has."""
    keys = parameters(rows)
    found = [k for k in keys if len({repr(_value(row, k)) for row in rows}) > 1]
    return found or keys


def panel(axes: Any, rows: Sequence[Row], key: str) -> None:
    """One parameter: trials as dots, the mean of each repeated value as a line."""
    rows = [row for row in rows if key in row.trial.parameters]
    found = axis([_value(row, key) for row in rows])
    good = [
        (x, row.status.last)
        for x, row in zip(found.x, rows, strict=True)
        if row.status.state == "finished" and not math.isnan(row.status.last)
    ]
    bad = [
        x
        for x, row in zip(found.x, rows, strict=True)
        if row.status.state in ("diverged", "failed")
    ]
    axes.set_xscale("log" if found.log else "linear")
    if good:
        mean_line(axes, good, "-" if found.ordered and key != SEED else "none")
        axes.scatter(*zip(*good, strict=True), label="trial", **TRIALS)
        axes.scatter(*good[0], label="best trial", **BEST)
    if bad:  # they have no value to stand at
        bottom = {"transform": axes.get_xaxis_transform(), **FAILED}
        axes.scatter(bad, [0.03] * len(bad), label="diverged or failed", **bottom)
    axes.set_xlabel(key)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.08, y=0.12)
    if found.ticks:
        axes.set_xticks(list(found.ticks), list(found.ticks.values()))
        axes.minorticks_off()
        if max(map(len, found.ticks.values())) > 8:
            axes.tick_params(axis="x", rotation=30)


def mean_line(axes: Any, points: Sequence[tuple[float, float]], style: str) -> None:
    """The mean at each position, if some position has several points."""
    means = {x: statistics.fmean(v for u, v in points if u == x) for x, _ in points}
    if len(means) < len(points):
        x, y = zip(*sorted(means.items()), strict=True)
        axes.plot(x, y, label="mean", linestyle=style, **MEANS)


@dataclasses.dataclass(frozen=True)
class Axis:
    """Where the values of a parameter stand.

    Attributes:
      x: of each value.
      log: whether the axis is logarithmic.
      ordered: whether there is something between two values.
      ticks: labels by position; {} leaves them to matplotlib.
    """

    x: list[float]
    log: bool
    ordered: bool
    ticks: dict[float, str]


FEW = 8  # values that all get a tick


def axis(values: Sequence[Any]) -> Axis:
    """Numbers where they are, over decades on a log axis; all else side by side.

    >>> axis([1e-3, 1e-4]).log, axis([1, 2]).log, axis(["b", "a", "b"]).x
    (True, False, [1.0, 0.0, 1.0])
    """
    if all(type(v) in (int, float) and math.isfinite(v) for v in values):
        log = min(values) > 0 and max(values) / min(values) >= 10
        ticks = {float(v): f"{v:g}" for v in sorted(set(values))}
        few = ticks if len(ticks) <= FEW else {}
        return Axis([float(v) for v in values], log, True, few)
    names = sorted({shown(v) for v in values})
    return Axis(
        [float(names.index(shown(v))) for v in values],
        False,
        False,
        {float(i): name for i, name in enumerate(names)},
    )


def _value(row: Row, key: str) -> Any:
    return row.trial.parameters[key] if key in row.trial.parameters else None
