"""cuDNN's attention but for cuDNN: padding, masks and gradients, computed by XLA here.

What it gives on a GPU: `benchmarks/gpu_step.py`, which checks before it measures.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import tiny
from tests.models.test_fused_attention import drawn, errors, exact, out_and_gradients
from vit_jax import layouts, models, sharding
from vit_jax.errors import UserError
from vit_jax.models import cudnn_attention
from vit_jax.models.attention import Attend, dot_product_attention

BY_XLA = functools.partial(cudnn_attention.cudnn_attention, implementation="xla")


def padded(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """As in the model, with what a query must not see as large as can be."""
    tokens = query.shape[1]
    added = cudnn_attention.padding(tokens)
    sides = ((0, 0), (0, added), (0, 0), (0, 0))
    arrays = [jnp.pad(x, sides, constant_values=9.0) for x in (query, key, value)]
    return BY_XLA(*arrays, tokens=tokens)[:, :tokens]


@pytest.mark.parametrize("tokens, width", [(197, 64), (50, 32), (257, 80)])
def test_padding_is_seen_neither_by_results_nor_by_gradients(
    tokens: int, width: int
) -> None:
    arrays = drawn(tokens, 2, width, jnp.bfloat16)
    truth = exact(arrays)
    plain = errors(
        out_and_gradients(lambda *x: dot_product_attention(*x)[0], arrays), truth
    )
    found = errors(out_and_gradients(padded, arrays), truth)
    np.testing.assert_array_less(found, 1.25 * np.array(plain))


def test_what_is_padded_gets_no_gradient() -> None:
    query, key, value, gradient = drawn(4, 2, 8, jnp.bfloat16)
    _, pullback = jax.vjp(functools.partial(BY_XLA, tokens=3), query, key, value)
    _, of_key, of_value = pullback(gradient)
    assert not of_key[:, 3:].any() and not of_value[:, 3:].any()
    assert of_key[:, :3].all() and of_value[:, :3].all()


def names(attend: Any, arrays: list[jax.Array]) -> int:
    def loss(*qkv: jax.Array) -> jax.Array:
        return attend(*qkv).astype(jnp.float32).sum()

    program = jax.make_jaxpr(jax.grad(loss))(*arrays[:3])
    return str(program).count("name[name=attn_o]")


def test_what_the_backward_pass_reads_is_named() -> None:
    assert names(BY_XLA, drawn(4, 2, 8, jnp.bfloat16)) > 0


@pytest.mark.parametrize(
    "width, dtype, capability, message",
    [
        (64, "float32", "9.0", "model.dtype is float32"),
        (60, "bfloat16", "9.0", "width of 60; it takes multiples of 8 up to 256"),
        (160, "bfloat16", "8.0", "width of 160; it takes multiples of 8 up to 128"),
    ],
)
def test_what_it_cannot_do_is_refused(
    width: int, dtype: str, capability: str, message: str
) -> None:
    attend = models.choose_attention("cudnn", "gpu", "NVIDIA A100", capability)
    assert attend is not None
    query = jnp.zeros((1, 198, 2, width), dtype)
    with pytest.raises(UserError, match=message):
        attend.run(query, query, query)
    auto = models.choose_attention("auto", "gpu", "NVIDIA A100", capability)
    assert auto is not None
    assert auto.padding(197, width, dtype) == 0
    expected = dot_product_attention(query, query, query)[0]
    np.testing.assert_array_equal(auto.run(query, query, query), expected)


@pytest.mark.parametrize(
    "platform, kind, capability",
    [("cpu", "cpu", None), ("gpu", "Tesla V100", "7.0"), ("gpu", "MI300X", "gfx942")],
)
def test_devices_without_it(platform: str, kind: str, capability: str | None) -> None:
    with pytest.raises(UserError, match=rf'"cudnn" cannot be used on {kind}, only on'):
        models.choose_attention("cudnn", platform, kind, capability)
    auto = models.choose_attention("auto", platform, kind, capability)
    assert (auto is None) == (platform == "gpu")


def test_automatic_where_it_is_faster() -> None:
    auto = models.choose_attention("auto", "gpu", "NVIDIA H100", "9.0")
    assert auto is not None
    assert auto.padding(197, 64, "bfloat16") == 1
    assert auto.padding(196, 64, "bfloat16") == 0
    assert auto.padding(17, 64, "bfloat16") == 0  # by XLA


FIELDS: dict[str, Any] = {
    "width": 64,
    "num_heads": 2,
    "patch_size": 4,
    "depth": 2,
    "posemb": "sincos2d",
    "dtype": "bfloat16",
}
IMAGES = tiny.images(2, 16, 16)  # 16 patches and the class token


def loss_and_gradients(vit: Any, params: Any) -> Any:
    def loss(params: Any) -> jax.Array:
        rngs = {"dropout": jax.random.key(0)}
        logits = vit.apply({"params": params}, IMAGES, train=True, rngs=rngs)
        return jnp.sum(jnp.asarray(logits) ** 2)

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"scan": True}, marks=pytest.mark.slow),
        {"qk_norm": True, "dropout": 0.5},
    ],
    ids=str,
)
def test_a_model_learns_the_same(fields: dict[str, Any]) -> None:
    """In float32 but for attention, so that only what is padded can differ."""
    vit = tiny.model(**FIELDS | fields | {"dtype": "float32"})
    params = tiny.params(vit)

    def attend(*qkv: jax.Array, tokens: int) -> jax.Array:
        assert qkv[0].shape[1] == 18 and tokens == 17
        return cudnn_attention._attention("xla", tokens, *qkv)

    padding = Attend(attend, lambda tokens, width, dtype: tokens % 2)
    loss, gradients = loss_and_gradients(vit.clone(attend=padding), params)
    expected, expected_gradients = loss_and_gradients(vit, params)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected_gradients))
    for path, x in tiny.paths(expected_gradients).items():
        y = tiny.paths(gradients)[path]
        np.testing.assert_allclose(y, x, rtol=1e-4, atol=1e-6 * largest, err_msg=path)


def test_with_its_own_dropout_attention_is_the_plain_one() -> None:
    vit = tiny.model(**FIELDS | {"attention_dropout": 0.5})

    def attend(*qkv: jax.Array) -> jax.Array:
        raise AssertionError("this has no dropout")

    loss_and_gradients(vit.clone(attend=Attend(attend)), tiny.params(vit))


def test_over_a_mesh_each_device_has_its_own_images_and_heads() -> None:
    layout = layouts.Layout(data=2, fsdp=2, tensor=2)
    mesh = layouts.make_mesh(layout, jax.devices()[:8])
    query, key, value, _ = drawn(6, 4, 8, jnp.bfloat16)
    arrays = [jnp.concatenate([x, 2 * x]) for x in (query, key, value)]
    over = sharding.over_heads(mesh, BY_XLA)
    found = jax.jit(functools.partial(over, tokens=5))(*arrays)
    np.testing.assert_array_equal(found, BY_XLA(*arrays, tokens=5))


@pytest.mark.parametrize(
    "fields, expected",
    [({}, True), ({"recompute_gelu": False}, False)],
    ids=str,
)
def test_gelu_is_computed_again_on_gpus(fields: dict[str, Any], expected: bool) -> None:
    def recomputed(platform: str) -> bool:
        vit = models.place(
            tiny.model(**FIELDS | fields),
            constrain=lambda x: x,
            attend=None,
            classify=lambda x, kernel, bias: x @ kernel + bias,
            platform=platform,
        )
        params = tiny.shapes(vit, IMAGES)
        program = jax.make_jaxpr(vit.apply)({"params": params}, IMAGES)
        assert vit.recompute_gelu is ("remat" in str(program))
        return vit.recompute_gelu

    assert recomputed("gpu") is expected
    assert not recomputed("cpu")


def test_gelu_computed_again_is_the_same() -> None:
    vit = tiny.model(**FIELDS | {"dtype": "float32"})
    params = tiny.params(vit)
    kept = loss_and_gradients(vit, params)
    again = loss_and_gradients(vit.clone(recompute_gelu=True), params)
    for x, y in zip(jax.tree.leaves(kept), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(y, x, rtol=1e-4, atol=1e-4)
