"""Several labels an image: the equations in NumPy, on the same logits, on any mesh."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import special

from tests.evaluators import told
from tests.evaluators.test_classification import K, N, make_logits, make_sets
from vit_jax import data
from vit_jax.errors import NonFiniteLossError, UserError
from vit_jax.evaluators import multilabel

MESHES = [(1, 1, 1), (8, 1, 1), (2, 2, 2)]


def with_ties() -> np.ndarray:
    """Logits, of which many are equal."""
    return np.round(make_logits()).astype(np.float32)


def average_precision(values: np.ndarray, labels: np.ndarray) -> float:
    """Threshold by threshold: precision, weighted by the recall that it adds."""
    total, before = 0.0, 0.0
    for threshold in sorted(set(values.tolist()), reverse=True):
        chosen = values >= threshold
        recall = labels[chosen].sum() / labels.sum()
        total += (recall - before) * labels[chosen].mean()
        before = recall
    return total


def auc(values: np.ndarray, labels: np.ndarray) -> float:
    """Pair by pair."""
    gaps = values[labels > 0][:, None] - values[labels == 0][None]
    return float(((gaps > 0) + 0.5 * (gaps == 0)).mean())


def evaluate(path: Path, logits: np.ndarray, sets: np.ndarray, mesh: Any, **keys: Any):
    section = told.data(told.save(path / "it.npz", sets))
    return told.evaluate(section, logits, told.mesh(*mesh), "sigmoid_xent", **keys)


@pytest.mark.parametrize("mesh", MESHES)
def test_all_images_count(mesh: Any, tmp_path: Path) -> None:
    logits, sets = with_ties(), make_sets()
    sets[:, 4] = 0  # a class that no image has
    result = evaluate(tmp_path, logits, sets, mesh)
    predicted, hits = logits > 0, (logits > 0) & (sets > 0)
    rows = np.arange(N)
    x, t = logits.astype(np.float64), sets
    each = -(t * special.log_expit(x) + (1 - t) * special.log_expit(-x)).sum(-1)
    f1 = 2 * hits.sum(0) / (predicted.sum(0) + sets.sum(0))
    ap = [average_precision(x[:, i], t[:, i]) for i in range(K) if i != 4]
    areas = [auc(x[:, i], t[:, i]) for i in range(K) if i != 4]
    expected = {
        "it/mAP": np.mean(ap),
        "it/auc": np.mean(areas),
        "it/accuracy": (predicted == sets).all(1).mean(),
        "it/micro_f1": 2 * hits.sum() / (predicted.sum() + sets.sum()),
        "it/macro_f1": f1.mean(),
        "it/precision_at_1": sets[rows, logits.argmax(-1)].mean(),
        "it/loss": each.mean(),
        "it/examples": N,
    }
    assert result.scalars.keys() == expected.keys()
    for name, value in expected.items():
        assert abs(result.scalars[name] - value) < 1e-6, name
    of_class = result.record["per_class"]
    np.testing.assert_array_equal(of_class["examples"], sets.sum(0))
    np.testing.assert_array_equal(of_class["precision"], hits.sum(0) / predicted.sum(0))
    np.testing.assert_allclose(of_class["f1"], f1)
    assert of_class["recall"][4] is None and of_class["average_precision"][4] is None
    found = [value for value in of_class["average_precision"] if value is not None]
    np.testing.assert_allclose(found, ap)
    assert of_class["auc"][4] is None
    np.testing.assert_allclose([a for a in of_class["auc"] if a is not None], areas)
    assert result.record["without_label"] == (sets.sum(1) == 0).sum() > 10
    assert result.record["left_out"] == 0


def test_what_is_on_every_image_earns_nothing(tmp_path: Path) -> None:
    """A model that always names the common class, and knows nothing else."""
    sets = make_sets()
    sets[:, 0] = 1
    logits = np.random.default_rng(0).normal(size=(N, K)).astype(np.float32) - 10
    logits[:, 0] = 10
    found = evaluate(tmp_path, logits, sets, (1, 1, 1)).scalars
    assert found["it/precision_at_1"] == 1
    assert found["it/mAP"] < 0.5 and found["it/macro_f1"] == 1 / K
    assert found["it/accuracy"] == (sets.sum(1) == 1).mean()


def test_too_many_logits_for_average_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate(tmp_path, with_ties(), make_sets(), (1, 1, 1))
    monkeypatch.setattr(multilabel, "MOST_LOGITS", N * K - 1)
    result = evaluate(tmp_path, with_ties(), make_sets(), (1, 1, 1))
    ranked = {name: whole.scalars[name] for name in ("it/mAP", "it/auc")}
    assert whole.scalars == {**ranked, **result.scalars}
    assert not {"average_precision", "auc"} & result.record["per_class"].keys()


def test_some_of_the_classes(tmp_path: Path) -> None:
    logits, sets, chosen = with_ties(), make_sets(), [5, 0, 2]
    part = evaluate(tmp_path, logits, sets, (8, 1, 1), classes=tuple(chosen))
    alone = evaluate(tmp_path, logits[:, chosen], sets[:, chosen], (1, 1, 1))
    assert part.scalars == alone.scalars


def test_what_means_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no example of the split has a label"):
        evaluate(tmp_path, with_ties(), np.zeros((N, K), np.uint8), (1, 1, 1))
    logits = with_ties()
    logits[3, 2] = np.nan
    message = f"the loss of {N} examples is nan"
    with pytest.raises(NonFiniteLossError, match=message):
        evaluate(tmp_path, logits, make_sets(), (1, 1, 1))


def test_a_loss_of_one_class_an_image_takes_no_sets(tmp_path: Path) -> None:
    def check(labels: np.ndarray, *, one_class: bool = True) -> None:
        path = tmp_path / "it.npz"
        np.savez(path, x_train=told.images(len(labels)), y_train=labels)
        section: dict[str, Any] = told.data(path) | {"split": "train"}
        made = data.make(**section)
        made.check(num_classes=K, train=True, batch_size=4, one_class=one_class)

    check(np.eye(K)[np.arange(N) % K])
    check(np.full((N, K), 1 / K, np.float16))
    check(make_sets(), one_class=False)
    empty = (make_sets().sum(1) != 1).sum()
    message = f"{empty} of {N} labels looked at do not sum to 1.*loss.name=sigmoid_xent"
    with pytest.raises(UserError, match=message):
        check(make_sets())
