"""Converters between looped and scanned layers are exact, both ways."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.models import tiny
from vit_jax.errors import UserError
from vit_jax.models.layers import loop_to_scan, scan_to_loop

LOOP = tiny.model(pool="map", qk_norm=True)
SCAN = LOOP.clone(scan=True)


def assert_same(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    compare = functools.partial(np.testing.assert_array_equal, strict=True)
    jax.tree.map(compare, found, expected)


def assert_close(found: Any, expected: Any, *, rtol: float, atol: float = 0) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    compare = functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol)
    jax.tree.map(compare, found, expected)


def test_layer_i_becomes_row_i_and_back():
    params = tiny.params(LOOP)
    scanned = loop_to_scan(params)
    for i in range(2):
        row = jax.tree.map(lambda x, i=i: x[i], scanned["Transformer"]["encoderblock"])
        assert_same(row, params["Transformer"][f"encoderblock_{i}"])
    assert_same(scan_to_loop(scanned), params)
    assert_same(loop_to_scan(scan_to_loop(scanned)), scanned)


def test_more_than_ten_layers_keep_their_order():
    params = {f"encoderblock_{i}": np.array([i]) for i in reversed(range(12))}
    scanned = loop_to_scan(params)
    assert scanned["encoderblock"].tolist() == [[i] for i in range(12)]
    assert_same(scan_to_loop(scanned), params)


def test_names_and_shapes_are_those_of_the_other_model():
    loop, scan = (tiny.shapes(model) for model in (LOOP, SCAN))
    assert_same_shapes(jax.eval_shape(loop_to_scan, loop), scan)
    assert_same_shapes(jax.eval_shape(scan_to_loop, scan), loop)


def assert_same_shapes(found: Any, expected: Any) -> None:
    assert jax.tree.map(str, found) == jax.tree.map(str, expected)


def test_logits_and_gradients_are_equal():
    def loss(vit: Any, params: Any) -> jax.Array:
        return jnp.tanh(vit.apply({"params": params}, tiny.images())).sum()

    params = tiny.params(LOOP)
    value, gradients = jax.jit(jax.value_and_grad(lambda p: loss(LOOP, p)))(params)
    other, scanned = jax.jit(jax.value_and_grad(lambda p: loss(SCAN, p)))(
        loop_to_scan(params)
    )
    np.testing.assert_allclose(other, value, rtol=1e-6)
    assert_close(scan_to_loop(scanned), gradients, rtol=1e-4, atol=1e-6)


def test_optimizer_states_convert_too():
    params = tiny.params(LOOP)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    gradients = jax.tree.map(np.cos, params)
    update = jax.jit(tx.update)
    updates, state = update(gradients, tx.init(params), params)
    scanned = [loop_to_scan(tree) for tree in (gradients, params)]
    scanned_updates, scanned_state = update(
        scanned[0], jax.jit(tx.init)(scanned[1]), scanned[1]
    )
    # The norm of all gradients is summed in another order.
    assert_close(loop_to_scan(updates), scanned_updates, rtol=1e-5)
    assert_close(loop_to_scan(state), scanned_state, rtol=1e-5)
    assert_same(scan_to_loop(loop_to_scan(state)), state)


def test_arrays_stay_where_they_are():
    on_host = {f"encoderblock_{i}": {"bias": np.ones(2)} for i in range(2)}
    on_device = jax.tree.map(jnp.asarray, on_host)
    assert isinstance(loop_to_scan(on_host)["encoderblock"]["bias"], np.ndarray)
    assert isinstance(loop_to_scan(on_device)["encoderblock"]["bias"], jax.Array)


def test_trees_without_layers_come_back_unchanged():
    tree = {"head": {"bias": np.ones(2)}, "count": np.int32(3), "none": None}
    assert_same(loop_to_scan(tree), tree)
    assert_same(scan_to_loop(tree), tree)


def test_layers_that_cannot_be_stacked():
    with pytest.raises(UserError, match=r"numbers \[0, 2\], expected 0 to 1"):
        loop_to_scan({"encoderblock_0": np.ones(2), "encoderblock_2": np.ones(2)})
    with pytest.raises(UserError, match="layers that differ"):
        loop_to_scan({"encoderblock_0": np.ones(2), "encoderblock_1": np.ones(3)})
    with pytest.raises(UserError, match="layers that differ"):
        loop_to_scan({"encoderblock_0": {"a": 1}, "encoderblock_1": {"b": 1}})
    with pytest.raises(UserError, match=r"leading axes \[2, 3\]"):
        scan_to_loop({"encoderblock": {"a": np.ones(2), "b": np.ones(3)}})
