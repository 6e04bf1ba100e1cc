"""Attention from a source to a target, and from an input to itself."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import reference
from vit_jax.models.attention import (
    MultiHeadAttention,
    dot_product_attention,
    heads_first_attention,
)


def inputs(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def drawn(module: nn.Module, *args) -> dict:
    """Parameters that are nowhere 0 or 1."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *args)
    return jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape, scale=0.5).astype(leaf.dtype), shapes
    )


@pytest.mark.parametrize("qk_norm", [False, True], ids=["plain", "qk_norm"])
@pytest.mark.parametrize("sources", [5, 3], ids=["as-many", "fewer"])
def test_source_target_attention(qk_norm: bool, sources: int):
    target, source = inputs((2, 5, 12), (2, sources, 12))
    module = MultiHeadAttention(num_heads=3, qk_norm=qk_norm)
    variables = drawn(module, target, source)
    out, weights = jax.jit(module.apply)(variables, target, source)
    assert weights.shape == (2, 3, 5, sources)
    for i in range(2):
        expected = reference.attention(
            target[i], source[i], variables["params"], eps=1e-6
        )
        np.testing.assert_allclose(out[i], expected[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(weights[i], expected[1], rtol=1e-5, atol=1e-6)

    linen = nn.MultiHeadDotProductAttention(num_heads=3, normalize_qk=qk_norm)
    expected = jax.jit(linen.apply)(variables, target, source)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    shapes = jax.eval_shape(linen.init, jax.random.key(0), target, source)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, shapes)


def test_initial_parameters_have_the_distribution_of_linens():
    """Same seed, same draws: the names, shapes and initialisers are the same."""
    target, source = inputs((1, 5, 12), (1, 3, 12))
    xavier = nn.initializers.xavier_uniform()
    linen = nn.MultiHeadDotProductAttention(num_heads=3, kernel_init=xavier)
    expected = linen.init(jax.random.key(0), target, source)
    found = MultiHeadAttention(num_heads=3).init(jax.random.key(0), target, source)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_self_attention_is_the_case_of_one_input():
    (x,) = inputs((2, 5, 12))
    module = MultiHeadAttention(num_heads=3)
    variables = drawn(module, x, x)
    out, weights = jax.jit(module.apply)(variables, x, x)
    expected, a = reference.attention(x[0], x[0], variables["params"], eps=1e-6)
    np.testing.assert_allclose(out[0], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(weights[0], a, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)


def test_the_epsilon_of_qk_norm():
    target, source = inputs((1, 5, 12), (1, 3, 12))
    module = MultiHeadAttention(num_heads=3, qk_norm=True, layer_norm_epsilon=1.0)
    variables = drawn(module, target, source)
    out, _ = jax.jit(module.apply)(variables, target, source)
    for eps, same in ((1.0, True), (1e-6, False)):
        expected, _ = reference.attention(
            target[0], source[0], variables["params"], eps=eps
        )
        assert np.allclose(out[0], expected, atol=1e-5) is same


def test_scores_and_softmax_are_in_float32():
    """Scores of about 20 in bfloat16 would be off by up to 0.06."""
    query, key, value = (
        jnp.asarray(x, jnp.bfloat16)
        for x in inputs((1, 8, 1, 64), (1, 9, 1, 64), (1, 9, 1, 64))
    )
    query = query * 4
    out, weights = dot_product_attention(query, key, value)
    assert (out.dtype, weights.dtype) == (jnp.bfloat16, jnp.float32)
    q, k, v = (np.asarray(x, np.float64)[0, :, 0] for x in (query, key, value))
    scores = q @ k.T / 8
    assert np.abs(scores).max() > 10
    expected = reference.softmax(scores)
    np.testing.assert_allclose(weights[0, 0], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        np.asarray(out[0, :, 0], np.float64), expected @ v, atol=0.02
    )


@pytest.mark.parametrize("sources", [197, 7])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_heads_first_is_the_same(dtype: str, sources: int):
    """Forward and backward; equal but for the order of sums."""
    shapes = [(2, 197, 3, 64), *[(2, sources, 3, 64)] * 2, (2, 197, 3, 64)]
    query, key, value, cotangent = (jnp.asarray(x, dtype) for x in inputs(*shapes))
    out, pull = jax.vjp(heads_first_attention, query, key, value)
    expected, plain_pull = jax.vjp(
        lambda *tensors: dot_product_attention(*tensors)[0], query, key, value
    )
    rtol = 1e-4 if dtype == "float32" else 2e-2
    pairs = zip(
        (out, *pull(cotangent)), (expected, *plain_pull(cotangent)), strict=True
    )
    for ours, plain in pairs:
        assert ours.dtype == plain.dtype == jnp.dtype(dtype)
        ours, plain = np.asarray(ours, np.float64), np.asarray(plain, np.float64)
        np.testing.assert_allclose(ours, plain, rtol=rtol, atol=rtol * abs(plain).max())


def test_dropout_of_weights():
    """With one value for each source, what comes out is the weights."""
    query, key = inputs((4, 8, 2, 64), (4, 64, 2, 64))
    value = np.broadcast_to(np.eye(64, dtype=np.float32)[:, None], (4, 64, 2, 64))
    out, weights = jax.jit(dot_product_attention, static_argnames="dropout")(
        query, key, value, dropout=0.25, dropout_rng=jax.random.key(0)
    )
    _, clean = jax.jit(dot_product_attention)(query, key, value)
    np.testing.assert_array_equal(weights, clean)
    used = out.transpose(0, 2, 1, 3)  # [b, h, q, s]
    dropped = used == 0
    assert dropped.mean() == pytest.approx(0.25, abs=0.03)
    assert not (dropped == dropped[:1]).all()  # images differ
    assert not (dropped == dropped[:, :1]).all()  # heads differ
    assert not (dropped == dropped[:, :, :1]).all()  # queries differ
    kept = ~dropped
    np.testing.assert_allclose(used[kept], weights[kept] / 0.75, rtol=1e-5)


def test_dropout_only_in_training():
    (x,) = inputs((2, 5, 12))
    module = MultiHeadAttention(num_heads=3, dropout=0.5)
    variables = drawn(module, x, x)
    rngs = {"dropout": jax.random.key(0)}
    plain, _ = jax.jit(MultiHeadAttention(num_heads=3).apply)(variables, x, x)
    evaluated, _ = jax.jit(module.apply)(variables, x, x, rngs=rngs)
    np.testing.assert_array_equal(evaluated, plain)
    train = jax.jit(functools.partial(module.apply, train=True))
    trained, _ = train(variables, x, x, rngs=rngs)
    assert not np.allclose(trained, plain)
