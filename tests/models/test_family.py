"""Hybrids, Mixers, ResNets and the options of later Vision Transformers.

What they compute is compared with timm and transformers in tests/formats.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import tiny
from vit_jax import models, program
from vit_jax.errors import UserError
from vit_jax.planning import flops


def shapes(size: int = 224, **keys: Any) -> dict[str, Any]:
    model = models.create(num_classes=1000, **keys)
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return tiny.paths(tiny.shapes(model, image))


# Of hybrids and Mixers as published; of BiT as timm counts its resnetv2_*_bit.
COUNTS = {
    ("vit", "R+ViT-Ti/16"): 6_337_704,
    ("vit", "R26+ViT-S/32"): 36_431_912,
    ("vit", "R50+ViT-B/16"): 98_659_112,
    ("vit", "R50+ViT-L/32"): 328_994_856,
    ("mixer", "B/16"): 59_880_472,
    ("resnet", "50x1"): 25_549_352,
    ("resnet", "101x1"): 44_541_480,
}


@pytest.mark.parametrize("name, variant", COUNTS)
def test_parameter_counts(name: Any, variant: str) -> None:
    found = shapes(name=name, variant=variant).values()
    assert sum(leaf.size for leaf in found) == COUNTS[name, variant]


@pytest.mark.parametrize("name", ["vit", "mixer", "resnet"])
def test_all_published_variants_can_be_built(name: Any) -> None:
    for variant in models.list_models(name):
        assert models.create(name=name, variant=variant).feature_names


def test_parameter_names() -> None:
    """Interfaces: those of the published files."""
    found = shapes(32, variant="Ti/16", resnet=(1,), depth=1, patch_size=1)
    names = {f"{conv}/kernel" for conv in ("conv_root", *units("block1", 4))}
    norms = ("gn_root", *(f"block1/unit1/gn{n}" for n in ("1", "2", "3", "_proj")))
    names |= {f"{norm}/{leaf}" for norm in norms for leaf in ("scale", "bias")}
    others = ("Transformer/", "embedding", "cls", "head")
    assert {n for n in found if not n.startswith(others)} == names

    found = shapes(32, name="mixer", variant="S/16", depth=1)
    names = {f"{x}/{leaf}" for x in ("stem", "head") for leaf in ("kernel", "bias")}
    norms = (
        "pre_head_layer_norm",
        "MixerBlock_0/LayerNorm_0",
        "MixerBlock_0/LayerNorm_1",
    )
    names |= {f"{norm}/{leaf}" for norm in norms for leaf in ("scale", "bias")}
    for mixing in ("token_mixing", "channel_mixing"):
        for dense in ("Dense_0", "Dense_1"):
            names |= {f"MixerBlock_0/{mixing}/{dense}/{x}" for x in ("kernel", "bias")}
    assert set(found) == names


def units(block: str, convs: int) -> list[str]:
    return [
        f"{block}/unit1/{n}" for n in ("conv1", "conv2", "conv3", "conv_proj")[:convs]
    ]


SMALL = {
    "patch_size": 16,
    "width": 32,
    "depth": 1,
    "mlp_dim": 64,
    "num_heads": 4,
}
CASES: dict[str, dict[str, Any]] = {
    "hybrid": {**SMALL, "resnet": (1,), "patch_size": 4},
    "mixer": {
        "name": "mixer",
        "patch_size": 16,
        "width": 32,
        "depth": 2,
        "tokens_mlp_dim": 8,
        "mlp_dim": 64,
    },
    "resnet": {"name": "resnet", "stages": (1, 1), "width_factor": 1},
    "dinov2": {**SMALL, "registers": 4, "layer_scale": 1e-5, "mlp": "swiglu"},
    "deit": {**SMALL, "distilled": True},
    "pooled": {**SMALL, "pool": "gap", "final_norm": "pooled"},
    "class-token": {**SMALL, "pool": "gap", "class_token": True, "registers": 2},
}


class Shape:
    """Of the training data."""

    image_shape, label_classes = (32, 32, 3), None
    mean = std = (0.5, 0.5, 0.5)


def make_program(model: dict[str, Any], **mesh: int) -> program.Program:
    devices = jax.devices()[: np.prod(list(mesh.values()), dtype=int)]
    return program.Program(
        Shape(),
        devices,
        seed=0,
        batch_size=8,
        total_steps=10,
        num_classes=12,
        accumulation_steps=1,
        mixup=0.0,
        ema=None,
        model={"name": "vit", **model},
        loss={},
        optim={},
        mesh=mesh,
    )


@pytest.mark.parametrize(
    "kind",
    [
        *("hybrid", "dinov2"),
        *(
            pytest.param(k, marks=pytest.mark.slow)
            for k in ("resnet", "deit", "pooled", "class-token")
        ),
    ],
)
def test_training_steps_of_every_kind(kind: str) -> None:
    """On a mesh of all axes: each parameter has a rule, and each one learns."""
    made = make_program(CASES[kind], data=2, fsdp=2, tensor=2)
    state = jax.jit(
        made.initialize,
        out_shardings=jax.tree.map(lambda x: x.sharding, made.abstract_state),
    )()
    before = jax.tree.map(np.asarray, state.params)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 255, (8, 32, 32, 3), np.uint8),
        "label": np.arange(8, dtype=np.int32),
        "mask": np.ones(8, bool),
    }
    step = made.lower_train_step().compile()
    metrics: dict[str, Any] = {}
    for _ in range(3):  # the head starts at 0, and so do the last norms of units
        placed = {
            k: jax.device_put(v, made.abstract_batch[k].sharding)
            for k, v in batch.items()
        }
        state, metrics = step(state, placed)
    assert np.isfinite(float(metrics["loss"]))
    for path, leaf in tiny.paths(state.params).items():
        unmoved = np.array_equal(leaf, tiny.paths(before)[path])
        assert not unmoved or "key/bias" in path, path


@pytest.mark.parametrize("model", CASES.values(), ids=CASES)
def test_flops_are_those_of_the_traced_program(model: dict[str, Any]) -> None:
    made = make_program(model, data=1)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    params = tiny.shapes(made.model, image)
    jaxpr = jax.make_jaxpr(made.model.apply)({"params": params}, image)
    expected = flops.traced_flops(jaxpr.jaxpr)
    found = 2 * flops.forward_macs(made.model, (32, 32, 3))
    assert found == pytest.approx(expected, rel=1e-6)


def test_features_of_mixers_and_resnets() -> None:
    for case in ("mixer", "resnet"):
        model = models.create(**CASES[case], num_classes=3)
        params = tiny.shapes(model, images())
        names = model.feature_names
        out, found = jax.eval_shape(
            lambda p, m=model, n=names: m.apply({"params": p}, images(), capture=n),
            params,
        )
        assert set(found) == set(names) and out.shape == (2, 3)
        with pytest.raises(UserError, match="no feature"):
            model.apply({"params": params}, images(), capture=["nothing"])


def images() -> jax.Array:
    return jnp.zeros((2, 32, 32, 3))


def test_stochastic_depth_of_a_mixer_drops_whole_branches() -> None:
    model = models.create(**CASES["mixer"], stochastic_depth=0.5, num_classes=None)
    params = jax.jit(model.init)(jax.random.key(0), images())["params"]
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 32, 32, 3)), jnp.float32)
    apply = jax.jit(
        lambda key: model.apply(
            {"params": params}, x, train=True, rngs={"dropout": key}
        )
    )
    one, other = apply(jax.random.key(0)), apply(jax.random.key(1))
    changed = np.abs(one - other).max(axis=1) > 1e-6
    # Two branches of the last layer, each dropped half of the time, in two draws: the
    # same in 1/4 of the examples.
    assert 0.6 < changed.mean() < 0.9


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"variant": "R26+ViT-B/16"}, "no such ResNet for its patch size"),
        ({"variant": "B/16", "name": "resnet"}, "not of the form DEPTHxWIDTH"),
        ({"variant": "R50+ViT-B/16", "name": "mixer"}, "not of the form SIZE/PATCH"),
        ({"variant": "B/16", "distilled": True, "pool": "gap"}, "distilled needs"),
        ({"variant": "B/16", "pool": "map", "final_norm": "pooled"}, "final_norm"),
        (
            {"variant": "B/16", "registers": -1},
            "registers is -1: it should be at most 4,096, and not negative",
        ),
        ({"variant": "B/16", "resnet": (0,)}, "at least 1 unit"),
        ({"name": "resnet", "stages": (), "width_factor": 1}, "at least one stage"),
        ({"name": "mixer", "variant": "B/16", "stochastic_depth": 1.0}, "less than 1"),
        ({"name": "mixer", "variant": "B/16", "tokens_mlp_dim": 0}, "at least 1"),
    ],
)
def test_what_cannot_be(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        models.create(**keys)


def test_a_mixer_takes_images_of_one_size() -> None:
    model = models.create(**CASES["mixer"], num_classes=3)
    params = tiny.shapes(model, images())
    with pytest.raises(UserError, match="give 9 tokens, but the parameters mix 4"):
        jax.eval_shape(model.apply, {"params": params}, jnp.zeros((1, 48, 48, 3)))
