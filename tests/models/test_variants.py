"""Models by name: sizes, overrides and the messages for what does not exist."""

import dataclasses
from typing import Any

import pytest

import vit_jax
from vit_jax import models
from vit_jax.errors import UserError

# Width, depth, MLP dim, heads, from the papers that variants.py cites.
SIZES = {
    "Ti/16": (192, 12, 768, 3),
    "S/16": (384, 12, 1536, 6),
    "B/16": (768, 12, 3072, 12),
    "L/16": (1024, 24, 4096, 16),
    "H/14": (1280, 32, 5120, 16),
    "So400m/14": (1152, 27, 4304, 16),
    "g/14": (1408, 40, 6144, 16),
    "G/14": (1664, 48, 8192, 16),
    "e/14": (1792, 56, 15360, 16),
}


@pytest.mark.parametrize(("variant", "sizes"), SIZES.items(), ids=SIZES)
def test_sizes(variant: str, sizes: tuple[int, ...]):
    vit = models.create(variant=variant)
    assert (vit.width, vit.depth, vit.mlp_dim, vit.num_heads) == sizes
    assert vit.patch_size == int(variant.split("/")[1])


@pytest.mark.parametrize("patch", [1, 8, 20])
def test_any_patch_size(patch: int):
    assert models.create(variant=f"B/{patch}").patch_size == patch


def test_listed_models_can_be_created():
    listed = vit_jax.list_models()
    assert set(SIZES) <= set(listed)
    assert len(listed) == len(set(listed))
    for variant in listed:
        models.create(variant=variant)


def test_explicit_fields_win_over_the_variant():
    vit = models.create(variant="B/16", width=384, num_heads=6, patch_size=(8, 4))
    assert (vit.width, vit.num_heads, vit.patch_size) == (384, 6, (8, 4))
    assert (vit.depth, vit.mlp_dim) == (12, 3072)


def test_none_means_not_given():
    assert models.create(variant="B/16", width=None, num_classes=None).width == 768


def test_a_model_without_a_variant():
    fields = {"patch_size": 4, "width": 8, "depth": 1, "mlp_dim": 16, "num_heads": 2}
    vit = models.create(name="vit", variant=None, **fields)
    assert {key: getattr(vit, key) for key in fields} == fields


def test_every_field_has_a_type_that_a_config_can_check():
    """All keyword-only; `constrain` is the one that no config can hold."""
    fields = {f.name: f for f in dataclasses.fields(models.MODELS["vit"])}
    assert all(field.kw_only for field in fields.values())
    assert "Callable" in str(fields["constrain"].type)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"variant": "b/16"}, 'unknown size: did you mean "B/16"?'),
        ({"variant": "ViT-B/16"}, 'such as "B/16": did you mean "B/16"?'),
        ({"variant": "vit-b16"}, 'did you mean "B/16"?'),
        ({"variant": "vit_b/16"}, 'did you mean "B/16"?'),
        ({"variant": "vit_large_patch32_384"}, 'did you mean "L/32"?'),
        ({"variant": "r50+b16"}, 'did you mean "R50+ViT-B/16"?'),
        ({"variant": "So400/14"}, 'did you mean "So400m/14"?'),
        ({"variant": "X/16"}, "unknown size: "),
        ({"variant": "B"}, 'not of the form SIZE/PATCH, such as "B/16"'),
        ({"variant": "B/0"}, "not of the form SIZE/PATCH"),
        ({"variant": "B/16 "}, 'did you mean "B/16"?'),
        ({"name": "vitt"}, 'model.name="vitt" is unknown: did you mean "vit"?'),
        ({"widht": 3}, 'model.widht is unknown: did you mean "width"?'),
        ({"parent": None}, "model.parent is unknown"),
        ({"pool": "tokens"}, 'model.pool="tokens" is unknown: did you mean "token"?'),
        ({"posemb": "rope"}, "valid names: learn, none, sincos2d"),
        ({"dtype": "bf16"}, 'did you mean "bfloat16"?'),
        ({"remat_policy": "dots_savable"}, 'did you mean "dots_saveable"?'),
        ({"gelu": "exact"}, "valid names: erf, tanh"),
        ({"remat_names": ("q", "w")}, 'model.remat_names="w" is unknown'),
        ({"num_heads": 5}, "num_heads=5 does not divide model.width=768"),
        ({"depth": 0}, "model.depth=0 must be at least 1"),
        ({"num_classes": -1}, "model.num_classes is -1: it should be"),
        (
            {"representation_size": -1},
            "model.representation_size is -1: it should be at most",
        ),
        ({"patch_size": (16, 0)}, "model.patch_size=(16, 0) must be at least 1"),
        ({"dropout": 1.0}, "model.dropout=1.0 must be at least 0 and less than 1"),
        ({"stochastic_depth": -0.1}, "model.stochastic_depth=-0.1 must be"),
        ({"attention_dropout": 2}, "model.attention_dropout=2 must be"),
        ({"layer_norm_epsilon": 0.0}, "model.layer_norm_epsilon=0.0 must be above 0"),
        ({"posemb": "sincos2d", "width": 30, "num_heads": 2}, "model.width=30"),
        ({"posemb": "sincos2d", "width": 4, "num_heads": 2}, "model.width=4"),
        ({"remat_names": ("q",)}, "only read with model.remat_policy="),
    ],
)
def test_what_is_wrong_is_said(fields: dict, expected: str):
    given: dict[str, Any] = {"variant": "B/16"} | fields
    with pytest.raises(UserError) as error:
        models.create(**given)
    assert expected in str(error.value)


def test_fields_that_are_missing_are_named():
    with pytest.raises(
        UserError, match="no patch_size, depth, mlp_dim, num_heads: set"
    ):
        models.create(width=8)
