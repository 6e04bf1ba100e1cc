"""The losses against SciPy in float64, and against torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from vit_jax.errors import UserError
from vit_jax.objectives import losses

B, K = 64, 10
RNG = np.random.default_rng(0)
# From flat to saturated logits.
LOGITS = (RNG.normal(size=(B, K)) * np.geomspace(0.1, 100, B)[:, None]).astype("f4")
LABELS = RNG.integers(K, size=B)
SOFT = RNG.dirichlet(np.ones(K), size=B).astype("f4")
MULTI_HOT = (RNG.random((B, K)) < 0.3).astype("f4")


def softmax_xent(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    return -(targets * scipy.special.log_softmax(logits, axis=-1)).sum(-1)


def sigmoid_xent(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    positive, negative = (
        scipy.special.log_expit(logits),
        scipy.special.log_expit(-logits),
    )
    return -(targets * positive + (1 - targets) * negative).sum(-1)


@pytest.mark.parametrize("targets", [np.eye(K)[LABELS], SOFT, MULTI_HOT])
@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (losses.softmax_xent, softmax_xent),
        (losses.sigmoid_xent, sigmoid_xent),
    ],
)
def test_losses_equal_scipy(loss, expected, targets: np.ndarray) -> None:
    actual = loss(jnp.asarray(LOGITS), jnp.asarray(targets))
    assert actual.shape == (B,)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected(LOGITS, targets), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", ["softmax_xent", "sigmoid_xent"])
def test_bfloat16_logits_lose_nothing_more_here(name: str) -> None:
    rounded = jnp.asarray(LOGITS, jnp.bfloat16)
    targets = jnp.asarray(SOFT)
    loss = losses.LOSSES[name]
    actual = loss(rounded, targets)
    assert actual.dtype == jnp.float32
    np.testing.assert_array_equal(actual, loss(rounded.astype(jnp.float32), targets))


@pytest.mark.parametrize("name", ["softmax_xent", "sigmoid_xent"])
def test_huge_logits_have_finite_losses_and_gradients(name: str) -> None:
    loss = losses.LOSSES[name]
    logits = jnp.array([[1e30, -1e30, 0.0]])
    targets = jnp.array([[1.0, 0.0, 0.0]])
    value, grad = jax.value_and_grad(lambda x: loss(x, targets).sum())(logits)
    assert value == pytest.approx(0 if name == "softmax_xent" else np.log(2))
    assert np.isfinite(grad).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_targets_of_class_numbers(smoothing: float) -> None:
    actual = losses.to_targets(jnp.asarray(LABELS), K, smoothing)
    expected = (1 - smoothing) * np.eye(K)[LABELS] + smoothing / K
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    np.testing.assert_allclose(actual.sum(-1), 1.0, rtol=1e-6)


def test_label_vectors_pass_unchanged_and_are_smoothed_alike() -> None:
    labels = jnp.asarray(MULTI_HOT)
    np.testing.assert_array_equal(losses.to_targets(labels, K), MULTI_HOT)
    smooth = losses.to_targets(labels, K, 0.2)
    np.testing.assert_allclose(smooth, 0.8 * MULTI_HOT + 0.02, rtol=1e-6)


@pytest.mark.parametrize("label", [-1, K, 255, 2**31 - 1])
def test_a_label_out_of_range_is_nobodys_class(label: int) -> None:
    labels = jnp.array([label, 3])
    np.testing.assert_array_equal(losses.to_targets(labels, K)[0], np.zeros(K))
    assert losses.to_targets(labels, K)[1].argmax() == 3
    assert losses.softmax_xent(jnp.ones((2, K)), losses.to_targets(labels, K))[0] == 0


def test_shapes_that_would_broadcast_are_refused() -> None:
    with pytest.raises(ValueError, match="targets"):
        losses.softmax_xent(jnp.zeros((2, K)), jnp.zeros((1, K)))
    with pytest.raises(ValueError, match="must be"):
        losses.to_targets(jnp.zeros((2, K - 1)), K)
    with pytest.raises(ValueError, match="must be integers"):
        losses.to_targets(jnp.zeros(2), K)


@pytest.mark.parametrize("name", ["softmax_xent", "sigmoid_xent"])
def test_make_reads_both_its_keys(name) -> None:
    loss = losses.make(name=name, label_smoothing=0.3)
    targets = loss.targets(jnp.asarray(LABELS), K)
    expected = 0.7 * np.eye(K)[LABELS] + 0.03
    np.testing.assert_allclose(targets, expected, rtol=1e-6)
    reference = {"softmax_xent": softmax_xent, "sigmoid_xent": sigmoid_xent}[name]
    np.testing.assert_allclose(
        loss(jnp.asarray(LOGITS), targets), reference(LOGITS, expected), rtol=2e-6
    )


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(UserError, match="softmax_xent, sigmoid_xent"):
        losses.make(name="softmax")  # pyright: ignore[reportArgumentType]
    for smoothing in (-0.1, 1.0, float("nan")):
        with pytest.raises(UserError, match="label_smoothing must be in"):
            losses.make(label_smoothing=smoothing)


@pytest.mark.crosscheck
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_and_gradients_equal_torch(smoothing: float) -> None:
    torch = pytest.importorskip("torch")
    logits = torch.tensor(LOGITS, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(
        logits, torch.from_numpy(LABELS), reduction="none", label_smoothing=smoothing
    )
    expected.sum().backward()
    loss = losses.make(label_smoothing=smoothing)

    def total(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        each = loss(x, loss.targets(jnp.asarray(LABELS), K))
        return each.sum(), each

    grad, actual = jax.grad(total, has_aux=True)(jnp.asarray(LOGITS))
    np.testing.assert_allclose(actual, expected.detach(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(grad, logits.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.crosscheck
def test_sigmoid_losses_equal_torch() -> None:
    torch = pytest.importorskip("torch")
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.from_numpy(LOGITS), torch.from_numpy(MULTI_HOT), reduction="none"
    ).sum(-1)
    actual = losses.sigmoid_xent(jnp.asarray(LOGITS), jnp.asarray(MULTI_HOT))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
