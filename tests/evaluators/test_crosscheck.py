"""The same logits and labels, scored by scikit-learn."""

import importlib
from pathlib import Path

import numpy as np
import pytest
from scipy import special

from tests.evaluators import test_classification as ours
from tests.evaluators import test_multilabel, told

pytestmark = pytest.mark.crosscheck


def test_single_labels(tmp_path: Path) -> None:
    metrics = importlib.import_module("sklearn.metrics")
    calibration = importlib.import_module("sklearn.calibration")
    logits, labels = ours.make_logits(), ours.make_labels()
    section = told.data(told.save(tmp_path / "it.npz", labels))
    result = told.evaluate(section, logits, told.mesh(2, 2, 2))
    found, classes = result.scalars, np.arange(ours.K)
    predictions = logits.argmax(-1)
    probability = special.softmax(logits.astype(np.float64), -1)
    top5 = metrics.top_k_accuracy_score(labels, logits, k=5, labels=classes)
    expected = {
        "it/accuracy": metrics.accuracy_score(labels, predictions),
        "it/top5_accuracy": top5,
        "it/loss": metrics.log_loss(labels, probability, labels=classes),
    }
    for name, value in expected.items():
        assert abs(found[name] - value) < 1e-6, name
    counts = metrics.confusion_matrix(labels, predictions, labels=classes)
    np.testing.assert_array_equal(result.record["confusion"], counts)
    recall = metrics.recall_score(labels, predictions, average=None, labels=classes)
    accuracy = result.record["per_class"]["accuracy"]
    np.testing.assert_allclose(accuracy, recall, atol=1e-12)
    confidence = probability.max(-1)
    curve = calibration.calibration_curve(predictions == labels, confidence, n_bins=15)
    bins = result.record["calibration"]
    for name, values in zip(("accuracy", "confidence"), curve, strict=True):
        known = [value for value in bins[name] if value is not None]
        np.testing.assert_allclose(known, values, atol=1e-6)
    named = {"average": None, "labels": classes}
    for name, score in (
        ("precision", metrics.precision_score),
        ("f1", metrics.f1_score),
    ):
        expected = score(labels, predictions, **named)
        found = result.record["per_class"][name]
        np.testing.assert_allclose(found, expected, atol=1e-12)
    mean = metrics.balanced_accuracy_score(labels, predictions)
    assert abs(result.record["mean_class_accuracy"] - mean) < 1e-12
    assert result.scalars["it/mean_class_accuracy"] == mean


def test_several_labels(tmp_path: Path) -> None:
    metrics = importlib.import_module("sklearn.metrics")
    logits, sets = test_multilabel.with_ties(), ours.make_sets()
    found = test_multilabel.evaluate(tmp_path, logits, sets, (2, 2, 2))
    predictions = logits > 0
    of_class = found.record["per_class"]
    for name, value in (
        (
            "average_precision",
            metrics.average_precision_score(sets, logits, average=None),
        ),
        ("auc", metrics.roc_auc_score(sets, logits, average=None)),
        ("f1", metrics.f1_score(sets, predictions, average=None)),
        ("precision", metrics.precision_score(sets, predictions, average=None)),
        ("recall", metrics.recall_score(sets, predictions, average=None)),
    ):
        np.testing.assert_allclose(of_class[name], value, atol=1e-12)
    for name, value in (
        ("mAP", metrics.average_precision_score(sets, logits, average="macro")),
        ("auc", metrics.roc_auc_score(sets, logits, average="macro")),
        ("micro_f1", metrics.f1_score(sets, predictions, average="micro")),
        ("macro_f1", metrics.f1_score(sets, predictions, average="macro")),
        ("accuracy", metrics.accuracy_score(sets, predictions)),
    ):
        assert abs(found.scalars[f"it/{name}"] - value) < 1e-12, name
