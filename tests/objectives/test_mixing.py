"""Mixup against a loop over the examples in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import NamedSharding, PartitionSpec

from vit_jax.errors import UserError
from vit_jax.objectives import mixing

B, H, K = 16, 4, 5
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(B, H, H, 3)).astype(np.float32)
TARGETS = RNG.dirichlet(np.ones(K), size=B).astype(np.float32)
ALL = np.ones(B, bool)
SOME = np.array([i not in (0, 5, 6, 15) for i in range(B)])


mix = jax.jit(mixing.mixup, static_argnames="alpha")


def mixed(
    mask: np.ndarray = ALL,
    *,
    seed: int = 0,
    alpha: float = 0.4,
    images: np.ndarray = IMAGES,
    targets: np.ndarray = TARGETS,
) -> tuple[np.ndarray, np.ndarray]:
    x, t = mix(
        jax.random.key(seed),
        jnp.asarray(images),
        jnp.asarray(targets),
        jnp.asarray(mask),
        alpha=alpha,
    )
    return np.asarray(x), np.asarray(t)


def share_of_own(x: np.ndarray) -> float:
    """What a is, from one mixed pixel: x = a own + (1 - a) other."""
    own, other = IMAGES[3, 0, 0, 0], IMAGES[2, 0, 0, 0]
    return (x[3, 0, 0, 0] - other) / (own - other)


@pytest.mark.parametrize("mask", [ALL, SOME], ids=["all", "some"])
def test_equals_a_loop_over_the_examples(mask: np.ndarray) -> None:
    x, t = mixed(mask)
    a = share_of_own(x)
    assert 0.5 < a < 1
    for i in range(B):
        share = a if mask[i] and mask[i - 1] else 1.0
        image = share * IMAGES[i] + (1 - share) * IMAGES[i - 1]
        target = share * TARGETS[i] + (1 - share) * TARGETS[i - 1]
        np.testing.assert_allclose(x[i], image, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(t[i], target, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(t.sum(-1), 1.0, rtol=1e-5)


def test_masked_rows_reach_nobody() -> None:
    """What stands in them, even NaN, changes no other row, and they stay."""
    images, targets = IMAGES.copy(), TARGETS.copy()
    images[~SOME], targets[~SOME] = np.nan, np.nan
    clean, dirty = mixed(SOME), mixed(SOME, images=images, targets=targets)
    for before, after in zip(clean, dirty, strict=True):
        np.testing.assert_array_equal(before[SOME], after[SOME])
        assert np.isnan(after[~SOME]).all()


def test_equal_keys_give_equal_mixtures_and_others_do_not() -> None:
    np.testing.assert_array_equal(mixed(seed=1)[0], mixed(seed=1)[0])
    assert share_of_own(mixed(seed=1)[0]) != share_of_own(mixed(seed=2)[0])


@pytest.mark.parametrize("alpha", [0.2, 0.8])
def test_shares_are_a_beta_distribution_folded_at_a_half(alpha: float) -> None:
    n = 2000

    def draw(key: jax.Array) -> jax.Array:
        zero_one = jnp.array([0.0, 1.0]).reshape(2, 1, 1, 1)
        mask = jnp.array([True, True])
        x, _ = mixing.mixup(key, zero_one, jnp.eye(2), mask, alpha=alpha)
        return x[1, 0, 0, 0]

    shares = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), n))
    beta = scipy.stats.beta(alpha, alpha)
    test = scipy.stats.kstest(shares, lambda x: beta.cdf(x) - beta.cdf(1 - x))
    assert test.pvalue > 1e-3


def test_alpha_zero_returns_the_inputs_and_draws_nothing() -> None:
    images, targets = jnp.asarray(IMAGES), jnp.asarray(TARGETS)
    # Not a key: it would fail if it were used.
    no_key = jnp.zeros(0)
    x, t = mixing.mixup(no_key, images, targets, jnp.asarray(ALL), alpha=0.0)
    assert x is images
    assert t is targets


def test_uint8_images_come_out_as_float32() -> None:
    images = RNG.integers(256, size=IMAGES.shape).astype(np.uint8)
    x, t = mixed(images=images)
    assert x.dtype == t.dtype == np.float32
    assert x.max() > 128


@pytest.mark.parametrize("shape", [(8,), (2, 4)])
def test_the_mesh_changes_nothing(shape: tuple[int, ...]) -> None:
    axes = ("data", "fsdp")[: len(shape)]
    mesh = jax.make_mesh(shape, axes, (jax.sharding.AxisType.Auto,) * len(shape))
    sharding = NamedSharding(mesh, PartitionSpec(axes))
    mix_spread = jax.jit(mixing.mixup, static_argnames="alpha", out_shardings=sharding)
    inputs = [jnp.asarray(x) for x in (IMAGES, TARGETS, SOME)]
    spread = [jax.device_put(x, sharding) for x in inputs]
    many = mix_spread.lower(jax.random.key(0), *spread, alpha=0.4).compile()
    # One row goes to the next device; no device sees all images.
    program = str(many.as_text())
    assert "collective-permute" in program
    assert "all-gather" not in program
    for x, y in zip(mixed(SOME), many(jax.random.key(0), *spread), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7)


def test_a_negative_alpha_is_refused() -> None:
    with pytest.raises(UserError, match="alpha must be at least 0"):
        mixed(alpha=-0.1)
