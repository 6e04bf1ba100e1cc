"""Learning curves: where the points of metrics.jsonl are in the picture."""

from typing import Any

import numpy as np
import pytest
from matplotlib import ticker

from vit_jax import curves

LEFT, TOP, WIDTH, HEIGHT = 80, 44 + 34, 760, 280  # of the axes of the first panel
BLUE, ORANGE = (0, 114, 178), (213, 94, 0)


def places(picture: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """(row, column) of the pixels of a colour in the axes of the first panel."""
    axes = picture[TOP : TOP + HEIGHT, LEFT : LEFT + WIDTH]
    return np.argwhere((axes == color).all(axis=-1))


def test_points_are_where_they_belong() -> None:
    steps = range(0, 101, 10)
    lines = [{"step": s, "train/loss": 1 + s / 100, "test/loss": 2.0} for s in steps]
    picture = curves.draw(lines, title="a run")
    assert picture is not None and picture.dtype == np.uint8
    low, high, end = 0.95, 2.05, 101.0  # a margin of 5%, and room for the last dot
    found = places(picture, BLUE)
    rows = HEIGHT * (high - (1 + found[:, 1] / WIDTH * end / 100)) / (high - low)
    assert len(found) > WIDTH and np.abs(found[:, 0] - rows).max() < 3
    row = HEIGHT * (high - 2.0) / (high - low)
    assert np.abs(places(picture, ORANGE)[:, 0] - row).max() < 5


def test_what_is_of_single_batches_is_smoothed_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=500)
    lines: list[dict[str, Any]] = [
        {"step": s, "train/loss": 5 + x} for s, x in enumerate(noise)
    ]
    picture = curves.draw(lines, title="")
    assert picture is not None
    spread = np.ptp(places(picture, BLUE)[:, 0])
    rates = [{"step": s, "train/learning_rate": 5 + x} for s, x in enumerate(noise)]
    other = curves.draw(rates, title="")
    assert other is not None
    assert spread < 0.5 * np.ptp(places(other, BLUE)[:, 0])
    # A box filter, as NumPy has it.
    mean = np.convolve(noise, np.ones(21) / 21, mode="valid")
    np.testing.assert_allclose(curves.smoothed(noise, 21)[10:-10], mean)


@pytest.mark.parametrize(
    "lines, panels",
    [
        ([], 0),
        ([{"step": 1}], 0),
        ([{"step": 1, "train/loss": "NaN", "timing/eta_s": 3.0}], 0),
        ([{"step": 1, "train/loss": 2.0}], 1),
        ([{"step": 0, "train/loss": 0.0}, {"step": 1, "train/loss": "Infinity"}], 1),
        ([{"step": 3, "a/accuracy": 1.0, "b/25shot": 0.5, "c/mAP": 1}], 1),
        ([{"step": 10**9, f"e{i}/accuracy": 0.1} for i in range(40)], 1),
        ([{"step": s, "train/loss": 1e30 * s, "t/accuracy": 0} for s in (1, 2)], 2),
        (
            [
                {
                    "step": 1,
                    "train/loss": 1,
                    "t/accuracy": 1,
                    "train/learning_rate": 0,
                    "t/raw/accuracy": 1,
                    "t/examples": 5,
                }
            ],
            3,
        ),
    ],
)
def test_panels(lines: list[dict[str, Any]], panels: int) -> None:
    """No run is too short, too long or too wild for a picture."""
    picture = curves.draw(lines, title="run")
    if panels == 0:
        assert picture is None
        return
    assert picture is not None
    assert len(picture) == 44 + panels * (34 + HEIGHT + 26) + 33


@pytest.mark.parametrize(
    "low, high", [(0, 1), (-0.3, 0.7), (0.91, 0.92), (0, 1e-5), (3, 40000), (7, 7.4)]
)
def test_ticks(low: float, high: float) -> None:
    """Those that matplotlib has too, for a like number of them."""
    found = curves.ticks(low, high, 5)
    assert 3 <= len(found) <= 7
    for count in range(3, 10):
        locator = ticker.MaxNLocator(count, steps=[1, 2, 5, 10])
        theirs = np.array(locator.tick_values(low, high))
        margin = 1e-6 * (high - low)
        theirs = theirs[(theirs >= low - margin) & (theirs <= high + margin)]
        if len(theirs) == len(found):
            np.testing.assert_allclose(found, theirs, atol=margin)
            break
    else:
        pytest.fail(f"{found} are none of matplotlib's")
    texts = [text for _, text in curves.labelled(found)]
    assert len({float(text.replace(",", "")) for text in texts}) == len(texts)


def test_what_is_no_number_is_left_out() -> None:
    """A damaged file of metrics does not end a run at its last words."""
    odd = {"step": 1, "a": [1], "b": None, "c": 10**400, "d": "NaN", "e": {}, "f": 2}
    assert list(curves.read([odd])) == ["f"]
