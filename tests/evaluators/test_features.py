"""What evaluations of frozen representations share, on the real model and data."""

import functools
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from tests import cli
from tests.evaluators import told
from vit_jax import config, models
from vit_jax.data.sources import idx
from vit_jax.errors import NonFiniteLossError, UserError
from vit_jax.evaluators import EVALUATORS, Result, logistic
from vit_jax.evaluators.features import OnFeatures, Represented
from vit_jax.run import Run

ONE = (1, 1, 1)
MESHES = [pytest.param((8, 1, 1), marks=pytest.mark.slow), (2, 2, 2)]
TRAIN, TEST = 301, 203  # no batch size divides them
OF_ALL = {"train_split": f"train[:{TRAIN}]", "split": f"test[:{TEST}]"}
ENTRIES: dict[str, dict[str, Any]] = {
    "few": {"type": "fewshot", "shots": (1, 5, 40), "l2_sweep": (1.0, 1024.0, 2.0)},
    "nn": {"type": "knn", "k_sweep": (1, 20, 200)},
    "probe": {"type": "linear_probe", "c_sweep": (0.1, 10.0, 1.0)},
}


@functools.cache
def run_on(mesh: tuple[int, int, int]) -> tuple[Run, Any]:
    """A run without evaluations of its own, and parameters for its model."""
    overrides = [
        ("batch_size", "32"),
        ("model.posemb", "sincos2d"),
        *((f"mesh.{axis}", str(n)) for axis, n in zip(told.AXES, mesh, strict=True)),
    ]
    with pytest.MonkeyPatch.context() as patch:
        count = int(np.prod(mesh))
        patch.setattr(jax, "devices", lambda *_: jax.local_devices()[:count])
        fields = config.load(cli.EVERYTHING, overrides).to_dict()
        run = Run(**{**fields, "evals": {}})
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jax.device_put(
            0.3 * rng.normal(size=x.shape).astype(np.float32), x.sharding
        ),
        run.abstract_state.params,
    )
    return run, params


def make(name: str, mesh: tuple[int, int, int] = (8, 1, 1), **keys: Any) -> OnFeatures:
    """An entry of `config.evals`, with defaults for the keys that are not given."""
    run, _ = run_on(mesh)
    data = config.load(cli.EVERYTHING, []).to_dict()["data"]
    entry = config.complete({**ENTRIES[name], **OF_ALL, **keys}, f"evals.{name}")
    entry = ConfigDict(entry).to_dict()
    evaluator = EVALUATORS[entry["type"]](name, run.mesh, data, 32, **entry)
    assert isinstance(evaluator, OnFeatures)
    return evaluator


def ready(evaluator: OnFeatures, mesh: tuple[int, int, int] = (8, 1, 1)) -> OnFeatures:
    run, _ = run_on(mesh)
    evaluator.check(10, run.program, run.abstract_state.params)
    evaluator.compile()
    return evaluator


@functools.cache
def evaluated(mesh: tuple[int, int, int]) -> tuple[dict[str, Result], Any, Any]:
    """The results, and the representations of both splits."""
    entries = [ready(make(name, mesh, batch_size=64), mesh) for name in ENTRIES]
    (_, params), ticks, results = run_on(mesh), [], {}
    with jax.transfer_guard("disallow"):  # as in the training loop
        for evaluator in entries:
            result = evaluator.run(params, lambda: ticks.append(0))
            results[evaluator.name] = result
            assert list(result.scalars) == evaluator.result_names()
        train, test, classes = entries[0].represent(params, lambda: None)
    assert classes == 10
    assert len(ticks) > 3 * (5 + 4)  # once a batch, at least
    return results, train, test


@pytest.fixture(scope="module")
def expected() -> Represented:
    """The model on all images at once, without batches, masks or meshes."""
    run, params = run_on((1, 1, 1))
    source = idx.open_fashion_mnist_mini("train")
    pixels = source.images[:TRAIN].repeat(3, axis=-1)
    images = ((pixels / 255 - 0.5) / 0.5).astype(np.float32)
    fields = {**run.model_fields, "num_classes": 10}
    model = models.create(**fields)
    apply = jax.jit(functools.partial(model.apply, capture=("pre_logits",)))
    _, found = apply({"params": params}, images)
    return Represented(np.asarray(found["pre_logits"]), source.labels()[:TRAIN])


@pytest.mark.parametrize("mesh", [ONE, *MESHES])
def test_representations_are_those_of_the_records(
    mesh: tuple[int, int, int], expected: Represented
) -> None:
    found = evaluated(mesh)[1]
    assert found.labels.tolist() == expected.labels.tolist()
    assert found.features.dtype == np.float32
    np.testing.assert_allclose(found.features, expected.features, rtol=0, atol=2e-5)


@pytest.mark.parametrize("mesh", MESHES)
def test_counts_are_the_same_on_any_mesh(mesh: tuple[int, int, int]) -> None:
    found, one = evaluated(mesh)[0], evaluated(ONE)[0]
    for name, result in found.items():
        assert result.scalars == one[name].scalars
    for name in ("few", "nn"):
        assert found[name].record == one[name].record
    for key in ("c", "correct"):
        assert found["probe"].record[key] == one["probe"].record[key]


def test_few_shot_is_that_of_least_squares() -> None:
    results, train, test = evaluated((8, 1, 1))
    record, means = results["few"].record, {}
    assert len(record["accuracies"]) == 3 * 3 * 3
    for line in record["accuracies"]:
        rng = np.random.default_rng(line["seed"])
        order = [rng.permutation(np.where(train.labels == c)[0]) for c in range(10)]
        chosen = np.concatenate([x[: line["shots"]] for x in order])
        x = train.features[chosen].astype(np.float64)
        mean, std = x.mean(axis=0), x.std(axis=0) + 1e-5
        y = np.where(train.labels[chosen][:, None] == np.arange(10), 1.0, -1.0)
        design, seen = (
            np.hstack([(z - mean) / std, np.full((len(z), 1), 100.0)])
            for z in (x, test.features)
        )
        longer = np.vstack([design, np.sqrt(line["l2"]) * np.eye(design.shape[1])])
        w = np.linalg.lstsq(longer, np.vstack([y, np.zeros((design.shape[1], 10))]))[0]
        right = ((seen @ w).argmax(axis=1) == test.labels).sum()
        assert line["correct"] == right, line
        assert line["accuracy"] == right / TEST
        if line["l2"] == 1024.0:
            means.setdefault(line["shots"], []).append(right / TEST)
    for shots, values in means.items():
        assert results["few"].scalars[f"few/{shots}shot"] == pytest.approx(
            np.mean(values), abs=1e-12
        )
    counts = np.bincount(train.labels)
    assert record["images"] == {1: 10, 5: 50, 40: int(np.minimum(counts, 40).sum())}
    assert record["classes_with_fewer"] == {1: 0, 5: 0, 40: int((counts < 40).sum())}
    assert record["classes_with_fewer"][40] > 0


def test_knn_is_that_of_all_pairs() -> None:
    results, train, test = evaluated((8, 1, 1))
    a, b = (
        x.features / np.linalg.norm(x.features.astype(np.float64), axis=1)[:, None]
        for x in (test, train)
    )
    pairs = a @ b.T
    for line in results["nn"].record["accuracies"]:
        scores = np.zeros((TEST, 10))
        for i, row in enumerate(pairs):
            for j in np.argsort(-row)[: line["k"]]:
                scores[i, train.labels[j]] += np.exp(row[j] / 0.07)
        best = np.argsort(-scores, axis=1, kind="stable")
        assert line["correct"] == (best[:, 0] == test.labels).sum(), line
        among = (best[:, :5] == test.labels[:, None]).any(axis=1).mean()
        assert line["top5_accuracy"] == pytest.approx(among, abs=1e-12)
    first = results["nn"].record["accuracies"][0]
    assert first["k"] == 20
    assert results["nn"].scalars == {
        "nn/accuracy": first["accuracy"],
        "nn/top5_accuracy": first["top5_accuracy"],
    }


def test_the_probe_chooses_on_the_held_out_images() -> None:
    results, train, test = evaluated((8, 1, 1))
    record = results["probe"].record
    tried = {line["c"]: line["accuracy"] for line in record["held_out"]}
    assert list(tried) == [0.1, 1.0, 10.0]
    best = max(tried.values())
    assert record["c"] == min(c for c in tried if tried[c] == best)
    regression = logistic.LogisticRegression(
        told.mesh(8, 1, 1), train.features, train.labels, 10
    )
    held_out = np.random.default_rng(0).permutation(TRAIN)[-30:]
    fitted = np.ones(TRAIN, bool)
    fitted[held_out] = False
    for c, accuracy in tried.items():
        fit = regression.fit(c, fitted, max_iterations=1000)
        scores = train.features @ fit.weights.kernel + fit.weights.bias
        right = scores.argmax(axis=1) == train.labels
        assert right[held_out].mean() == pytest.approx(accuracy, abs=1e-12)
    fit = regression.fit(record["c"], np.ones(TRAIN, bool), max_iterations=1000)
    scores = test.features @ fit.weights.kernel + fit.weights.bias
    right = (scores.argmax(axis=1) == test.labels).sum()
    assert results["probe"].scalars == {"probe/accuracy": right / TEST}


def test_what_is_masked_is_left_out(expected: Represented) -> None:
    """A row in the middle of a batch, as that of a bad example."""
    evaluator, count = ready(make("few", batch_size=64)), [0]
    step = evaluator._step

    def without_one(params: Any, batch: Any) -> Any:
        results = step(params, batch)
        if count[0] == 1:
            results["mask"] = results["mask"].at[6].set(False)
        count[0] += 1
        return results

    evaluator._step = without_one
    train, _, _ = evaluator.represent(run_on((8, 1, 1))[1], lambda: None)
    kept = np.arange(TRAIN) != 70
    assert train.labels.tolist() == expected.labels[kept].tolist()
    np.testing.assert_allclose(
        train.features, expected.features[kept], rtol=0, atol=2e-5
    )


@pytest.mark.parametrize(
    "name, keys",
    [
        ("few", {"l2": 1e-3, "l2_sweep": None}),
        ("few", {"seeds": (3,)}),
        ("few", {"train_split": "train[4000:4200]"}),
        ("few", {"split": "test[:10%]"}),
        ("nn", {"k": 3}),
        ("nn", {"temperature": 1e-3}),
        ("probe", {"c_sweep": (1e-6,)}),
        ("probe", {"max_iterations": 1}),
    ],
)
def test_every_key_has_an_effect(name: str, keys: dict[str, Any]) -> None:
    usual = evaluated((8, 1, 1))[0][name].scalars
    found = ready(make(name, **keys)).run(run_on((8, 1, 1))[1], lambda: None).scalars
    assert found.keys() == usual.keys()
    assert found != usual


def test_data_batches_and_size_of_its_own(tmp_path: Path) -> None:
    """More classes than the head has, at another resolution, from another file."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 61), ("test", 37)):
        labels = np.arange(n) % 12
        images = rng.integers(0, 30, (n, 14, 14)) + 18 * labels[:, None, None]
        arrays |= {f"x_{split}": images.astype(np.uint8), f"y_{split}": labels}
    np.savez(tmp_path / "a.npz", **arrays)
    data = {"name": "npz", "data_dir": str(tmp_path / "a.npz"), "image_size": 14}
    others = {"data": data, "train_split": "train", "split": "test", "k_sweep": None}
    evaluator = ready(make("nn", batch_size=16, k=3, **others))
    result = evaluator.run(run_on((8, 1, 1))[1], lambda: None)
    assert evaluator.train.batch_size == 16
    assert result.record["classes"] == 12
    assert result.record["test"]["examples"] == 37
    assert result.scalars["nn/accuracy"] > 0.5
    arrays["y_test"] = np.full(37, -1)
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match="-1"):
        ready(make("nn", k=3, **others))


@pytest.mark.parametrize("name", ENTRIES)
def test_labels_that_are_vectors_are_refused(name: str, tmp_path: Path) -> None:
    arrays = {"x_train": np.zeros((5, 28, 28), np.uint8), "y_train": np.eye(5)}
    arrays |= {"x_test": arrays["x_train"], "y_test": arrays["y_train"]}
    np.savez(tmp_path / "a.npz", **arrays)
    data = {"name": "npz", "data_dir": str(tmp_path / "a.npz")}
    others = {"k": 1, "k_sweep": None} if name == "nn" else {}
    evaluator = make(name, data=data, train_split="train", split="test", **others)
    with pytest.raises(UserError, match=rf"evals\.{name}: .*one class an image"):
        ready(evaluator)


@pytest.mark.parametrize(
    "name, keys, message",
    [
        ("few", {"shots": ()}, "one or more"),
        ("few", {"shots": (5, 5)}, "each once"),
        ("few", {"shots": (0,)}, "at least 1"),
        ("few", {"seeds": (-1,)}, "at least 0"),
        ("few", {"l2": 0.0}, "above 0"),
        ("few", {"l2_sweep": (1.0, -1.0)}, "above 0"),
        ("few", {"every": 0}, "at least 1"),
        ("few", {"train_split": "trian"}, "trian"),
        ("few", {"feature": "prelogits"}, 'evals.few.*did you mean "pre_logits"'),
        ("few", {"feature": "encoder_norm"}, r"evals.few.*one vector"),
        ("nn", {"k": 0}, "1 or more"),
        ("nn", {"k": 302}, "only 301 images"),
        ("nn", {"k_sweep": (5, 302)}, "only 301 images"),
        ("nn", {"temperature": 0.0}, "above 0"),
        ("probe", {"c_sweep": ()}, "above 0"),
        ("probe", {"c_sweep": (0.0,)}, "above 0"),
        ("probe", {"max_iterations": 0}, "at least 1"),
    ],
)
def test_values_that_cannot_be(name: str, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ready(make(name, **keys))


def test_splits_that_number_their_classes_in_their_own_way(tmp_path: Path) -> None:
    """Where no split is `train`, each knows its own class folders alone."""
    pixels = np.zeros((28, 28, 3), np.uint8)
    for split, names in (("val", "abc"), ("test", "bc")):
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            cv2.imwrite(str(tmp_path / split / name / "0.png"), pixels)
    section = {"name": "folder", "data_dir": str(tmp_path)}
    keys = {"train_split": "val", "split": "test", "k": 1, "k_sweep": None}
    evaluator = ready(make("nn", data=section, **keys))
    labels = evaluator.test.dataset.source.labels()
    assert labels is not None and labels.tolist() == [1, 2]
    assert evaluator.notes[0].startswith("its 2 classes have other numbers")


def test_features_that_are_not_finite() -> None:
    evaluator = ready(make("nn", train_split="train[:200]", split="test[:40]"))
    _, params = run_on((8, 1, 1))
    broken = jax.tree.map(lambda x: x * np.nan, params)
    message = "the features of 200 of 200 images are not finite"
    with pytest.raises(NonFiniteLossError, match=message):
        evaluator.run(broken, lambda: None)
