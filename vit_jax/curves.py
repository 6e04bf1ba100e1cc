"""A picture of a run's learning curves, of the lines of metrics.jsonl."""

import math
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from vit_jax import lettering, metrics
from vit_jax.lettering import Color

FILE = "curves.png"

# Panels from top to bottom, and which scalars are curves of each. What an evaluation
# has of its averaged and of its raw parameters (NAME/raw/...) would be the same twice.
_PANELS = {
    "loss": r"train/loss|(?!timing/)[^/]+/loss",
    "accuracy": r"train/accuracy|(?!timing/)[^/]+/(accuracy|mAP|\d+shot|\d+nn)",
    "learning rate": r"train/learning_rate",
}
_OF_BATCHES = ("train/loss", "train/accuracy")
# Okabe and Ito's colours, which people who see few colours can tell apart.
_COLORS: tuple[Color, ...] = (
    *((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167)),
    *((230, 159, 0), (86, 180, 233), (90, 90, 90), (0, 0, 0)),
)
_WIDTH, _HEIGHT = 760, 280  # of a panel's axes, pixels
_LEFT, _RIGHT = 80, 290  # room for numbers, and for what the curves are
_TOP, _BOTTOM = 34, 26
_TEXT, _TITLE = 11, 16
_GRID = (225, 225, 225)
_SMOOTHED = 50  # points, from which on a curve of single batches is smoothed
_SHIFT = 4  # binary digits of a pixel's fraction


class Curve(NamedTuple):
    """One scalar: steps and finite values, [n]."""

    steps: np.ndarray
    values: np.ndarray


def draw(lines: Sequence[Mapping[str, Any]], *, title: str) -> np.ndarray | None:
    """Loss, accuracies and learning rate against the step, one panel below the other.

    What is of single batches is drawn pale, and above it a running mean. Evaluations
    have a dot for each.

    Args:
      lines: of metrics.jsonl, each with its "step".
      title: above it.

    Returns:
      uint8 [h, w, 3]; None where no line has a scalar that it shows.
    """
    curves = read(lines)
    last = max((int(curve.steps[-1]) for curve in curves.values()), default=0)
    panels = []
    for name, pattern in _PANELS.items():
        chosen = {n: c for n, c in curves.items() if re.fullmatch(pattern, n)}
        if chosen:
            panels.append(_panel(name, chosen, last))
    if not panels:
        return None
    head = np.full((2 * _TITLE + 12, panels[0].shape[1], 3), 255, np.uint8)
    lettering.write(head, title, (16, 2 * _TITLE), _TITLE, bold=True)
    foot = np.full((3 * _TEXT, head.shape[1], 3), 255, np.uint8)
    lettering.write_centered(foot, "step", (_LEFT + _WIDTH // 2, _TEXT), _TEXT)
    return np.concatenate([head, *panels, foot])


def read(lines: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
    """All scalars by name, those of training first, without what is not finite.

    >>> read([{"step": 1, "a": 2.0, "b": "NaN"}, {"step": 3, "a": 4}])["a"].values
    array([2., 4.])
    """
    found: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for name, value in line.items():
            number = isinstance(value, int | float)
            if name != "step" and number and abs(value) < sys.float_info.max:
                found.setdefault(name, []).append((line["step"], float(value)))
    names = sorted(found, key=metrics.by_number)
    names.sort(key=lambda name: not name.startswith("train/"))
    return {
        name: Curve(*(np.array(x) for x in zip(*found[name], strict=True)))
        for name in names
    }


def smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """The mean over as much of a window around each value as there is.

    >>> smoothed(np.array([1.0, 4.0, 1.0, 4.0]), 3).tolist()
    [2.5, 2.0, 3.0, 2.5]
    """
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    first = np.maximum(places - window // 2, 0)
    end = np.minimum(places + window // 2 + 1, len(values))
    return (sums[end] - sums[first]) / (end - first)


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers in a range: multiples of 1, 2 or 5 times 10^n.

    >>> ticks(0.13, 0.92, 5)
    [0.2, 0.4, 0.6, 0.8]
    """
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first, end = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{n * step:.10g}") for n in range(first, end + 1)]


def labelled(values: Sequence[float]) -> list[tuple[float, str]]:
    """Numbers, each with a text that has as many digits as the others'.

    >>> labelled([0.0, 0.25, 0.5])
    [(0.0, '0.00'), (0.25, '0.25'), (0.5, '0.50')]
    """
    decimals = max(
        (len(f"{v:.10f}".rstrip("0").partition(".")[2]) for v in values), default=0
    )
    few = decimals <= 5
    return [(v, f"{v:,.{decimals}f}" if few else f"{v:g}") for v in values]


def _panel(name: str, curves: Mapping[str, Curve], last: int) -> np.ndarray:
    """The axes, the curves and what they are."""
    shape = _TOP + _HEIGHT + _BOTTOM, _LEFT + _WIDTH + _RIGHT, 3
    panel = np.full(shape, 255, np.uint8)
    low, high = _range(curves)
    steps = 0.0, 1.01 * max(last, 1)  # so that the last dot is whole
    axes = panel[_TOP : _TOP + _HEIGHT, _LEFT : _LEFT + _WIDTH]
    for tick, text in labelled(ticks(low, high, 5)):
        y = round(_HEIGHT * (high - tick) / (high - low))
        if 0 < y < _HEIGHT:
            axes[y] = _GRID
        left = _LEFT - 8 - lettering.width(text, _TEXT)
        lettering.write(panel, text, (left, _TOP + y + _TEXT // 2), _TEXT)
    for tick in filter(float.is_integer, ticks(*steps, 6)):
        x = round(_WIDTH * tick / steps[1])
        if 0 < x < _WIDTH:
            axes[:, x] = _GRID
        center = _LEFT + x, _TOP + _HEIGHT + _TEXT + 4
        lettering.write_centered(panel, f"{tick:,.0f}", center, _TEXT)
    for i, (scalar, curve) in enumerate(curves.items()):
        color = _COLORS[i % len(_COLORS)]
        value = _draw_curve(axes, scalar, curve, (*steps, low, high), color)
        if i < _HEIGHT // 20:
            _write_name(panel, i, f"{scalar} {value:#.4g}", color)
    cv2.rectangle(
        panel, (_LEFT, _TOP), (_LEFT + _WIDTH, _TOP + _HEIGHT), lettering.GREY
    )
    lettering.write(panel, name, (_LEFT, _TOP - 10), _TEXT, bold=True)
    return panel


def _range(curves: Mapping[str, Curve]) -> tuple[float, float]:
    """Of the values, with a margin; a few batches far above the others are cut off."""
    lows = [curve.values.min() for curve in curves.values()]
    highs = [
        np.quantile(curve.values, 0.99 if len(curve.values) > _SMOOTHED else 1.0)
        for curve in curves.values()
    ]
    low, high = float(min(lows)), float(max(highs))
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _draw_curve(
    axes: np.ndarray,
    name: str,
    curve: Curve,
    limits: tuple[float, float, float, float],
    color: Color,
) -> float:
    """Draws one curve; returns the value at its end."""
    start, end, low, high = limits
    x = (curve.steps - start) / (end - start) * _WIDTH

    def line(values: np.ndarray, color: Color, thickness: int) -> np.ndarray:
        y = (high - values) / (high - low) * _HEIGHT
        points = np.stack([x, y], axis=-1) * 2**_SHIFT
        points = points.clip(-(2**20), 2**20).round().astype(np.int32)
        cv2.polylines(axes, [points], False, color, thickness, cv2.LINE_AA, _SHIFT)
        return points

    values, training = curve.values, name.startswith("train/")
    if name in _OF_BATCHES and len(values) > _SMOOTHED:
        r, g, b = (255 - (255 - channel) // 3 for channel in color)
        line(values, (r, g, b), 1)
        values = smoothed(values, len(values) // 25)
    points = line(values, color, 2)
    if not training or len(values) == 1:
        for point in points.tolist():
            cv2.circle(axes, point, 3 << _SHIFT, color, cv2.FILLED, cv2.LINE_AA, _SHIFT)
    return float(values[-1])


def _write_name(panel: np.ndarray, i: int, text: str, color: Color) -> None:
    """A line beside the axes: the colour, the name and the last value."""
    x, y = _LEFT + _WIDTH + 16, _TOP + 8 + 20 * i
    cv2.line(panel, (x, y), (x + 20, y), color, 3, cv2.LINE_AA)
    text = lettering.fitted(text, _TEXT, _RIGHT - 60)
    lettering.write(panel, text, (x + 28, y + _TEXT // 2), _TEXT)
