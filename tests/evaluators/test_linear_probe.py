"""Logistic regression against the condition of its minimum, in float64."""

import numpy as np
import pytest

from tests.evaluators import told
from vit_jax.evaluators import linear_probe, logistic
from vit_jax.evaluators.features import Represented

CLASSES = 4
MESHES = [
    pytest.param((1, 1, 1), marks=pytest.mark.slow),
    (8, 1, 1),
    pytest.param((2, 2, 2), marks=pytest.mark.slow),
]


def random(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Correlated features far from 0, of very different size."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES, size=n)
    fixed = np.random.default_rng(9)
    centres, mix = fixed.normal(size=(CLASSES, 9)), fixed.normal(size=(9, 9))
    features = (centres[labels] + 2 * rng.normal(size=(n, 9))) @ mix
    features = features * np.logspace(-1, 1, 9) + 5
    return features.astype(np.float32), labels.astype(np.int32)


def gradient(
    weights: logistic.Weights, features: np.ndarray, labels: np.ndarray, c: float
) -> float:
    """The largest entry, of the mean over the images; 0 at the minimum alone."""
    x, n = features.astype(np.float64), len(labels)
    scores = x @ weights.kernel + weights.bias
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    p = p / p.sum(axis=1, keepdims=True) - (labels[:, None] == np.arange(CLASSES))
    of_kernel = x.T @ p / n + weights.kernel / (n * c)
    return float(max(np.abs(of_kernel).max(), np.abs(p.mean(axis=0)).max()))


@pytest.mark.parametrize("shape", MESHES)
def test_the_gradient_is_zero(shape: tuple[int, int, int]) -> None:
    """With all images, and with some left out."""
    features, labels = random(203, seed=0)
    regression = logistic.LogisticRegression(
        told.mesh(*shape), features, labels, CLASSES
    )
    for c in (0.01, 10.0):
        for select in (np.ones(203, bool), np.arange(203) % 7 > 0):
            fit = regression.fit(c, select, max_iterations=1000)
            assert fit.about()["converged"], fit.about()
            data = features[select], labels[select]
            assert gradient(fit.weights, *data, c) < 1e-5
            assert gradient(fit.weights, *data, c * 1.1) > 1e-5
            data[1][0] = (data[1][0] + 1) % CLASSES  # a copy's one label
            assert gradient(fit.weights, *data, c) > 1e-4


def test_it_gives_up_and_stops_between_iterations() -> None:
    regression = logistic.LogisticRegression(
        told.mesh(8, 1, 1), *random(203, seed=0), CLASSES
    )
    ticks = []
    fit = regression.fit(
        1e4, np.ones(203, bool), max_iterations=25, tick=lambda: ticks.append(0)
    )
    assert fit.iterations == 25 and not fit.about()["converged"]
    assert len(ticks) == 2


def test_no_number_ends_it() -> None:
    features, labels = random(203, seed=0)
    features[7] = np.nan
    regression = logistic.LogisticRegression(
        told.mesh(8, 1, 1), features, labels, CLASSES
    )
    fit = regression.fit(1.0, np.ones(203, bool), max_iterations=1000)
    assert not fit.about()["converged"]


def test_a_tenth_is_held_out() -> None:
    fitted, held_out = linear_probe.hold_out(105)
    assert len(held_out) == 10
    order = np.random.default_rng(0).permutation(105).tolist()
    assert [*fitted, *held_out] == order
    assert [len(part) for part in linear_probe.hold_out(3)] == [2, 1]


def test_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_probe, "_ROWS", 4)
    weights = logistic.Weights(np.eye(2), np.array([0.0, 0.5]))
    features = np.array([[0, 0], [1, 0], [0.5, 0], [3, 3], [9, 8], [0, 2]], "f4")
    labels = np.array([1, 0, 0, 1, 1, 1], np.int32)  # the third is a tie: 0
    data = Represented(features, labels)
    assert linear_probe.count_correct(weights, data, slice(None)) == 5
    assert linear_probe.count_correct(weights, data, np.array([4, 0])) == 1


@pytest.mark.crosscheck
@pytest.mark.parametrize("c", [0.01, 1.0, 100.0])
def test_scikit_learn(c: float) -> None:
    from sklearn.linear_model import LogisticRegression  # pyright: ignore

    features, labels = random(203, seed=1)
    theirs = LogisticRegression(C=c, solver="newton-cholesky", tol=1e-10, max_iter=1000)
    theirs.fit(features.astype(np.float64), labels)
    fit = logistic.LogisticRegression(
        told.mesh(2, 2, 2), features, labels, CLASSES
    ).fit(c, np.ones(203, bool), max_iterations=1000)
    # Softmax does not change when all classes get the same: compare without that.
    kernel = fit.weights.kernel - fit.weights.kernel.mean(axis=1, keepdims=True)
    bias = fit.weights.bias - fit.weights.bias.mean()
    np.testing.assert_allclose(kernel, theirs.coef_.T, rtol=0, atol=1e-3)
    np.testing.assert_allclose(
        bias, theirs.intercept_ - theirs.intercept_.mean(), rtol=0, atol=1e-2
    )
    test, expected = random(500, seed=2)
    right = int((theirs.predict(test.astype(np.float64)) == expected).sum())
    data = Represented(test, expected)
    assert linear_probe.count_correct(fit.weights, data, slice(None)) == right
