"""Weights of classes: in the step, over devices and micro-batches, and in a run."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image
from scipy import special

import vit_jax
from tests import cli
from tests.test_steps import CLASSES, MEAN, STD, linear, make_batch, make_state
from vit_jax import config, objectives, steps
from vit_jax.data import class_counts
from vit_jax.errors import UserError
from vit_jax.objectives import Classification, Mixing, losses
from vit_jax.planning import planner
from vit_jax.run import Run

WEIGHTS = tuple(np.geomspace(0.2, 7.0, CLASSES).tolist())
SMOOTHING = 0.1


def step_of(name: str = "softmax_xent", mixup: float = 0.0, parts: int = 1) -> Any:
    return jax.jit(
        steps.make_train_step(
            Classification(
                apply=linear,
                loss=losses.make(
                    name=name,  # type: ignore[arg-type]
                    label_smoothing=SMOOTHING,
                    class_weights=WEIGHTS,
                ),
                mixing=Mixing(mixup=mixup),
                num_classes=CLASSES,
                mean=MEAN,
                std=STD,
            ),
            optax.sgd(0.5),
            lambda s: 0.5 + 0 * s,
            seed=0,
            accumulation_steps=parts,
            ema=None,
        )
    )


def result(batch: dict[str, Any], **keys: Any) -> tuple[float, np.ndarray]:
    """The loss, and the gradient that the update tells."""
    state = make_state(optax.sgd(0.5))
    before = np.asarray(state.params["kernel"])
    new, scalars = step_of(**keys)(state, batch)
    return float(scalars["loss"]), (before - np.asarray(new.params["kernel"])) / 0.5


def features(batch: dict[str, Any]) -> np.ndarray:
    return ((np.asarray(batch["image"]) / 255.0 - MEAN) / STD).mean((1, 2))


KERNEL = np.asarray(make_state(optax.sgd(0.5)).params["kernel"], np.float64)


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("masked", [[], [0, 3, 4]])
def test_the_mean_is_by_weight(parts: int, masked: list[int]) -> None:
    """sum(w l) / sum(w) of the whole batch: micro-batches are not means of their own.

    A class number that the head does not have weighs nothing.
    """
    batch = make_batch()
    batch["mask"][masked] = False
    x, w = features(batch), np.array(WEIGHTS)
    logits = x @ KERNEL
    targets = w * (np.eye(CLASSES)[batch["label"]] * 0.9 + SMOOTHING / CLASSES)
    share = batch["mask"] / (w[batch["label"]] * batch["mask"]).sum()
    each = -(targets * special.log_softmax(logits, -1)).sum(-1)
    probability = special.softmax(logits, -1) * targets.sum(-1, keepdims=True)
    loss, gradient = result(batch, parts=parts)
    np.testing.assert_allclose(loss, (each * share).sum(), rtol=1e-5)
    expected = x.T @ ((probability - targets) * share[:, None])
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7)


def test_of_any_number_of_devices() -> None:
    batch = make_batch(16)
    batch["mask"][:5] = False  # all of one device's, and a half
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    over = NamedSharding(mesh, PartitionSpec("data"))
    spread = {name: jax.device_put(x, over) for name, x in batch.items()}
    for parts in (1, 2):
        one, eight = result(batch, parts=parts), result(spread, parts=parts)
        assert one[0] == pytest.approx(eight[0], rel=1e-6)
        np.testing.assert_allclose(one[1], eight[1], rtol=1e-5, atol=1e-7)


def test_a_batch_of_classes_that_weigh_nothing() -> None:
    loss = losses.make(class_weights=(0.0, 1.0))
    assert loss.example_weights(jnp.array([0, 1, 2, -1])).tolist() == [0, 1, 0, 0]  # type: ignore[union-attr]
    batch = make_batch()
    batch["mask"][:] = False
    value, gradient = result(batch)
    assert value == 0 and not gradient.any()


@pytest.mark.parametrize("weights", [(-1.0, 2.0), (0.0, 0.0), ()])
def test_weights_that_cannot_be(weights: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="numbers of 0 or more, one for each class"):
        losses.make(class_weights=weights)


@pytest.mark.crosscheck
@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("kind", ["numbers", "vectors", "mixup", "sigmoid"])
def test_loss_and_gradient_equal_torch(kind: str, parts: int) -> None:
    """CrossEntropyLoss(weight) and BCEWithLogitsLoss(weight), with their own means.

    Of probabilities, as mixup makes them, torch's mean is over the examples.
    """
    torch = pytest.importorskip("torch")
    batch: dict[str, Any] = make_batch()
    name = "sigmoid_xent" if kind == "sigmoid" else "softmax_xent"
    if kind in ("vectors", "sigmoid"):
        random = np.random.default_rng(1)
        soft = random.dirichlet(np.ones(CLASSES), len(batch["label"]))
        hot = (random.random(soft.shape) < 0.4).astype("f4")
        batch["label"] = soft.astype("f4") if kind == "vectors" else hot
    target, x = torch.from_numpy(np.asarray(batch["label"])).long(), features(batch)
    if kind != "numbers":
        target = np.asarray(losses.to_targets(jnp.asarray(batch["label"]), CLASSES))
    if kind == "mixup":
        key = jax.random.fold_in(jax.random.key(0, impl="threefry2x32"), 0)
        images = objectives.normalize(batch["image"], jnp.array(MEAN), jnp.array(STD))
        mixed, target = Mixing(mixup=0.8)(
            jax.random.split(key)[0], images, jnp.asarray(target), batch["mask"]
        )
        x = np.asarray(mixed).mean((1, 2))
    kernel = torch.tensor(KERNEL, dtype=torch.float64, requires_grad=True)
    logits = torch.from_numpy(np.array(x, np.float64)) @ kernel
    weight = torch.tensor(WEIGHTS, dtype=torch.float64)
    if kind != "numbers":
        target = torch.from_numpy(np.array(target, np.float64))
    if kind == "sigmoid":
        target = (1 - SMOOTHING) * target + SMOOTHING / CLASSES
        bce = torch.nn.BCEWithLogitsLoss(weight=weight)
        expected = CLASSES * bce(logits, target)  # a sum over classes, not their mean
    else:
        xent = torch.nn.CrossEntropyLoss(weight=weight, label_smoothing=SMOOTHING)
        expected = xent(logits, target)
    expected.backward()
    loss, gradient = result(
        batch, name=name, parts=parts, mixup=0.8 if kind == "mixup" else 0.0
    )
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    np.testing.assert_allclose(gradient, kernel.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.crosscheck
def test_balanced_weights_equal_scikit_learn() -> None:
    class_weight = pytest.importorskip("sklearn.utils.class_weight")
    labels = np.random.default_rng(0).geometric(0.3, 5000).clip(1, 12) - 1
    counts = np.bincount(labels)
    expected = class_weight.compute_class_weight(
        "balanced", classes=np.arange(len(counts)), y=labels
    )
    assert losses.balanced_weights(counts, len(labels)) == pytest.approx(expected)


# --- in a run


def write_images(root: Path, **counts: int) -> str:
    for i, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for j in range(count):
            Image.new("RGB", (28, 28), (90 * i, 9 * j, 99)).save(
                root / name / f"{j}.png"
            )
    return str(root.parent)


def changes(data_dir: str, **more: str) -> dict[str, Any]:
    names = {
        "total_steps": 2,
        "optim.warmup_steps": 0,
        "accumulation_steps": 1,
        "model.depth": 1,
        "mixup": 0.0,
        "cutmix": 0.0,
        "checkpoint.best": None,
        "data.name": "folder",
        "data.data_dir": data_dir,
        "evals.test.split": "train",
    }
    return names | {key.replace("__", "."): value for key, value in more.items()}


def test_balanced_by_the_images_of_each_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Counted, told and recorded; the loss is not that without weights."""
    where = write_images(tmp_path / "data" / "train", no=15, yes=3, maybe=6)
    recipe = str(cli.ROOT / cli.EVERYTHING)

    def train(name: str, weights: str) -> dict[str, float]:
        given = changes(where, loss__class_weights=weights)
        return vit_jax.train(recipe, tmp_path / name, given)

    balanced = train("a", "balanced")
    said = "classes weigh 0.5333 to 2.667 in the loss, by their number of training"
    assert said in capsys.readouterr().out
    assert json.loads((tmp_path / "a" / "class_weights.json").read_text()) == [
        {"class": "maybe", "images": 6, "weight": 24 / 18},
        {"class": "no", "images": 15, "weight": 24 / 45},
        {"class": "yes", "images": 3, "weight": 24 / 9},
    ]
    plain = train("c", "none")
    assert abs(plain["train/loss"] - balanced["train/loss"]) > 1e-3
    found = vit_jax.evaluate(None, tmp_path / "a")  # weighs no classes
    assert found["test/loss"] == balanced["test/loss"]


def test_labels_that_are_not_at_hand_are_not_sampled() -> None:
    source = SimpleNamespace(name="imagenet2012", labels=lambda: None)
    with pytest.raises(UserError, match="labels of imagenet2012 are not known before"):
        class_counts.count(SimpleNamespace(source=source), 10)  # type: ignore[arg-type]


def test_a_plan_needs_no_counts() -> None:
    pairs = [("loss.class_weights", "balanced")]
    given = config.load(cli.EVERYTHING, pairs).to_dict()
    loss = planner.Shape.of(given).program(given)["loss"]
    assert loss["class_weights"] == (1.0,) * 10
    assert given["loss"]["class_weights"] == "balanced"


def opened(**keys: str) -> Run:
    pairs = [(key.replace("__", "."), text) for key, text in keys.items()]
    return Run(**config.load(cli.EVERYTHING, pairs).to_dict())


def test_of_several_labels_an_image(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    labels = (random.random((40, 3)) < (0.9, 0.5, 0.1)).astype("f4")
    images = random.integers(0, 256, (40, 28, 28, 3), np.uint8)
    splits = {"train_images": images, "train_labels": labels}
    np.savez(tmp_path / "a.npz", **splits)  # type: ignore[arg-type]
    run = opened(
        data__name="npz",
        data__data_dir=str(tmp_path / "a.npz"),
        loss__name="sigmoid_xent",
        loss__class_weights="balanced",
        evals__test__split="train",
    )
    assert run.class_weights == pytest.approx(tuple(40 / (3 * labels.sum(0))))


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"loss__class_weights": "balancd"}, 'did you mean "balanced"'),
        ({"loss__class_weights": "1,2,3"}, "has 3 numbers, and the head 10 classes"),
        ({"loss__class_weights": "1,x"}, '"balanced" or a tuple .float'),
        (
            {
                "loss__class_weights": "balanced",
                "data__name": "mixture",
                "data__mixture__a__name": "fashion_mnist_mini",
                "evals__test__data__name": "fashion_mnist_mini",
            },
            "a mixture shows its parts by their weights, whatever their sizes; give",
        ),
    ],
)
def test_what_cannot_be_weighed(keys: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        opened(**keys)
