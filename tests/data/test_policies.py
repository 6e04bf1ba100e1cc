"""What policies choose: magnitudes by hand, distributions by statistical tests.

Seeds are fixed, so nothing is left to chance; a p-value below 1e-3 is a failure.
"""

import collections
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from scipy import stats

from vit_jax.data import policies, sampler
from vit_jax.data.sampler import Stream
from vit_jax.data.transforms import TrainTransform, inception_box

N = 20_000
SIZE = (224, 224)


def steps_of(name, n=N, size=SIZE, **keys):
    """The steps of n examples; draws as in training."""
    policy, count = policies.make(name, **{"num_layers": 2, "magnitude": 9} | keys)
    draws = sampler.uniforms(7, Stream.AUGMENT, np.arange(n), count)
    return [policy(row, size) for row in draws]


def assert_uniform(counts, categories):
    assert len(counts) == categories
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def pvalue(result: Any) -> float:
    return result.pvalue


def sides(steps):
    """How often an amount is below and above its middle."""
    return Counter(step.magnitude > (step.name in ENHANCEMENTS) for step in steps)


ENHANCEMENTS = ("brightness", "color", "contrast", "sharpness")
GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")


def strongest(size=SIZE):
    """Torchvision's tables at their right ends, in words: its documentation's."""
    height, width = size
    return {
        "shear_x": 0.3,
        "shear_y": 0.3,
        "translate_x": 150 / 331 * width,
        "translate_y": 150 / 331 * height,
        "rotate": 30.0,
        **dict.fromkeys(ENHANCEMENTS, 0.9),
        "posterize": 4,
        "solarize": 0.0,
    }


@pytest.mark.parametrize("magnitude", [0, 9, 10, 30])
def test_magnitudes_of_randaugment(magnitude):
    found: dict[str, set[float]] = {}
    for first, second in steps_of("randaugment", 2000, (100, 200), magnitude=magnitude):
        for step in (first, second):
            found.setdefault(step.name, set()).add(step.magnitude)
    ends = strongest((100, 200))
    for name, values in found.items():
        share = magnitude / 30
        if name in ENHANCEMENTS:
            want = {1 - 0.9 * share, 1 + 0.9 * share}
        elif name in GEOMETRIC:
            want = {-ends[name] * share, ends[name] * share}
        elif name == "posterize":
            want = {{0: 8, 9: 7, 10: 7, 30: 4}[magnitude]}
        elif name == "solarize":
            want = {255 - 8.5 * magnitude}
            assert values == want  # exactly: thresholds may be whole numbers
        else:
            want = {0}
        assert sorted(values) == pytest.approx(sorted(want)), name


def test_choices_of_randaugment():
    chosen = steps_of("randaugment")
    assert_uniform(Counter(step.name for row in chosen for step in row), 14)
    # Layers are independent.
    assert_uniform(Counter((a.name, b.name) for a, b in chosen), 14**2)
    signed = [s for row in chosen for s in row if s.name in ENHANCEMENTS + GEOMETRIC]
    assert_uniform(sides(signed), 2)
    # Sign and operation too.
    by_name = [sides([s for s in signed if s.name == name]) for name in GEOMETRIC]
    table = [[count[False], count[True]] for count in by_name]
    assert pvalue(stats.chi2_contingency(table)) > 1e-3


@pytest.mark.parametrize("layers", [1, 3])
def test_number_of_layers(layers):
    assert {len(s) for s in steps_of("randaugment", 9, num_layers=layers)} == {layers}


def test_randaugment_tf():
    """Magnitudes of big_vision's `level_to_arg` with its constants 40 and 100."""
    chosen = steps_of("randaugment_tf", magnitude=10)
    flat = [step for row in chosen for step in row]
    assert_uniform(Counter(step.name for step in flat), 16)
    assert_uniform(sides([s for s in flat if s.name in GEOMETRIC]), 2)
    at = {step.name: abs(step.magnitude) for step in flat}
    assert at == pytest.approx(
        dict.fromkeys(("autocontrast", "equalize", "invert"), 0)
        | {"rotate": 30, "posterize": 4, "solarize": 256, "solarize_add": 110}
        | dict.fromkeys(ENHANCEMENTS, 1.9)
        | {"shear_x": 0.3, "shear_y": 0.3, "translate_x": 100, "translate_y": 100}
        | {"cutout": 40}
    )
    weak = {s.name: s.magnitude for r in steps_of("randaugment_tf", 999) for s in r}
    assert (weak["posterize"], weak["solarize"], weak["solarize_add"]) == (3, 230, 99)
    assert weak["color"] == pytest.approx(1.72)
    # Cutout: 40 pixels on each side of a uniform pixel, cut off at the image's edges.
    tops = np.array([s.box.top for s in flat if s.box is not None])
    heights = np.array([s.box.height for s in flat if s.box is not None])
    assert set(heights[(tops > 0) & (tops < 224 - 80)].tolist()) == {80}
    assert (tops + heights).max() == 224 and heights.min() == 40
    inner = tops[(tops > 0) & (heights == 80)] + 40
    assert stats.kstest(inner, stats.uniform(41, 224 - 81).cdf).pvalue > 1e-3
    lefts = np.array([s.box.left for s in flat if s.box is not None])
    assert abs(np.corrcoef(tops, lefts)[0, 1]) < 4 / math.sqrt(len(tops))


def test_trivialaugment():
    chosen = [row[0] for row in steps_of("trivialaugment", 4 * N)]
    assert_uniform(Counter(step.name for step in chosen), 14)
    ends = {"shear_x": 0.99, "translate_y": 32, "rotate": 135, "color": 0.99}
    for name, end in ends.items():
        values = [
            s.magnitude - (name in ENHANCEMENTS) for s in chosen if s.name == name
        ]
        bins = Counter(round(abs(v) / end * 30, 3) for v in values)
        assert_uniform(bins, 31)
        assert set(bins) == set(range(31))
        assert_uniform(Counter(v > 0 for v in values if v), 2)
    solarized = Counter(s.magnitude for s in chosen if s.name == "solarize")
    assert set(solarized) == {255 - 8.5 * i for i in range(31)}
    assert_uniform(solarized, 31)
    bits = Counter(s.magnitude for s in chosen if s.name == "posterize")
    assert set(bits) == set(range(2, 9))
    shares = [3, 5, 5, 5, 5, 5, 3]  # of 31 magnitudes rounded to 6 bits
    expected = np.array(shares) / 31 * sum(bits.values())
    assert stats.chisquare([bits[b] for b in range(8, 1, -1)], expected).pvalue > 1e-3


def test_autoaugment():
    """Of the 25 pairs, five stand there twice; each step has its own probability."""
    chosen = steps_of("autoaugment")
    expected: dict[tuple[str, ...], float] = collections.defaultdict(float)
    for (a, p, _), (b, q, _) in policies._IMAGENET:
        expected[(a, b)] += p * q
        expected[(a,)] += p * (1 - q)
        expected[(b,)] += (1 - p) * q
        expected[()] += (1 - p) * (1 - q)
    found = Counter(tuple(step.name for step in row) for row in chosen)
    kinds = [k for k, share in expected.items() if share > 0]
    assert set(found) == set(kinds)
    counts = np.array([expected[k] for k in kinds]) / 25 * N
    assert stats.chisquare([found[k] for k in kinds], counts).pvalue > 1e-3
    # "Rotate 0.8 8 Color 0.4 0" is in the paper's table; 8 of 9 of 30 degrees.
    rounded = {tuple((s.name, round(s.magnitude, 3)) for s in row) for row in chosen}
    assert (("rotate", 26.667), ("color", 1.0)) in rounded
    assert (("shear_x", -0.167), ("equalize", 0)) in rounded
    assert (("solarize", 113.333), ("autocontrast", 0)) in rounded
    assert_uniform(sides([s for r in chosen for s in r if s.name == "rotate"]), 2)


def test_three_augment():
    chosen = [row[0] for row in steps_of("three_augment")]
    assert_uniform(Counter(step.name for step in chosen), 3)
    assert {s.magnitude for s in chosen if s.name == "solarize"} == {128}
    sigmas = [s.magnitude for s in chosen if s.name == "gaussian_blur"]
    assert stats.kstest(sigmas, stats.uniform(0.1, 1.9).cdf).pvalue > 1e-3


def test_color_jitter():
    draws = sampler.uniforms(7, Stream.JITTER, np.arange(N), 8)
    jitter = (0.4, 0.3, 1.5, 0.1)
    rows = [policies.color_jitter(row, jitter) for row in draws]
    assert_uniform(Counter(tuple(step.name for step in row) for row in rows), 24)
    for name, low, high in (
        ("brightness", 0.6, 1.4),
        ("contrast", 0.7, 1.3),
        ("color", 0, 2.5),
        ("hue", -0.1, 0.1),
    ):
        values = [s.magnitude for row in rows for s in row if s.name == name]
        assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-3
    # The order tells nothing about the factors.
    firsts = [row[0].magnitude for row in rows if row[0].name == "brightness"]
    assert stats.kstest(firsts, stats.uniform(0.6, 0.8).cdf).pvalue > 1e-3
    one = policies.color_jitter(draws[0], (0, 0.1, 0, 0))
    assert [step.name for step in one] == ["contrast"]


def timm_boxes(n, size):
    """The rejection loop of timm's RandomErasing, with NumPy's own numbers."""
    random = np.random.default_rng(0)
    boxes = []
    for _ in range(n):
        for _ in range(10):
            area = random.uniform(0.02, 1 / 3) * size[0] * size[1]
            ratio = math.exp(random.uniform(math.log(0.3), math.log(1 / 0.3)))
            h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if w < size[1] and h < size[0]:
                top = random.integers(0, size[0] - h, endpoint=True)
                left = random.integers(0, size[1] - w, endpoint=True)
                boxes.append((top, left, h, w))
                break
    return np.array(boxes)


@pytest.mark.parametrize("size", [(224, 224), (60, 200)])
def test_erasing_boxes(size):
    count = 2 + 2 * policies.ERASING_ATTEMPTS
    draws = sampler.uniforms(7, Stream.ERASING, np.arange(N), count)
    boxes = [policies.erasing_box(row, size) for row in draws]
    got = np.array([box for box in boxes if box is not None], float)
    want = timm_boxes(N, size).astype(float)
    assert len(want) == pytest.approx(len(got), abs=4 * math.sqrt(N) * 0.05)
    for statistic in (
        lambda b: b[:, 2] * b[:, 3],
        lambda b: b[:, 2] / b[:, 3],
        lambda b: b[:, 0] / (size[0] - b[:, 2]),
        lambda b: b[:, 1] / (size[1] - b[:, 3]),
        lambda b: b[:, 0] + b[:, 3],
    ):
        assert pvalue(stats.ks_2samp(statistic(got), statistic(want))) > 1e-3


def test_nothing_is_erased_where_no_box_fits():
    draws = sampler.uniforms(7, Stream.ERASING, np.arange(50), 22)
    boxes = [policies.erasing_box(row, (1, 1)) for row in draws]
    assert all(box is None or box.height * box.width == 0 for box in boxes)
    assert policies.erasing_box(np.full(22, 0.1), (30, 40)) is not None
    assert policies.erasing_box(np.full(22, 1.0), (3, 40)) is None


def test_crops_and_flips():
    """Area and aspect ratio by Kolmogorov and Smirnov, where every box fits."""
    draws = TrainTransform().draw(7, np.arange(N))
    boxes = np.array(
        [inception_box(9999, 9999, row, area=(0.1, 0.5)) for row in draws.crop], float
    )
    share = boxes[:, 2] * boxes[:, 3] / 9999**2
    ratio = np.log(boxes[:, 3] / boxes[:, 2]) / math.log(4 / 3)
    assert stats.kstest(share, stats.uniform(0.1, 0.4).cdf).pvalue > 1e-3
    assert stats.kstest(ratio, stats.uniform(-1, 2).cdf).pvalue > 1e-3
    assert_uniform(Counter(draws.flip.tolist()), 2)


def test_streams_are_independent():
    """What one purpose draws tells nothing about what another does."""
    streams = list(Stream)
    numbers = np.arange(N)
    drawn = np.stack([sampler.uniforms(7, s, numbers, 1)[:, 0] for s in streams])
    correlations = np.corrcoef(drawn) - np.eye(len(streams))
    assert np.abs(correlations).max() < 4.5 / math.sqrt(N)
    assert len(streams) == len(Stream.__members__)  # no two are the same number
