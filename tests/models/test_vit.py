"""The model computes the paper's equations, with the published names and counts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import reference, tiny
from vit_jax import models
from vit_jax.errors import UserError

CASES: dict[str, dict[str, Any]] = {
    "token": {"pool": "token"},
    "gap": {"pool": "gap"},
    "map": {"pool": "map"},
    "gap-class-token": {"pool": "gap", "class_token": True},
    "gap-class-token-pooled": {
        "pool": "gap",
        "class_token": True,
        "final_norm": "pooled",
    },
    "map-class-token": {"pool": "map", "class_token": True},
    "token-sincos2d": {"pool": "token", "posemb": "sincos2d"},
    "gap-no-posemb": {"pool": "gap", "posemb": "none"},
    "map-sincos2d-qk_norm-erf": {
        "pool": "map",
        "posemb": "sincos2d",
        "qk_norm": True,
        "gelu": "erf",
    },
    "token-erf": {"pool": "token", "gelu": "erf"},
    "gap-qk_norm-representation": {
        "pool": "gap",
        "qk_norm": True,
        "representation_size": 7,
    },
    "map-epsilon": {"pool": "map", "qk_norm": True, "layer_norm_epsilon": 0.1},
    "none-scan": {"pool": "none", "scan": True},
    "token-scan": {"pool": "token", "scan": True, "qk_norm": True},
}


def numpy_vit(params: Any, images: np.ndarray, fields: dict[str, Any]):
    """What the reference says of a batch: logits, and features stacked by name."""
    if fields.get("scan"):
        params = models.layers.scan_to_loop(params)
    params = jax.tree.map(np.asarray, params)
    results = [
        reference.vit(
            image,
            params,
            patch_size=tiny.FIELDS["patch_size"],
            pool=fields.get("pool", "token"),
            posemb=fields.get("posemb", "learn"),
            gelu=fields.get("gelu", "tanh"),
            eps=fields.get("layer_norm_epsilon", 1e-6),
        )
        for image in images
    ]
    names = results[0][1]
    features = {name: np.stack([f[name] for _, f in results]) for name in names}
    return np.stack([logits for logits, _ in results]), features


@pytest.mark.parametrize("fields", CASES.values(), ids=CASES)
def test_logits_and_features_are_those_of_the_equations(fields: dict[str, Any]):
    vit, images = tiny.model(**fields), tiny.images()
    params = tiny.params(vit)
    expected_logits, expected = numpy_vit(params, images, fields)
    logits, found = tiny.apply(vit, params, capture=vit.feature_names)
    assert logits.dtype == jnp.float32
    assert np.std(expected_logits) > 0.05
    np.testing.assert_allclose(logits, expected_logits, rtol=1e-5, atol=1e-5)
    assert set(found) == set(vit.feature_names) == set(expected) | {"embedding"}
    for name, feature in expected.items():
        np.testing.assert_allclose(
            found[name], feature, rtol=1e-5, atol=1e-5, err_msg=name
        )


@pytest.mark.parametrize("fields", CASES.values(), ids=CASES)
def test_logits_in_float64_leave_no_room_for_a_small_difference(fields: dict):
    with jax.enable_x64(True):
        vit = tiny.model(**fields, dtype="float64", param_dtype="float64")
        images = tiny.images().astype(np.float64)
        params = tiny.params(vit)
        expected, _ = numpy_vit(params, images, fields)
        logits = tiny.apply(vit, params, images)
        assert logits.dtype == jnp.float64
        # The table of sincos2d is in float32 by design.
        tolerance = 1e-6 if fields.get("posemb") == "sincos2d" else 1e-11
        np.testing.assert_allclose(logits, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("pool", ["token", "map"])
def test_every_parameter_matters(pool: str):
    """So the comparison above would see a wrong, a missing or a swapped tensor."""
    fields = {"pool": pool, "qk_norm": True, "representation_size": 7}
    vit, apply = tiny.model(**fields), jax.jit(tiny.model(**fields).apply)
    params = tiny.params(vit)
    leaves, treedef = jax.tree.flatten(params)
    logits = apply({"params": params}, tiny.images())
    for i, path in enumerate(tiny.paths(params)):
        other = leaves[i] + np.random.default_rng(i).normal(size=leaves[i].shape)
        changed = treedef.unflatten([*leaves[:i], other, *leaves[i + 1 :]])
        change = np.abs(apply({"params": changed}, tiny.images()) - logits).max()
        assert change > 1e-3, path


@pytest.mark.parametrize(
    "fields",
    [
        {"pool": "token", "representation_size": 3},
        {"pool": "map", "qk_norm": True, "gelu": "erf", "scan": True},
        {"pool": "gap", "class_token": True, "depth": 1},
    ],
    ids=["token-loop", "map-scan", "gap-class-token"],
)
def test_gradients_are_the_finite_differences_of_the_equations(fields: dict):
    with jax.enable_x64(True):
        small = {"width": 8, "mlp_dim": 6, "num_heads": 2}
        vit = tiny.model(**small, **fields, dtype="float64", param_dtype="float64")
        images = tiny.images().astype(np.float64)
        params = tiny.params(vit)
        weights = np.random.default_rng(2).normal(size=(2, 5))

        def loss(params: Any) -> jax.Array:
            logits: Any = vit.apply({"params": params}, images)
            return jnp.vdot(weights, jnp.tanh(logits))

        def numpy_loss(params: Any) -> float:
            logits, _ = numpy_vit(params, images, fields)
            return float(np.vdot(weights, np.tanh(logits)))

        gradients = jax.jit(jax.grad(loss))(params)
        leaves, treedef = jax.tree.flatten(params)
        rng = np.random.default_rng(3)
        for i, (path, gradient) in enumerate(tiny.paths(gradients).items()):
            direction = rng.normal(size=leaves[i].shape)

            def at(step: float, i=i, direction=direction) -> float:
                moved = [*leaves[:i], leaves[i] + step * direction, *leaves[i + 1 :]]
                return numpy_loss(treedef.unflatten(moved))

            difference = (at(1e-5) - at(-1e-5)) / 2e-5
            slope = np.vdot(gradient, direction)
            assert slope == pytest.approx(difference, rel=1e-6, abs=1e-8), path


@pytest.mark.parametrize(
    ("variant", "count"),
    [
        ("Ti/16", 5_717_416),
        ("S/16", 22_050_664),
        ("B/16", 86_567_656),
        ("B/32", 88_224_232),
        ("L/16", 304_326_632),
        ("H/14", 632_045_800),
    ],
)
@pytest.mark.parametrize("scan", [False, True], ids=["loop", "scan"])
def test_parameter_counts(variant: str, count: int, scan: bool):
    vit = models.create(variant=variant, num_classes=1000, scan=scan)
    params = tiny.shapes(vit, jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


LAYER = {
    "LayerNorm_0/bias": (32,),
    "LayerNorm_0/scale": (32,),
    "LayerNorm_1/bias": (32,),
    "LayerNorm_1/scale": (32,),
    "MlpBlock_0/Dense_0/bias": (48,),
    "MlpBlock_0/Dense_0/kernel": (32, 48),
    "MlpBlock_0/Dense_1/bias": (32,),
    "MlpBlock_0/Dense_1/kernel": (48, 32),
    "MultiHeadDotProductAttention_0/key/bias": (4, 8),
    "MultiHeadDotProductAttention_0/key/kernel": (32, 4, 8),
    "MultiHeadDotProductAttention_0/out/bias": (32,),
    "MultiHeadDotProductAttention_0/out/kernel": (4, 8, 32),
    "MultiHeadDotProductAttention_0/query/bias": (4, 8),
    "MultiHeadDotProductAttention_0/query/kernel": (32, 4, 8),
    "MultiHeadDotProductAttention_0/value/bias": (4, 8),
    "MultiHeadDotProductAttention_0/value/kernel": (32, 4, 8),
}
AROUND = {
    "Transformer/encoder_norm/bias": (32,),
    "Transformer/encoder_norm/scale": (32,),
    "embedding/bias": (32,),
    "embedding/kernel": (4, 8, 3, 32),
}


def shapes(**fields: Any) -> dict[str, tuple[int, ...]]:
    params = tiny.shapes(tiny.model(**fields))
    return {path: leaf.shape for path, leaf in tiny.paths(params).items()}


def blocks(layer: dict[str, tuple]) -> dict[str, tuple]:
    return {
        f"Transformer/encoderblock_{i}/{path}": shape
        for i in range(2)
        for path, shape in layer.items()
    }


def test_parameter_names_and_shapes():
    """An interface: checkpoints of others and our own are read by these names."""
    assert shapes(representation_size=7) == AROUND | blocks(LAYER) | {
        "cls": (1, 1, 32),
        "Transformer/posembed_input/pos_embedding": (1, 7, 32),
        "pre_logits/bias": (7,),
        "pre_logits/kernel": (32, 7),
        "head/bias": (5,),
        "head/kernel": (7, 5),
    }


def test_parameter_names_of_map_pooling_and_qk_norm():
    norm = {
        "MultiHeadDotProductAttention_0/query_ln/scale": (8,),
        "MultiHeadDotProductAttention_0/key_ln/scale": (8,),
    }
    head = {
        f"MAPHead_0/{path}": shape
        for path, shape in (LAYER | norm).items()
        if "LayerNorm_1" not in path
    }
    expected = AROUND | blocks(LAYER | norm) | head
    expected |= {"MAPHead_0/probe": (1, 1, 32)}
    expected |= {"Transformer/posembed_input/pos_embedding": (1, 6, 32)}
    assert shapes(pool="map", qk_norm=True, num_classes=None) == expected


def test_parameter_names_of_scanned_layers():
    layers = {f"Transformer/encoderblock/{p}": (2, *s) for p, s in LAYER.items()}
    head = {"head/bias": (5,), "head/kernel": (32, 5)}
    found = shapes(pool="gap", posemb="sincos2d", scan=True)
    assert found == AROUND | layers | head


@pytest.mark.parametrize("scan", [False, True], ids=["loop", "scan"])
def test_initialisation(scan: bool):
    vit = tiny.model(width=64, mlp_dim=256, pool="map", head_bias_init=-3.0, scan=scan)
    params = jax.jit(vit.init)(jax.random.key(0), tiny.images())["params"]
    if scan:
        params = models.layers.scan_to_loop(params)
    leaf = tiny.paths(params)
    block = "Transformer/encoderblock_1"
    assert not leaf["head/kernel"].any()
    assert (leaf["head/bias"] == -3.0).all()
    posemb = leaf["Transformer/posembed_input/pos_embedding"]
    assert np.std(posemb) == pytest.approx(0.02, rel=0.1)
    bias = leaf[f"{block}/MlpBlock_0/Dense_0/bias"]
    assert np.std(bias) == pytest.approx(1e-6, rel=0.2)
    # xavier_uniform: +- sqrt(6 / (fan in + fan out)), heads counted as one dimension.
    for name, fans in {
        f"{block}/MultiHeadDotProductAttention_0/query": 64 + 64,
        f"{block}/MultiHeadDotProductAttention_0/out": 64 + 64,
        f"{block}/MlpBlock_0/Dense_0": 64 + 256,
        "MAPHead_0/MlpBlock_0/Dense_1": 64 + 256,
    }.items():
        bound = np.sqrt(6 / fans)
        kernel = np.abs(leaf[f"{name}/kernel"])
        assert 0.98 * bound < kernel.max() <= bound, name
    other = leaf["Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel"]
    assert not np.allclose(other, leaf[f"{block}/MlpBlock_0/Dense_0/kernel"])


def test_parameters_and_dropout_do_not_depend_on_the_devices():
    vit = tiny.model(dropout=0.5, attention_dropout=0.5, stochastic_depth=0.5, depth=1)
    images = tiny.images(batch=8)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    data = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    assert len(jax.devices()) == 8
    one = jax.jit(vit.init)(jax.random.key(0), images)
    many = jax.jit(vit.init, out_shardings=everywhere)(jax.random.key(0), images)
    jax.tree.map(np.testing.assert_array_equal, one, many)
    assert not one["params"]["cls"].any()
    params = tiny.params(vit)

    def logits(params: Any, images: Any) -> Any:
        rngs = {"dropout": jax.random.key(7)}
        return vit.apply({"params": params}, images, train=True, rngs=rngs)

    expected = jax.jit(logits)(params, images)
    found = jax.jit(logits)(params, jax.device_put(images, data))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_num_classes_none_and_0_leave_the_head_out():
    for num_classes in (None, 0):
        vit = tiny.model(num_classes=num_classes, pool="gap")
        params = tiny.params(vit)
        assert "head" not in params
        found, features = tiny.apply(vit, params, capture=["encoder_norm"])
        assert found.shape == (2, 32)
        np.testing.assert_allclose(found, features["encoder_norm"].mean(1), atol=1e-6)


def test_pool_none_returns_every_token():
    vit = tiny.model(num_classes=None, pool="none")
    assert tiny.apply(vit, tiny.params(vit)).shape == (2, 6, 32)
    vit = tiny.model(pool="none")
    assert tiny.apply(vit, tiny.params(vit)).shape == (2, 6, 5)


def test_the_embedding_feature_is_before_the_position_embeddings():
    vit = tiny.model()
    params = tiny.params(vit)
    _, found = tiny.apply(vit, params, capture=["embedding", "posembed_input"])
    posemb = params["Transformer"]["posembed_input"]["pos_embedding"]
    np.testing.assert_allclose(
        found["posembed_input"], found["embedding"] + posemb, atol=1e-6
    )


@pytest.mark.parametrize("scan", [False, True], ids=["loop", "scan"])
def test_only_the_named_features_are_returned(scan: bool):
    vit = tiny.model(scan=scan)
    params = tiny.params(vit)
    names = ["encoderblock_1/attention", "encoderblock_0"]
    _, found = tiny.apply(vit, params, capture=names)
    assert set(found) == set(names)
    assert found["encoderblock_1/attention"].shape == (2, 4, 7, 7)
    assert tiny.apply(vit, params, capture=[])[1] == {}
    with pytest.raises(UserError, match='did you mean "encoderblock_1/attention"'):
        tiny.apply(vit, params, capture=["encoderblock_1/atention"])


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_around_it():
    fields = {"pool": "map", "representation_size": 7, "qk_norm": True}
    vit, half = tiny.model(**fields), tiny.model(**fields, dtype="bfloat16")
    assert dtypes(tiny.shapes(half)) == {"float32"}
    params = tiny.params(half)
    logits, exact = tiny.apply(half, params), tiny.apply(vit, params)
    np.testing.assert_allclose(logits, exact, atol=0.03)
    assert np.abs(logits - exact).max() > 1e-5


@pytest.mark.parametrize("scan", [False, True], ids=["loop", "scan"])
def test_dtypes_with_bfloat16(scan: bool):
    half = tiny.model(pool="map", representation_size=7, dtype="bfloat16", scan=scan)

    def loss(params: Any) -> Any:
        logits, features = half.apply(
            {"params": params}, tiny.images(), capture=half.feature_names
        )
        return logits.sum(), (logits, features)

    run = jax.grad(loss, has_aux=True)
    gradients, (logits, features) = jax.eval_shape(run, tiny.shapes(half))
    assert dtypes(gradients) == {"float32"}
    assert logits.dtype == features["pre_logits"].dtype == "float32"
    for name, feature in features.items():
        precise = name.endswith("attention") or name == "pre_logits"
        assert feature.dtype == ("float32" if precise else "bfloat16"), name


def dtypes(tree: Any) -> set[str]:
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}


def test_param_dtype():
    params = tiny.shapes(tiny.model(pool="map", qk_norm=True, param_dtype="bfloat16"))
    assert dtypes(params) == {"bfloat16"}


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((1, 14, 16, 3), "14 x 16 .* nearest height 12 or 16"),
        ((1, 2, 20, 3), "nearest height 4, nearest width 16 or 24"),
        ((12, 16, 3), r"must be .* \[batch, height, width, channels\]; got float32"),
    ],
)
def test_images_that_do_not_fit_the_patches(shape: tuple[int, ...], expected: str):
    with pytest.raises(UserError, match=expected):
        tiny.model().init(jax.random.key(0), jnp.zeros(shape))


def test_pixels_that_were_not_normalised_are_refused():
    with pytest.raises(UserError, match=r"normalised .* got uint8"):
        tiny.model().init(jax.random.key(0), jnp.zeros((1, 12, 16, 3), jnp.uint8))


def test_images_of_another_size_than_the_position_embeddings():
    vit = tiny.model()
    with pytest.raises(UserError, match=r"9 tokens .* shape \[1, 7, 32\]"):
        tiny.apply(vit, tiny.params(vit), tiny.images(height=16))
    fixed = tiny.model(posemb="sincos2d")
    logits = tiny.apply(fixed, tiny.params(fixed), tiny.images(height=16))
    assert logits.shape == (2, 5)
