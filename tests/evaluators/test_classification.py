"""What is measured equals the equations in NumPy, on the same logits, on any mesh."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from etils import epath
from scipy import special

from tests.evaluators import told
from vit_jax.data import builder
from vit_jax.errors import UserError
from vit_jax.evaluators import Result, records, scores

N, K = 101, 7  # the batch of 16 divides no number of examples
MESHES = [(1, 1, 1), (8, 1, 1), (2, 4, 1), (2, 2, 2)]
CLOSE = 1e-6


def make_logits() -> np.ndarray:
    return 2 * np.random.default_rng(1).normal(size=(N, K)).astype(np.float32)


def make_labels() -> np.ndarray:
    """Half of them are what the model says."""
    random = np.random.default_rng(2)
    labels = random.integers(0, K, N)
    labels[::2] = make_logits().argmax(-1)[::2]
    return labels


def make_sets() -> np.ndarray:
    """Sets of 0 to 3 labels."""
    random = np.random.default_rng(3)
    sets = np.zeros((N, K), np.uint8)
    for row in sets:
        row[random.choice(K, random.integers(0, 4), replace=False)] = 1
    assert 10 < (sets.sum(1) == 0).sum() < 50
    return sets


def calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Equation 3 of arXiv:1706.04599, bin by bin, as it stands there."""
    total = 0.0
    for m in range(1, 16):
        inside = (confidence > (m - 1) / 15) & (confidence <= m / 15)
        if inside.any():
            gap = abs(correct[inside].mean() - confidence[inside].mean())
            total += inside.sum() / len(confidence) * gap
    return total


def expected_of_labels(logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    logits = logits.astype(np.float64)
    probability = special.softmax(logits, -1)
    best = np.argsort(-logits, -1, kind="stable")
    correct = best[:, 0] == labels
    each = -np.log(probability[np.arange(len(labels)), labels])
    return {
        "it/accuracy": correct.mean(),
        "it/mean_class_accuracy": np.mean(
            [correct[labels == c].mean() for c in np.unique(labels)]
        ),
        "it/top5_accuracy": (best[:, :5] == labels[:, None]).any(-1).mean(),
        "it/loss": each.mean(),
        "it/calibration_error": calibration_error(probability.max(-1), correct),
        "it/examples": len(labels),
    }


def counts_of(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    counts = np.zeros((K, K), int)
    for label, row in zip(labels, logits, strict=True):
        counts[label, row.argmax()] += 1
    return counts


def assert_close(result: Result, expected: dict[str, Any]) -> None:
    assert result.scalars.keys() == expected.keys()
    for name, value in expected.items():
        if name.endswith(("/accuracy", "top5_accuracy", "examples")):
            assert result.scalars[name] == value, name
        else:
            assert abs(result.scalars[name] - value) < CLOSE, name


@pytest.mark.parametrize("mesh", MESHES)
def test_single_labels(mesh: tuple[int, int, int], tmp_path: Path) -> None:
    logits, labels = make_logits(), make_labels()
    section = told.data(told.save(tmp_path / "it.npz", labels))
    result = told.evaluate(section, logits, told.mesh(*mesh))
    expected = expected_of_labels(logits, labels)
    assert 0.5 < expected["it/accuracy"] < expected["it/top5_accuracy"] < 1
    assert_close(result, expected)
    counts = counts_of(logits, labels)
    np.testing.assert_array_equal(result.record["confusion"], counts)
    per_class = result.record["per_class"]
    np.testing.assert_array_equal(per_class["examples"], counts.sum(1))
    np.testing.assert_array_equal(
        per_class["accuracy"], counts.diagonal() / counts.sum(1)
    )
    np.testing.assert_array_equal(
        per_class["precision"], counts.diagonal() / counts.sum(0)
    )
    np.testing.assert_allclose(
        per_class["f1"], 2 * counts.diagonal() / (counts.sum(0) + counts.sum(1))
    )
    assert per_class["recall"] == per_class["accuracy"]
    mean = np.mean(counts.diagonal() / counts.sum(1))
    assert abs(result.record["mean_class_accuracy"] - mean) < 1e-12
    assert result.record["left_out"] == 0
    assert result.record["examples"] == N


def test_sets_of_labels(tmp_path: Path) -> None:
    """ImageNet-ReaL: right is who names one of the set; empty sets are left out."""
    logits, sets = make_logits(), make_sets()
    section = told.data(told.save(tmp_path / "it.npz", sets))
    result = told.evaluate(section, logits, told.mesh(2, 2, 2))
    kept = sets.any(1)
    x, t = logits[kept].astype(np.float64), sets[kept]
    rows = np.arange(len(x))
    correct = t[rows, x.argmax(-1)] > 0
    best = np.argsort(-x, -1)[:, :5]
    of_class = (t * correct[:, None]).sum(0) / t.sum(0)
    confidence = special.softmax(x, -1).max(-1)
    assert_close(
        result,
        {
            "it/accuracy": correct.mean(),
            "it/mean_class_accuracy": of_class.mean(),
            "it/top5_accuracy": (t[rows[:, None], best] > 0).any(-1).mean(),
            "it/loss": -(t * special.log_softmax(x, -1)).sum(-1).mean(),
            "it/calibration_error": calibration_error(confidence, correct),
            "it/examples": len(x),
        },
    )
    np.testing.assert_array_equal(result.record["per_class"]["examples"], t.sum(0))
    np.testing.assert_array_equal(result.record["per_class"]["accuracy"], of_class)
    assert "precision" not in result.record["per_class"]
    assert result.record["left_out"] == N - len(x)
    assert not result.pictures and "confusion" not in result.record


def test_a_subset_of_the_classes(tmp_path: Path) -> None:
    """ImageNet-A and -R: the logits of other classes do not exist."""
    logits, chosen = make_logits(), (5, 0, 2, 3)
    labels = np.random.default_rng(4).choice(chosen, N)
    section = told.data(told.save(tmp_path / "it.npz", labels))
    result = told.evaluate(section, logits, told.mesh(8, 1, 1), classes=chosen)
    position = np.array([chosen.index(label) for label in labels])
    expected = expected_of_labels(logits[:, chosen], position)
    del expected["it/top5_accuracy"]  # of four
    assert_close(result, expected)
    assert result.scalars["it/accuracy"] > (logits.argmax(-1) == labels).mean()
    assert result.record["class_names"] == ["5", "0", "2", "3"]
    assert result.record["protocol"]["classes"] == chosen
    assert np.trace(result.record["confusion"]) == round(N * expected["it/accuracy"])


def test_a_subset_of_sets_of_labels(tmp_path: Path) -> None:
    logits, sets, chosen = make_logits(), make_sets(), (5, 0, 2)
    section = told.data(told.save(tmp_path / "it.npz", sets))
    result = told.evaluate(section, logits, told.mesh(8, 1, 1), classes=chosen)
    kept = sets[:, chosen].any(1)
    best = logits[kept][:, chosen].argmax(-1)
    right = sets[kept][:, chosen][np.arange(len(best)), best].sum()
    assert result.scalars["it/accuracy"] == right / kept.sum()


def test_one_label_changes_the_result_by_one_part(tmp_path: Path) -> None:
    logits, labels = make_logits(), make_labels()
    assert logits[N - 1].argmax() == labels[N - 1]
    changed = labels.copy()
    changed[N - 1] = (labels[N - 1] + 1) % K  # in the last batch, which is not full
    mesh = told.mesh(8, 1, 1)
    before, after = (
        told.evaluate(told.data(told.save(tmp_path / f"{i}.npz", y)), logits, mesh)
        for i, y in enumerate((labels, changed))
    )
    counts = [round(r.scalars["it/accuracy"] * N) for r in (before, after)]
    assert counts[0] - counts[1] == 1
    assert after.scalars["it/accuracy"] == counts[1] / N
    moved = before.record["confusion"] - after.record["confusion"]
    assert np.abs(moved).sum() == 2
    assert before.record["fingerprint"] != after.record["fingerprint"]


def test_a_masked_row_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a reader masks an image that it cannot decode."""
    logits, labels = make_logits(), make_labels()
    section = told.data(told.save(tmp_path / "it.npz", labels))
    build = builder.BatchBuilder.__call__

    def masked(self: builder.BatchBuilder, step: int) -> builder.Built:
        built = build(self, step)
        built.batch["mask"][self.rows == 4] &= step != 2  # example 36
        return built

    monkeypatch.setattr(builder.BatchBuilder, "__call__", masked)
    result = told.evaluate(section, logits, told.mesh(8, 1, 1))
    others = np.arange(N) != 2 * told.BATCH + 4
    assert_close(result, expected_of_labels(logits[others], labels[others]))
    assert result.record["left_out"] == 1


def test_of_equal_logits_the_first_is_the_highest(tmp_path: Path) -> None:
    labels = np.arange(N) % K
    section = told.data(told.save(tmp_path / "it.npz", labels))
    equal = np.zeros((N, K), np.float32)
    result = told.evaluate(section, equal, told.mesh(2, 2, 2))
    assert result.scalars["it/accuracy"] == (labels == 0).mean()
    assert result.scalars["it/top5_accuracy"] == (labels < 5).mean()
    error = abs((labels == 0).mean() - 1 / K)
    assert abs(result.scalars["it/calibration_error"] - error) < CLOSE


def test_bins_are_closed_above() -> None:
    """3/15 is in the third of the bins, and what is just above it in the fourth."""
    at = [0.0, 1 / 15, np.nextafter(1 / 15, 1), 3 / 15, 14 / 15, 1.0]
    totals = scores.Totals(7, multi_hot=True)
    totals._add_confidence(np.array(at), np.zeros(len(at), bool))
    assert np.flatnonzero(totals.bins).tolist() == [0, 1, 2, 13, 14]
    assert totals.bins[0] == 2


def test_what_cannot_be_evaluated(tmp_path: Path) -> None:
    logits, mesh = make_logits(), told.mesh(1, 1, 1)
    labels = make_labels()
    section = told.data(told.save(tmp_path / "it.npz", labels))

    def refused(message: str, section: dict[str, Any] = section, **keys: Any) -> None:
        with pytest.raises(UserError, match=message):
            told.evaluate(section, logits, mesh, **keys)

    refused("two or more different classes, of the model's 0..6", classes=(1, 7))
    refused("two or more different classes", classes=(1, 1))
    refused("two or more different classes", classes=())
    outside = (labels > 3).sum()
    refused(f"{outside} of {N} labels are none of the 4", classes=(0, 1, 2, 3))
    nothing = told.data(told.save(tmp_path / "no.npz", np.zeros((N, K), np.uint8)))
    refused("no example of the split has a label", nothing)


def test_files(tmp_path: Path) -> None:
    """They can be read by others, and an evaluation done again writes the same."""
    picture = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    record = {"confusion": np.eye(2, dtype=int), "classes": (1, 2), "name": "käfer"}
    scalars = {"it/loss": float("nan"), "it/accuracy": 0.5, "it/examples": 2}
    titles: list[str] = []

    def draw(title: str) -> np.ndarray:
        titles.append(title)
        return picture

    last = {"mistakes": draw, "nothing": lambda title: None}
    result = Result(scalars, record, {"confusion": draw}, last)

    def write(*, last: bool) -> records.Written:
        folder = epath.Path(tmp_path)
        return records.write(folder, "it", "7", result, {"step": 7}, last=last)

    first = write(last=False).record.read_bytes()
    assert {p.name for p in (tmp_path / "evals").iterdir()} == {
        "it-7.json",
        "it-7-confusion.png",
    }
    assert write(last=True).record.read_bytes() == first
    assert titles == ["it, step 7: accuracy 0.5000 of 2 images"] * 3
    assert json.loads(first, parse_constant=pytest.fail) == {
        "step": 7,
        "results": {"it/loss": "NaN", "it/accuracy": 0.5, "it/examples": 2},
        "confusion": [[1, 0], [0, 1]],
        "classes": [1, 2],
        "name": "käfer",
    }
    names = {p.name for p in (tmp_path / "evals").iterdir()}
    assert names == {"it-7.json", "it-7-confusion.png", "it-7-mistakes.png"}
    found = records.pictures(epath.Path(tmp_path), "it", "7")
    assert list(found) == ["confusion", "mistakes"]
    read = cv2.imread(str(found["confusion"]))
    assert read is not None
    np.testing.assert_array_equal(read[..., ::-1], picture)
