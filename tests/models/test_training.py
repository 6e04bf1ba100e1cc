"""What only training has: dropout, stochastic depth, rematerialisation, sharding."""

import collections
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import tiny
from vit_jax import models
from vit_jax.models.blocks import drop_path
from vit_jax.models.encoder import REMAT_NAMES

both = pytest.mark.parametrize("scan", [False, True], ids=["loop", "scan"])
KEY = jax.random.key(0)


@both
@pytest.mark.parametrize("field", ["dropout", "attention_dropout", "stochastic_depth"])
def test_random_in_training_only(field: str, scan: bool):
    vit = tiny.model(scan=scan, pool="gap", **{field: 0.5})
    params, images = tiny.params(vit), tiny.images(8)
    plain = tiny.apply(tiny.model(scan=scan, pool="gap"), params, images)
    np.testing.assert_array_equal(tiny.apply(vit, params, images), plain)

    @jax.jit
    def train(key: jax.Array) -> Any:
        rngs = {"dropout": key}
        return vit.apply({"params": params}, images, train=True, rngs=rngs)

    first = train(KEY)
    np.testing.assert_array_equal(train(KEY), first)
    assert not np.allclose(first, plain, atol=1e-3)
    assert not np.allclose(train(jax.random.key(1)), first, atol=1e-3)


def test_without_rates_training_needs_no_randomness():
    vit = tiny.model()
    params = tiny.params(vit)
    expected = tiny.apply(vit, params)
    np.testing.assert_array_equal(tiny.apply(vit, params, train=True), expected)


def branches(scan: bool, batch: int, **fields: Any) -> np.ndarray:
    """What each layer adds to each token: [layer, b, n, d].

    Kernels are 0 and biases are such that attention would add 1 and the MLP 10.
    """
    vit = tiny.model(scan=scan, depth=3, pool="gap", width=8, num_heads=1, **fields)
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), tiny.shapes(vit))
    for name, block in zeros["Transformer"].items():
        if name.startswith("encoderblock"):
            block["MultiHeadDotProductAttention_0"]["out"]["bias"] += 1
            block["MlpBlock_0"]["Dense_1"]["bias"] += 10
    images = tiny.images(batch)
    names = ["posembed_input", *(f"encoderblock_{i}" for i in range(3))]
    _, found = tiny.apply(vit, zeros, images, train=True, key=KEY, capture=names)
    return np.diff([found[name] for name in names], axis=0)


@both
def test_dropout_differs_between_layers_branches_and_tokens(scan: bool):
    added = branches(scan, batch=64, dropout=0.25)
    of_mlp, of_attention = np.divmod(np.round(added * 0.75), 10)
    for mask in (of_attention, of_mlp):
        assert set(np.unique(mask)) == {0, 1}
        np.testing.assert_allclose(mask.mean(axis=(1, 2, 3)), 0.75, atol=0.03)
    masks = [*of_attention, *of_mlp]
    for i, a in enumerate(masks):
        for b in masks[:i]:
            # Independent masks agree in 0.75^2 + 0.25^2 of all places.
            assert (a == b).mean() == pytest.approx(0.625, abs=0.05)
    assert not (masks[0] == masks[0][:1]).all()
    assert not (masks[0] == masks[0][:, :1]).all()


@both
def test_stochastic_depth_drops_whole_branches_more_often_in_later_layers(scan: bool):
    added = branches(scan, batch=1000, stochastic_depth=0.5)
    assert (added == added[:, :, :1, :1]).all()  # whole examples
    added = added[:, :, 0, 0]  # [layer, b]
    masks = {}
    for layer, rate in enumerate((0.0, 0.25, 0.5)):
        of_mlp, of_attention = np.divmod(np.round(added[layer] * (1 - rate)), 10)
        for branch, mask in {"attention": of_attention, "mlp": of_mlp}.items():
            assert set(np.unique(mask)) <= {0, 1}
            assert mask.mean() == pytest.approx(1 - rate, abs=0.05)
            masks[layer, branch] = mask
        expected = (of_attention + 10 * of_mlp) / (1 - rate)
        np.testing.assert_allclose(added[layer], expected, rtol=1e-6)
    assert masks[0, "attention"].all()
    # Independent masks agree in a known share of all places.
    for one, other, share in [
        ((2, "attention"), (2, "mlp"), 0.5),
        ((1, "attention"), (1, "mlp"), 0.75**2 + 0.25**2),
        ((1, "attention"), (2, "attention"), 0.5),
    ]:
        assert (masks[one] == masks[other]).mean() == pytest.approx(share, abs=0.06)


def test_drop_path_keeps_the_expectation_and_the_dtype():
    x = jnp.ones((4000, 2, 3), jnp.bfloat16)
    out = drop_path(x, KEY, rate=0.2)
    assert out.dtype == jnp.bfloat16
    assert set(np.unique(np.asarray(out, np.float32))) == {0.0, 1.25}
    assert float(out.astype(jnp.float32).mean()) == pytest.approx(1.0, abs=0.02)


def test_dropout_after_the_position_embeddings_and_between_the_mlps_layers():
    """Where the paper's appendix B.1 and its code have it."""
    vit = tiny.model(dropout=0.5, depth=1)
    params = tiny.params(vit)
    block = params["Transformer"]["encoderblock_0"]
    zero = jax.tree.map(np.zeros_like, block)
    zero["MlpBlock_0"]["Dense_0"]["bias"] += 5
    zero["MlpBlock_0"]["Dense_1"]["kernel"] += 1
    params["Transformer"]["encoderblock_0"] = zero
    names = ["posembed_input", "encoderblock_0"]
    _, found = tiny.apply(
        vit, params, tiny.images(32), key=KEY, train=True, capture=names
    )
    z, added = found[names[0]], found[names[1]] - found[names[0]]
    assert (z == 0).mean() == pytest.approx(0.5, abs=0.03)
    # 48 hidden units of GELU(5) = 5, half of them dropped, the others twice as large;
    # then half of the outputs are dropped, the others twice as large.
    kept_units = np.round(np.asarray(added[added != 0]) / 20, 3)
    assert (np.round(kept_units) == kept_units).all()
    assert kept_units.mean() == pytest.approx(24, rel=0.03)
    assert kept_units.std() == pytest.approx(np.sqrt(48 / 4), rel=0.1)
    assert (added == 0).mean() == pytest.approx(0.5, abs=0.03)


def loss_of(vit: models.VisionTransformer) -> Any:
    def loss(params: Any) -> jax.Array:
        rngs = {"dropout": KEY}
        logits: Any = vit.apply(
            {"params": params}, tiny.images(), train=True, rngs=rngs
        )
        return jnp.tanh(logits).sum()

    return loss


POLICIES = [
    "nothing_saveable",
    "everything_saveable",
    "dots_saveable",
    "dots_with_no_batch_dims_saveable",
    "save_only_these_names",
]


@pytest.mark.parametrize(
    "scan", [pytest.param(False, marks=pytest.mark.slow), True], ids=["loop", "scan"]
)
def test_remat_policies_change_no_value(scan: bool):
    rates = {"dropout": 0.1, "attention_dropout": 0.1, "stochastic_depth": 0.2}
    vit = tiny.model(**rates, scan=scan, remat_policy="none", width=16)
    params = tiny.params(vit)
    value, gradients = jax.jit(jax.value_and_grad(loss_of(vit)))(params)
    for policy in ("nothing_saveable", "save_only_these_names"):
        other = vit.clone(remat_policy=policy)
        found, again = jax.jit(jax.value_and_grad(loss_of(other)))(params)
        np.testing.assert_allclose(found, value, rtol=1e-6)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            again,
            gradients,
        )


def equations(jaxpr: Any) -> Iterator[Any]:
    """Of a traced program and of the programs within it, each once."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def count(function: Any, *args: Any) -> collections.Counter:
    """How often each primitive occurs in a traced function."""
    traced = jax.make_jaxpr(function)(*args)
    return collections.Counter(e.primitive.name for e in equations(traced.jaxpr))


def products(**fields: Any) -> int:
    """Matrix products of a training step, those of a scan's body counted once."""
    vit = tiny.model(**fields)
    return count(jax.grad(loss_of(vit)), tiny.shapes(vit))["dot_general"]


@both
def test_remat_policies_compute_again_what_they_say(scan: bool):
    layers = 1 if scan else 2
    plain = products(scan=scan, remat_policy="none")
    again = {
        policy: (products(scan=scan, remat_policy=policy) - plain) // layers
        for policy in POLICIES
    }
    assert again == {
        # q, k, v, scores, values, out, and the MLP's first product.
        "nothing_saveable": 7,
        "everything_saveable": 0,
        "dots_saveable": 0,
        "dots_with_no_batch_dims_saveable": 2,
        "save_only_these_names": 1,  # scores
    }


@both
@pytest.mark.parametrize("name", ["q", "k", "v", "attn_o", "mid", "up"])
def test_each_name_saves_one_product(name: str, scan: bool):
    fields: dict[str, Any] = {"scan": scan, "remat_policy": "save_only_these_names"}
    rest = tuple(n for n in REMAT_NAMES if n != name)
    layers = 1 if scan else 2
    assert products(**fields, remat_names=rest) - products(**fields) == layers


def test_a_loop_keeps_all_and_a_scan_the_names_unless_told_otherwise():
    assert products() == products(remat_policy="none")
    saved = products(scan=True, remat_policy="save_only_these_names")
    assert products(scan=True) == saved > products(scan=True, remat_policy="none")


@both
def test_norms_are_written_in_the_forward_pass_alone(scan: bool):
    def barriers(write_norms: bool) -> int:
        vit = tiny.model(scan=scan, remat_policy="none", write_norms=write_norms)
        return count(jax.grad(loss_of(vit)), tiny.shapes(vit))["optimization_barrier"]

    layers = 1 if scan else 2
    assert barriers(True) - barriers(False) == 2 * layers


@both
def test_norms_that_are_written_change_nothing(scan: bool):
    fields: dict[str, Any] = {"scan": scan, "remat_policy": "nothing_saveable"}
    params = tiny.params(tiny.model(**fields))
    plain, written = (
        jax.jit(jax.grad(loss_of(tiny.model(**fields, write_norms=write_norms))))(
            params
        )
        for write_norms in (False, True)
    )
    jax.tree.map(np.testing.assert_array_equal, written, plain)


def test_constrain_is_called_after_the_embedding_and_after_every_layer():
    shapes = []

    def constrain(x: jax.Array) -> jax.Array:
        shapes.append(x.shape)
        return x + 0

    vit = tiny.model(depth=3, constrain=constrain)
    jax.eval_shape(vit.apply, {"params": tiny.shapes(vit)}, tiny.images())
    shapes.clear()
    jax.eval_shape(vit.apply, {"params": tiny.shapes(vit.clone())}, tiny.images())
    assert shapes[-4:] == [(2, 7, 32)] * 4


@pytest.mark.parametrize("remat_policy", ["none", "save_only_these_names"])
@both
def test_constraints_are_in_the_traced_program(scan: bool, remat_policy: Any):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))

    def constrain(x: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, sharding)

    vit = tiny.model(depth=3, scan=scan, constrain=constrain, remat_policy=remat_policy)
    args = {"params": tiny.shapes(vit)}, tiny.images()
    traced = jax.make_jaxpr(vit.apply)(*args)
    found = [
        e.outvars[0].aval.shape
        for e in equations(traced.jaxpr)
        if e.primitive.name == "sharding_constraint"
    ]
    # A scan's body stands once in the program and runs for every layer.
    assert found == [(2, 7, 32)] * (2 if scan else 4)
    plain = vit.clone(constrain=lambda x: x)
    assert count(plain.apply, *args)["sharding_constraint"] == 0
