"""The fused kernels, interpreted, against the plain attention and against NumPy.

What the TPU compiler makes of them: tests/test_tpu_program.py.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import reference, tiny
from vit_jax import models
from vit_jax.errors import UserError
from vit_jax.models.attention import dot_product_attention, heads_first_attention
from vit_jax.models.fused_attention import (
    VMEM_V5,
    choose_tiles,
    fused_attention,
)

TOKENS = (49, 50, 64, 196, 197, 256, 257, 576, 577, 1025)
WIDTHS = (32, 64, 80, 128)
# Each of them at least once; by default those of the published models.
DEFAULT = ((50, 32), (197, 64), (257, 80), (49, 128), (577, 64))
FUSED = functools.partial(fused_attention, interpret=True)
# In float32 what 1,025 tokens need is more than a v4 has.
ROOMY = functools.partial(FUSED, vmem=VMEM_V5)


def plain(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    return dot_product_attention(query, key, value)[0]


def drawn(tokens: int, heads: int, width: int, dtype: Any) -> list[jax.Array]:
    """Queries, keys, values and the gradient of the result; scores reach +-20."""
    rng = np.random.default_rng(tokens + width)
    shape = (2, tokens, heads, width)
    arrays = [rng.normal(size=shape).astype(np.float32) for _ in range(4)]
    return [jnp.asarray(x, dtype) for x in (4 * arrays[0], *arrays[1:])]


def out_and_gradients(attend: Any, arrays: list[jax.Array]) -> list[np.ndarray]:
    @jax.jit
    def run(q: jax.Array, k: jax.Array, v: jax.Array, do: jax.Array) -> Any:
        out, vjp = jax.vjp(attend, q, k, v)
        return [out, *vjp(do)]

    return [np.asarray(x, np.float64) for x in run(*arrays)]


def exact(arrays: list[jax.Array]) -> list[np.ndarray]:
    """Result and gradients in float64, from the formulas."""
    q, k, v, do = (np.asarray(x, np.float64).transpose(0, 2, 1, 3) for x in arrays)
    scale = q.shape[-1] ** -0.5
    p = reference.softmax(q @ k.swapaxes(2, 3) * scale)
    dp = do @ v.swapaxes(2, 3)
    ds = p * (dp - (p * dp).sum(-1, keepdims=True)) * scale
    found = [p @ v, ds @ k, ds.swapaxes(2, 3) @ q, p.swapaxes(2, 3) @ do]
    return [x.transpose(0, 2, 1, 3) for x in found]


def errors(found: list[np.ndarray], expected: list[np.ndarray]) -> list[float]:
    """Root mean square, relative to the expected one's."""
    return [
        float(np.linalg.norm(x - y) / np.linalg.norm(y))
        for x, y in zip(found, expected, strict=True)
    ]


def compare(tokens: int, width: int) -> None:
    heads = 2 if width % 64 == 0 else 4
    kernel = ROOMY if tokens > 1000 else FUSED
    arrays = drawn(tokens, heads, width, jnp.float32)
    fused, expected = (out_and_gradients(f, arrays) for f in (kernel, plain))
    for x, y in zip(fused, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5 * np.abs(y).max())

    arrays = drawn(tokens, heads, width, jnp.bfloat16)
    truth = exact(arrays)
    fused, expected = (
        errors(out_and_gradients(f, arrays), truth) for f in (kernel, plain)
    )
    # On a CPU the plain one does not round dS before it is multiplied: one rounding,
    # that of the result, where the kernel has two of about the same size.
    np.testing.assert_array_less(fused, 1.75 * np.array(expected))


@pytest.mark.parametrize("tokens, width", DEFAULT)
def test_agrees_with_the_plain_one_and_is_as_exact_in_bfloat16(
    tokens: int, width: int
) -> None:
    compare(tokens, width)


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("tokens", TOKENS)
def test_agrees_for_all_sizes(tokens: int, width: int) -> None:
    compare(tokens, width)


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("heads, width", [(3, 64), (12, 64), (16, 80), (16, 128)])
def test_every_size_fits_into_vector_memory(
    heads: int, width: int, itemsize: int
) -> None:
    for tokens in TOKENS:
        tiles = choose_tiles(tokens, heads, width, itemsize, VMEM_V5)
        assert tiles is not None, tokens
        assert heads % tiles.step == 0
        assert tiles.step == heads or tiles.step * width % 128 == 0


def test_what_it_cannot_do_is_refused() -> None:
    query = jnp.zeros((1, 197, 2, 64))
    for other, message in (
        (query[:, :1], "1 queries for 197 keys"),
        (query.astype(jnp.float16), "dtype is float16"),
        (query[..., :60], "heads of 60"),
        (query[:, :8], "8 tokens"),
        (jnp.zeros((1, 9001, 2, 64)), "9001 tokens in 2 heads of 64 do not fit"),
    ):
        key = query if message.startswith("1 ") else other
        with pytest.raises(UserError, match=message):
            fused_attention(other, key, key)


def test_choice() -> None:
    """Automatic: on TPUs, and the plain one for shapes that it cannot take."""
    on_cpu = models.choose_attention("auto", "cpu", "cpu")
    assert on_cpu is not None and on_cpu.run is heads_first_attention
    assert models.choose_attention("plain", "cpu", "cpu") is None
    assert models.choose_attention("plain", "tpu", "TPU v4") is None
    assert models.choose_attention("auto", "tpu", "TPU v3") is None
    with pytest.raises(UserError, match="cannot be used on TPU v3"):
        models.choose_attention("fused", "tpu", "TPU v3")
    auto = models.choose_attention("auto", "tpu", "TPU v4")
    fused = models.choose_attention("fused", "tpu", "TPU v4")
    assert auto is not None and fused is not None
    query = jnp.zeros((1, 16, 2, 64))
    assert kernels(jax.make_jaxpr(auto.run)(query, query, query)) == 1
    small = query[:, :8]
    assert kernels(jax.make_jaxpr(auto.run)(small, small, small)) == 0
    with pytest.raises(UserError, match="8 tokens"):
        fused.run(small, small, small)


def kernels(program: Any) -> int:
    return str(program).count("name=fused_attention")


FIELDS: dict[str, Any] = {
    "width": 64,
    "num_heads": 2,
    "patch_size": 4,
    "depth": 2,
    "posemb": "sincos2d",
}
IMAGES = tiny.images(2, 16, 16)


def fused(vit: models.VisionTransformer) -> models.VisionTransformer:
    return vit.clone(attend=models.choose_attention("fused", "cpu", "cpu"))


def loss_and_gradients(vit: models.VisionTransformer, params: Any) -> Any:
    def loss(params: Any) -> jax.Array:
        logits = vit.apply(
            {"params": params}, IMAGES, train=True, rngs={"dropout": jax.random.key(0)}
        )
        return jnp.sum(jnp.asarray(logits) ** 2)

    program = jax.make_jaxpr(jax.value_and_grad(loss))(params)
    return jax.jit(jax.value_and_grad(loss))(params), kernels(program)


@pytest.mark.parametrize(
    "fields, is_fused",
    [
        pytest.param({}, True, marks=pytest.mark.slow),
        ({"qk_norm": True, "scan": True}, True),
        pytest.param(
            {"scan": True, "remat_policy": "nothing_saveable"},
            True,
            marks=pytest.mark.slow,
        ),
        ({"attention_dropout": 0.5}, False),
    ],
    ids=str,
)
def test_a_model_learns_the_same(fields: dict[str, Any], is_fused: bool) -> None:
    vit = tiny.model(**FIELDS | fields)
    params = tiny.params(vit)
    (loss, gradients), found = loss_and_gradients(fused(vit), params)
    assert (found > 0) is is_fused
    (expected, expected_gradients), found = loss_and_gradients(vit, params)
    assert found == 0
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    # Of all, since that of a key's bias is zero but for rounding.
    largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected_gradients))
    for path, x in tiny.paths(expected_gradients).items():
        y = tiny.paths(gradients)[path]
        np.testing.assert_allclose(y, x, rtol=1e-4, atol=1e-6 * largest, err_msg=path)


def test_weights_can_still_be_captured() -> None:
    vit = tiny.model(**FIELDS)
    params, names = tiny.params(vit), ["encoderblock_1/attention"]
    logits, features = tiny.apply(fused(vit), params, IMAGES, capture=names)
    expected, expected_features = tiny.apply(vit, params, IMAGES, capture=names)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        features[names[0]], expected_features[names[0]], rtol=1e-4, atol=1e-6
    )
