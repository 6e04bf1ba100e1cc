"""Nearest neighbours against all pairs in float64."""

import numpy as np
import pytest

from tests.evaluators import told
from vit_jax.evaluators import knn

CLASSES, TEMPERATURE = 6, 0.07
MESHES = [(1, 1, 1), (8, 1, 1), (2, 2, 2)]


def random(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES, size=n)
    centres = np.random.default_rng(9).normal(size=(CLASSES, 12))
    features = (centres[labels] + 1.5 * rng.normal(size=(n, 12))) * rng.uniform(
        0.1, 10, size=(n, 1)
    )
    return features.astype(np.float32), labels.astype(np.int32)


def similarities(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = (x.astype(np.float64) for x in (a, b))
    lengths = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)
    return a @ b.T / lengths


@pytest.mark.parametrize("shape", MESHES)
@pytest.mark.parametrize("k", [1, 20, 99])  # 99 is more than a device holds
def test_neighbours_are_those_of_all_pairs(
    shape: tuple[int, int, int], k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knn, "_ROWS", 32)
    train, test = random(101, seed=0)[0], random(45, seed=1)[0]
    pieces = list(knn.Neighbours(told.mesh(*shape), train, k).of(test))
    assert [len(index) for _, index in pieces] == [32, 13]
    found, index = (np.concatenate(x) for x in zip(*pieces, strict=True))
    expected = similarities(test, train)
    np.testing.assert_array_equal(index, np.argsort(-expected, axis=1)[:, :k])
    in_order = np.take_along_axis(expected, index, axis=1)
    np.testing.assert_allclose(found, in_order, rtol=0, atol=5e-7)


@pytest.mark.parametrize("shape", MESHES)
def test_of_equals_the_first_counts(shape: tuple[int, int, int]) -> None:
    """Also where they lie on different devices, and against zeros and padding."""
    same = np.array([[3.0, 4.0]], np.float32)
    train = np.concatenate([np.zeros((2, 2), np.float32), *[same] * 16, -same])
    ((_, index),) = knn.Neighbours(told.mesh(*shape), train, 19).of(2 * same)
    assert index[0].tolist() == [*range(2, 18), 0, 1, 18]


@pytest.mark.parametrize("k", [1, 5, 20])
def test_votes_are_summed_over_the_classes(k: int) -> None:
    (train, labels), (test, expected) = random(101, seed=2), random(200, seed=3)
    pairs = similarities(test, train)
    scores = np.zeros((len(test), CLASSES))
    for i, row in enumerate(pairs):
        for j in np.argsort(-row)[:k]:
            scores[i, labels[j]] += np.exp(row[j] / TEMPERATURE)
    ((similarity, index),) = knn.Neighbours(told.mesh(8, 1, 1), train, k).of(test)
    found = knn.votes(similarity, labels[index], CLASSES, temperature=TEMPERATURE)
    np.testing.assert_allclose(
        found / found.sum(axis=1, keepdims=True),
        scores / scores.sum(axis=1, keepdims=True),
        rtol=0,
        atol=1e-6,
    )
    right = found.argmax(axis=1) == expected
    assert right.tolist() == (scores.argmax(axis=1) == expected).tolist()
    assert 60 < right.sum() < 190
    # One label makes a difference to all who have it among their neighbours.
    labels[index[0, 0]] = (labels[index[0, 0]] + 1) % CLASSES
    other = knn.votes(similarity, labels[index], CLASSES, temperature=TEMPERATURE)
    changed = (index == index[0, 0]).any(axis=1)
    assert ((other != found).any(axis=1) == changed).all()


def test_a_low_temperature_does_not_overflow() -> None:
    similarity = np.array([[1.0, 0.9, 0.2]], np.float32)
    found = knn.votes(similarity, np.array([[1, 0, 0]]), 2, temperature=1e-4)
    assert found.tolist() == [[0.0, 1.0]]


@pytest.mark.crosscheck
@pytest.mark.parametrize("k", [1, 10, 20, 100])
def test_scikit_learn(k: int) -> None:
    from sklearn.neighbors import KNeighborsClassifier  # pyright: ignore

    (train, labels), (test, _) = random(101, seed=4), random(200, seed=5)
    theirs = KNeighborsClassifier(
        k, metric="cosine", weights=lambda d: np.exp((1 - d) / TEMPERATURE)
    ).fit(train.astype(np.float64), labels)
    ((similarity, index),) = knn.Neighbours(told.mesh(2, 2, 2), train, k).of(test)
    found = knn.votes(similarity, labels[index], CLASSES, temperature=TEMPERATURE)
    expected = theirs.predict_proba(test.astype(np.float64))
    ours = found / found.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)
    predicted = theirs.predict(test.astype(np.float64))
    assert found.argmax(axis=1).tolist() == predicted.tolist()
