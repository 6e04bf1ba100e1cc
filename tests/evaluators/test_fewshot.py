"""Ridge regression against the normal equations' own definition, by other routes."""

import numpy as np
import pytest

from vit_jax.evaluators import fewshot
from vit_jax.evaluators.features import Represented

CLASSES = 7


def random(n: int, d: int, seed: int) -> Represented:
    """Features of very different size, one of them constant; no image of class 3."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 1, 2, 4, 5, 6], size=n)
    centres = np.random.default_rng(9).normal(size=(CLASSES, d))
    features = centres[labels] + 2 * rng.normal(size=(n, d))
    features = features * np.logspace(-2, 3, d) + np.linspace(-50, 50, d)
    features[:, d // 2] = 4.25
    return Represented(features.astype(np.float32), labels.astype(np.int32))


def augmented(train: Represented, l2: float) -> tuple[np.ndarray, np.ndarray]:
    """|X W - Y|^2 + l2 |W|^2 as the plain least squares of a longer system."""
    x = standardised(train.features, train.features)
    y = np.where(train.labels[:, None] == np.arange(CLASSES), 1.0, -1.0)
    longer = np.vstack([x, np.sqrt(l2) * np.eye(x.shape[1])])
    return longer, np.vstack([y, np.zeros((x.shape[1], CLASSES))])


def standardised(features: np.ndarray, of: np.ndarray) -> np.ndarray:
    of, features = of.astype(np.float64), features.astype(np.float64)
    x = (features - of.mean(axis=0)) / (of.std(axis=0) + 1e-5)
    return np.hstack([x, np.full((len(x), 1), 100.0)])


@pytest.mark.parametrize("n, d", [(90, 20), (21, 20), (12, 40)])
@pytest.mark.parametrize("l2", [1024.0, 1.0, 2.0**-6])
def test_weights_are_those_of_least_squares(n: int, d: int, l2: float) -> None:
    train = random(n, d, seed=0)
    ridge = fewshot.Ridge(*train, CLASSES)
    expected = np.linalg.lstsq(*augmented(train, l2))[0]
    np.testing.assert_allclose(ridge.weights(l2), expected, rtol=1e-6, atol=1e-9)


def test_counts_are_those_of_least_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fewshot, "_ROWS", 64)  # several pieces, the last one not full
    train, test = random(90, 20, seed=1), random(301, 20, seed=2)
    l2s = (1024.0, 4.0)
    x = standardised(test.features, train.features)
    scores = [x @ np.linalg.lstsq(*augmented(train, l2))[0] for l2 in l2s]
    right = [s.argmax(axis=1) == test.labels for s in scores]
    found = fewshot.Ridge(*train, CLASSES).correct(test, l2s)
    assert found == [int(r.sum()) for r in right]
    assert 100 < found[0] < 290 and found[0] != found[1]
    # One label of either split makes a difference.
    wrong = test.labels.copy()
    wrong[np.flatnonzero(right[0] & right[1])[0]] = 3
    less = fewshot.Ridge(*train, CLASSES).correct(Represented(test[0], wrong), l2s)
    assert less == [count - 1 for count in found]
    other = train.labels.copy()
    other[0] = (other[0] + 1) % CLASSES
    changed = fewshot.Ridge(train.features, other, CLASSES).weights(1024.0)
    expected = np.linalg.lstsq(*augmented(train, 1024.0))[0]
    assert not np.allclose(changed, expected, rtol=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_shots_are_the_first_of_a_permutation(seed: int) -> None:
    """One generator for all classes, in their order, as in big_vision."""
    labels = np.random.default_rng(5).choice([0, 1, 2, 4, 5, 6], size=100)
    found = fewshot.by_class(labels, CLASSES, seed)
    rng = np.random.default_rng(seed)
    expected = [rng.permutation(np.where(labels == c)[0]) for c in range(CLASSES)]
    assert [x.tolist() for x in found] == [x.tolist() for x in expected]
    assert found[3].tolist() == []


@pytest.mark.crosscheck
@pytest.mark.parametrize("n, d", [(90, 20), (12, 40)])
@pytest.mark.parametrize("l2", [1024.0, 1.0])
def test_scikit_learn(n: int, d: int, l2: float) -> None:
    from sklearn.linear_model import Ridge  # pyright: ignore

    train, test = random(n, d, seed=3), random(200, d, seed=4)
    y = np.where(train.labels[:, None] == np.arange(CLASSES), 1.0, -1.0)
    theirs = Ridge(alpha=l2, fit_intercept=False, solver="svd")
    theirs.fit(standardised(train.features, train.features), y)
    ours = fewshot.Ridge(*train, CLASSES)
    np.testing.assert_allclose(ours.weights(l2), theirs.coef_.T, rtol=1e-6, atol=1e-9)
    scores = theirs.predict(standardised(test.features, train.features))
    right = int((scores.argmax(axis=1) == test.labels).sum())
    assert ours.correct(test, [l2]) == [right]
