"""The steps as functions: masks, accumulation, the average, sums of an evaluation."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special

from vit_jax import steps
from vit_jax.objectives import Classification, Mixing, losses
from vit_jax.state import TrainState

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
CLASSES = 3


def linear(
    variables: Any, images: jax.Array, train: bool, rngs: Any = None
) -> jax.Array:
    """A model without randomness: logits are linear in the mean colour."""
    del train, rngs
    return images.mean((1, 2)) @ variables["params"]["kernel"]


def make_state(tx: optax.GradientTransformation, *, ema: bool = False) -> TrainState:
    kernel = np.random.default_rng(1).normal(size=(3, CLASSES)).astype(np.float32)
    params = {"kernel": jnp.array(kernel)}
    zero = jnp.zeros((), jnp.int32)
    average = {"kernel": jnp.array(kernel)} if ema else None
    return TrainState(zero, params, tx.init(params), average, zero)


def make_batch(size: int = 8) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "image": random.integers(0, 256, (size, 4, 4, 3), dtype=np.uint8),
        "label": random.integers(0, CLASSES, size).astype(np.int32),
        "mask": np.ones(size, bool),
    }


def test_what_is_frozen_gets_no_gradient() -> None:
    batch = make_batch()
    _, free = run(batch)
    new, scalars = run(batch, frozen=frozenset({"kernel"}))
    assert float(free["grad_norm"]) > 0.0 == float(scalars["grad_norm"])
    assert float(free["loss"]) == float(scalars["loss"])
    np.testing.assert_array_equal(
        new.params["kernel"], make_state(optax.sgd(0.5)).params["kernel"]
    )


def run(batch: dict[str, np.ndarray], state: TrainState | None = None, **keys: Any):
    tx = optax.sgd(0.5)
    arguments = {"accumulation_steps": 1, "ema": None} | keys
    labels = Classification(
        apply=linear,
        loss=losses.make(label_smoothing=0.1),
        mixing=Mixing(mixup=arguments.pop("mixup", 0.0)),
        num_classes=CLASSES,
        mean=MEAN,
        std=STD,
    )
    step = steps.make_train_step(labels, tx, lambda s: 0.5 + 0 * s, seed=0, **arguments)
    return jax.jit(step)(
        state or make_state(tx, ema=keys.get("ema") is not None), batch
    )


def logits_of(batch: dict[str, np.ndarray]) -> np.ndarray:
    """In NumPy and float64."""
    x = (batch["image"] / 255.0 - MEAN) / STD
    kernel = make_state(optax.sgd(0.5)).params["kernel"]
    return x.mean((1, 2)) @ np.asarray(kernel, np.float64)


def reference(batch: dict[str, np.ndarray]) -> tuple[float, np.ndarray]:
    """Loss and gradient of the masked mean, in NumPy and float64."""
    state = make_state(optax.sgd(0.5))
    x = (batch["image"] / 255.0 - MEAN) / STD
    features = x.mean((1, 2))
    logits = features @ np.asarray(state.params["kernel"], np.float64)
    targets = np.eye(CLASSES)[batch["label"]] * 0.9 + 0.1 / CLASSES
    each = -(targets * special.log_softmax(logits, -1)).sum(-1)
    weight = batch["mask"] / batch["mask"].sum()
    gradient = features.T @ ((special.softmax(logits, -1) - targets) * weight[:, None])
    return float((each * weight).sum()), gradient


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("masked", [[], [0, 3, 4]])
def test_loss_and_update(parts: int, masked: list[int]) -> None:
    batch = make_batch()
    batch["mask"][masked] = False
    state, scalars = run(batch, accumulation_steps=parts)
    loss, gradient = reference(batch)
    before = np.asarray(make_state(optax.sgd(0.5)).params["kernel"])
    np.testing.assert_allclose(scalars["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(
        state.params["kernel"], before - 0.5 * gradient, rtol=1e-5, atol=1e-7
    )
    norm = np.linalg.norm(gradient)
    np.testing.assert_allclose(scalars["grad_norm"], norm, rtol=1e-5)
    np.testing.assert_allclose(scalars["update_norm"], 0.5 * norm, rtol=1e-5)
    norm = np.linalg.norm(np.asarray(state.params["kernel"]))
    np.testing.assert_allclose(scalars["param_norm"], norm, rtol=1e-5)
    right = logits_of(batch).argmax(-1) == batch["label"]
    assert 0 < right.sum() < len(right)
    accuracy = right[batch["mask"]].mean()
    np.testing.assert_allclose(scalars["accuracy"], accuracy, rtol=1e-6)
    assert scalars["bad_examples"] == len(masked)
    assert (state.step, scalars["learning_rate"]) == (1, 0.5)


def test_masked_rows_are_not_seen() -> None:
    batch = make_batch()
    batch["mask"][2] = False
    changed = {name: array.copy() for name, array in batch.items()}
    changed["image"][2], changed["label"][2] = 255, 0
    for mixup in (0.0, 0.5):
        a, b = run(batch, mixup=mixup), run(changed, mixup=mixup)
        np.testing.assert_array_equal(a[0].params["kernel"], b[0].params["kernel"])
        assert a[1]["loss"] == b[1]["loss"]


def test_an_empty_batch_changes_nothing_and_is_finite() -> None:
    batch = make_batch()
    batch["mask"][:] = False
    state, scalars = run(batch)
    assert scalars["finite"]
    assert scalars["update_norm"] == 0
    assert state.bad_examples == 8


def test_average() -> None:
    batch, state = make_batch(), make_state(optax.sgd(0.5), ema=True)
    expected = np.asarray(state.params["kernel"], np.float64)
    for step in range(16):  # from 14 on it is 0.6
        state, _ = run(batch, state, ema=0.6)
        decay = min(0.6, (1 + step) / (10 + step))
        new = np.asarray(state.params["kernel"], np.float64)
        expected = decay * expected + (1 - decay) * new
    assert state.ema_params is not None
    np.testing.assert_allclose(state.ema_params["kernel"], expected, rtol=1e-5)
    assert np.abs(expected - state.params["kernel"]).max() > 1e-3


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_step_that_went_wrong_says_so(bad: float) -> None:
    state = make_state(optax.sgd(0.5))
    state.params["kernel"] = state.params["kernel"].at[0, 0].set(bad)
    assert not run(make_batch(), state)[1]["finite"]
    assert run(make_batch())[1]["finite"]
