"""Checkpoints of other libraries, read and run, give what those libraries give."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.formats import drawn, files
from vit_jax import models
from vit_jax.checkpoints.formats.opened import Opened, nest
from vit_jax.checkpoints.formats.opening import open_checkpoint
from vit_jax.errors import UserError


def outputs(opened: Opened) -> np.ndarray:
    """Of the fixture's images, in float64: what is left is a difference of meaning."""
    with jax.enable_x64(True):
        fields = {**opened.model, "dtype": "float64", "param_dtype": "float64"}
        model_class = models.MODELS[fields.pop("name")]
        model: Any = model_class(**{k: v for k, v in fields.items() if v is not None})
        params = nest(opened.read(convert=lambda _, a: a.astype(np.float64)))
        images = drawn.images(opened.image_size).astype(np.float64)
        return np.asarray(jax.jit(model.apply)({"params": params}, images))


def open_fixture(name: str, path: Path) -> Opened:
    record = drawn.fixture(name)
    model = record["model"] if "model" in record else {}
    any_size = "bit" in name  # convolutions do not say the size of an image
    size = tuple(record["image_size"]) if any_size else None
    return open_checkpoint(path, image_size=size, model=model)


def assert_agrees(opened: Opened, name: str) -> None:
    record = drawn.fixture(name)
    opened.check_complete()
    assert opened.image_size == tuple(record["image_size"])
    expected = np.array(record["outputs"])
    found = outputs(opened)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", drawn.fixture_names())
def test_the_outputs_are_those_of_the_library(name: str, tmp_path: Path) -> None:
    opened = open_fixture(name, files.of_fixture(name, tmp_path))
    assert opened.format == {"h": "huggingface", "t": "timm", "n": "npz"}[name[0]]
    assert_agrees(opened, name)


# The keys' bias shifts all scores of a query alike, which softmax ignores; a bias of
# token mixing shifts all channels of a token alike, which each LayerNorm takes away.
NO_EFFECT = ("key/bias", "token_mixing/Dense_1/bias")
# All of them take a minute and a half.
FEW = ("timm-deit", "timm-siglip")
EACH = [
    pytest.param(name, marks=[] if name in FEW else pytest.mark.slow)
    for name in drawn.fixture_names()
]


@pytest.mark.parametrize("name", EACH)
def test_every_tensor_matters(name: str, tmp_path: Path) -> None:
    """So a tensor that was read in place of another would have been seen above."""
    opened = open_fixture(name, files.of_fixture(name, tmp_path))
    params = opened.read()
    fields = dict(opened.model)
    model = models.create(**fields)
    apply = jax.jit(model.apply)
    images = drawn.images(opened.image_size)
    before = np.asarray(apply({"params": nest(params)}, images))
    for entry in opened.entries.values():
        for path in entry.ours:
            noise = np.random.default_rng(0).normal(size=params[path].shape)
            changed = {**params, path: (params[path] + noise).astype(np.float32)}
            after = np.asarray(apply({"params": nest(changed)}, images))
            assert path.endswith(NO_EFFECT) or np.abs(after - before).max() > 1e-4, path


def renamed(name: str, kind: str) -> dict[str, np.ndarray]:
    """The arrays of `npz-vit` as big_vision and others name them, written by hand."""
    arrays = drawn.draw_all(drawn.fixture(name)["shapes"])
    linen = {
        path.replace("MultiHeadDotProductAttention_1", "MultiHeadDotProductAttention_0")
        .replace("LayerNorm_2", "LayerNorm_1")
        .replace("MlpBlock_3", "MlpBlock_0"): array
        for path, array in arrays.items()
    }
    if kind == "linen":
        return linen
    linen["pos_embedding"] = linen.pop("Transformer/posembed_input/pos_embedding")
    if kind == "stacked":
        first = "Transformer/encoderblock_0/"
        for path in [p for p in linen if p.startswith(first)]:
            end = path.removeprefix(first)
            layers = [linen.pop(f"Transformer/encoderblock_{i}/{end}") for i in (0, 1)]
            linen[f"Transformer/encoderblock/{end}"] = np.stack(layers)
    if kind == "tower":
        beside = {"params/txt/head/kernel": np.ones((3, 3), np.float32)}
        beside |= {"params/t": np.ones(1, np.float32), "params/b": np.ones(1)}
        return {f"params/img/{k}": v for k, v in linen.items()} | beside
    return {f"params/{path}": array for path, array in linen.items()}


@pytest.mark.parametrize("kind", ["linen", "big_vision", "stacked", "tower"])
def test_the_other_names_of_jax_checkpoints(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.npz"
    np.savez(path, **renamed("npz-vit", kind))  # type: ignore[arg-type]
    opened = open_fixture("npz-vit", path)
    assert opened.format == ("npz" if kind == "linen" else "big_vision")
    assert_agrees(opened, "npz-vit")


def test_a_checkpoint_in_parts(tmp_path: Path) -> None:
    """As transformers shards what is too large for one file."""
    files.of_fixture("hf-vit", tmp_path)
    arrays = drawn.draw_all(drawn.fixture("hf-vit")["shapes"])
    (tmp_path / "model.safetensors").unlink()
    names = list(arrays)
    parts = {"part-1.safetensors": names[::2], "part-2.safetensors": names[1::2]}
    weight_map = {}
    for part, of_part in parts.items():
        files.safetensors(tmp_path / part, {n: arrays[n] for n in of_part})
        weight_map |= dict.fromkeys(of_part, part)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert_agrees(open_checkpoint(tmp_path), "hf-vit")


def test_bfloat16_and_float16_are_read(tmp_path: Path) -> None:
    arrays = drawn.draw_all(drawn.fixture("timm-vit")["shapes"])
    for dtype in (jax.numpy.bfloat16, np.float16):
        half = {name: array.astype(dtype) for name, array in arrays.items()}
        opened = open_checkpoint(files.safetensors(tmp_path / "a.safetensors", half))
        params = opened.read()
        np.testing.assert_array_equal(
            params["head/bias"], half["head.bias"].astype(np.float32)
        )
        assert params["head/bias"].dtype == np.float32


def changed(tmp_path: Path, **arrays: Any) -> Path:
    """`timm-vit` with some tensors in the place of its own; None takes one away."""
    found = drawn.draw_all(drawn.fixture("timm-vit")["shapes"]) | arrays
    kept = {name: array for name, array in found.items() if array is not None}
    return files.safetensors(tmp_path / "model.safetensors", kept)


def test_what_is_missing_or_left_over_is_an_error(tmp_path: Path) -> None:
    path = changed(tmp_path, **{"norm.bias": None, "extra.weight": np.ones(2, "f4")})
    opened = open_checkpoint(path)
    with pytest.raises(UserError, match="lacks Transformer/encoder_norm/bias"):
        opened.check_complete()
    with pytest.raises(UserError, match=r"has, and .* no place for, extra\.weight"):
        opened.check_complete(allow=["Transformer/encoder_norm/bias"])
    opened.check_complete(allow=["Transformer/.*", r"extra\..*"])
    rows = opened.table()
    assert ("extra.weight", "[2]", "LEFT OVER") in rows
    assert ("MISSING", "[64]", "Transformer/encoder_norm/bias") in rows
    assert ("norm.weight", "[64]", "Transformer/encoder_norm/scale") in rows


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("norm.bias", np.ones(63, "f4"), r"norm.bias has shape \[63\]; .* \[64\]"),
        ("norm.bias", np.ones(64, np.int64), "norm.bias is of int64"),
        ("head.bias", np.array([1, 2, np.nan, 4, np.inf], "f4"), "2 values of 5 that"),
        ("blocks.0.attn.qkv.weight", np.ones((191, 64), "f4"), r"\[191, 64\]"),
    ],
)  # fmt: skip
def test_arrays_that_cannot_be(tmp_path: Path, name: str, array: Any, message: str):
    with pytest.raises(UserError, match=message):
        open_checkpoint(changed(tmp_path, **{name: array})).read()


def test_biases_that_are_missing_are_zeros_if_they_are_allowed(tmp_path: Path) -> None:
    """Which is what a layer without one computes; nothing else has a substitute."""
    names = ("blocks.1.attn.proj.bias", "blocks.1.mlp.fc1.bias", "head.bias")
    zeros = {name: np.zeros_like(drawn.draw(name, (64,))) for name in names}
    zeros["blocks.1.mlp.fc1.bias"] = np.zeros(96, np.float32)
    zeros["head.bias"] = np.zeros(5, np.float32)
    expected = outputs(open_checkpoint(changed(tmp_path, **zeros)))
    opened = open_checkpoint(changed(tmp_path, **dict.fromkeys(names)))
    with pytest.raises(UserError, match="without these biases, allow their names"):
        opened.check_complete([".*/out/bias"])
    opened.check_complete([".*/bias"])
    np.testing.assert_array_equal(outputs(opened), expected)
    assert set(opened.read(wanted=["head/bias"])) == {"head/bias"}
    opened = open_checkpoint(changed(tmp_path, **{"blocks.1.norm1.weight": None}))
    with pytest.raises(UserError, match=r"lacks .*_1/LayerNorm_0/scale: [^;]*$"):
        opened.check_complete([".*"])


def test_which_model_it_is_of_cannot_be_told(tmp_path: Path) -> None:
    path = files.safetensors(tmp_path / "a.safetensors", {"x": np.ones(3, "f4")})
    with pytest.raises(UserError, match="no model that is known here: it holds x"):
        open_checkpoint(path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    files.safetensors(tmp_path / "model.safetensors", {"x": np.ones(3, "f4")})
    with pytest.raises(UserError, match='model_type "bert"'):
        open_checkpoint(tmp_path)


def test_whether_there_is_a_class_token_is_told_by_the_parameters(tmp_path: Path):
    """196 tokens are 14 x 14 without one, and 197 with one; squares tell nothing."""
    shapes = drawn.fixture("timm-vit")["shapes"]
    for tokens, has_class in ((196, False), (197, True)):
        own = {**shapes, "pos_embed": [1, tokens, 64]}
        if not has_class:
            del own["cls_token"]
        path = files.safetensors(tmp_path / "m.safetensors", drawn.draw_all(own))
        opened = open_checkpoint(path)
        assert opened.model["pool"] == ("token" if has_class else "gap")
        assert opened.image_size == (98, 98)
    own = {**shapes, "pos_embed": [1, 99, 64]}  # 7 x 14 and a class token
    path = files.safetensors(tmp_path / "m.safetensors", drawn.draw_all(own))
    with pytest.raises(UserError, match="98 patches, which is no square"):
        open_checkpoint(path)
    assert open_checkpoint(path, image_size=(49, 98)).image_size == (49, 98)
    with pytest.raises(UserError, match=r"has 49 patches; .* are of 98"):
        open_checkpoint(path, image_size=(49, 49))


def test_progress_and_one_array_at_a_time(tmp_path: Path) -> None:
    opened = open_fixture("timm-vit", files.of_fixture("timm-vit", tmp_path))
    seen: list[tuple[int, int]] = []
    only = opened.read(
        wanted=["head/bias"], progress=lambda done, of: seen.append((done, of))
    )
    assert list(only) == ["head/bias"] and seen == [(20, 20)]
    opened.read(progress=lambda done, of: seen.append((done, of)))
    total = (tmp_path / "model.safetensors").stat().st_size
    assert seen[-1][0] == seen[-1][1] > 0.9 * total


FAMILIES: dict[str, Any] = json.loads(
    (drawn.FIXTURES.parent / "families.json").read_text()
)


@pytest.mark.parametrize("name", FAMILIES)
def test_another_family_is_named(name: str, tmp_path: Path) -> None:
    """Of timm's architectures one of a kind, with the tensors that timm gives it."""
    family, shapes = FAMILIES[name]
    path = files.index(tmp_path / "m.safetensors", shapes)
    with pytest.raises(UserError, match=f"{family}.* is not supported"):
        open_checkpoint(path)


@pytest.mark.parametrize("kind, family", [
    ("vit_mae", "ViTMAE"), ("beit", "BEiT"), ("dinov3_vit", "DINOv3"), ("clip", "CLIP"),
    ("swinv2", "Swin Transformer"), ("convnext", "convnext"),
])  # fmt: skip
def test_a_model_type_is_named(kind: str, family: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    files.safetensors(tmp_path / "model.safetensors", {"x": np.ones(3, "f4")})
    with pytest.raises(
        UserError, match=f'"{kind}": {family} is not supported'
    ) as found:
        open_checkpoint(tmp_path)
    assert "did you mean" not in str(found.value)


def vit_shapes(
    width: int, depth: int, mlp_dim: int, patch: int, patches: int
) -> dict[str, Any]:
    """A ViT of timm without class token, the mean of whose patches has a head."""
    shapes: dict[str, Any] = {
        "pos_embed": [1, patches, width],
        "patch_embed.proj.weight": [width, 3, patch, patch],
        "patch_embed.proj.bias": [width],
        **{f"norm.{leaf}": [width] for leaf in ("weight", "bias")},
        "head.weight": [10, width],
        "head.bias": [10],
    }
    dense = {
        "attn.qkv": [3 * width, width],
        "attn.proj": [width, width],
        "mlp.fc1": [mlp_dim, width],
        "mlp.fc2": [width, mlp_dim],
    }
    for i in range(depth):
        for name in ("norm1", "norm2"):
            shapes |= {f"blocks.{i}.{name}.{x}": [width] for x in ("weight", "bias")}
        for name, shape in dense.items():
            shapes[f"blocks.{i}.{name}.weight"] = shape
            shapes[f"blocks.{i}.{name}.bias"] = shape[:1]
    return shapes


@pytest.mark.parametrize(
    "shape, heads, gelu, is_guess",
    [
        ((768, 12, 3072, 16, 256), 12, "erf", False),
        ((1152, 27, 4304, 14, 256), 16, "erf", False),
        ((1152, 27, 4304, 16, 256), 16, "tanh", False),  # SigLIP 2
        ((1536, 40, 6144, 16, 256), 16, "tanh", False),  # giantopt
        ((1024, 24, 4096, 16, 1024), 16, "tanh", False),
        ((1024, 24, 4096, 16, 576), 16, "erf", False),
        ((1536, 3, 6144, 16, 256), 16, "tanh", True),
        ((128, 3, 256, 16, 196), 2, "erf", True),
    ],
)
def test_heads_and_gelu_of_timms_sizes(
    shape: tuple[int, ...], heads: int, gelu: str, is_guess: bool, tmp_path: Path
) -> None:
    """As `timm.create_model` builds them; what no table has is guessed, and said."""
    opened = open_checkpoint(
        files.index(tmp_path / "m.safetensors", vit_shapes(*shape))
    )
    assert (opened.model["num_heads"], opened.model["gelu"]) == (heads, gelu)
    said = [line for line in opened.said if "guessed" in line]
    assert len(said) == is_guess and all(f"guessed {heads} heads" in s for s in said)


def test_two_models_of_timm_with_the_same_tensors(tmp_path: Path) -> None:
    """vit_base_patch16_gap_224 has 16 heads, vit_base_patch16_siglip_gap_224 has 12."""
    shapes = vit_shapes(768, 12, 3072, 16, 196)
    file = files.index(tmp_path / "model.safetensors", shapes)
    with pytest.raises(UserError, match=r"give num_heads=12 for .* num_heads=16 for"):
        open_checkpoint(file)
    assert open_checkpoint(file, model={"num_heads": 16}).model["num_heads"] == 16
    config = {"architecture": "vit_base_patch16_gap_224", "pretrained_cfg": {}}
    config["pretrained_cfg"] = {"mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0}
    config["pretrained_cfg"] |= {"input_size": [3, 224, 224]}
    config["pretrained_cfg"] |= {"interpolation": "bicubic"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert open_checkpoint(tmp_path).model["num_heads"] == 16


def test_heads_that_cannot_be_guessed_can_be_given(tmp_path: Path) -> None:
    file = files.index(tmp_path / "m.safetensors", vit_shapes(96, 2, 192, 16, 196))
    said = r"how many heads a width of 96 has: .*convert --model\.num_heads=N"
    with pytest.raises(UserError, match=said):
        open_checkpoint(file)
    opened = open_checkpoint(file, model={"num_heads": 3})
    assert opened.model["num_heads"] == 3 and not opened.said


def test_a_class_token_and_the_mean_that_only_the_user_knows_of(tmp_path: Path) -> None:
    """Without `fc_norm` the tensors are those of token pooling."""
    path = files.of_fixture("timm-config", tmp_path)
    (path / "config.json").unlink()
    file = path / "model.safetensors"
    size = (14, 56)
    with pytest.raises(UserError, match=r"has 4 patches; .* are of 16"):
        open_checkpoint(file, image_size=(14, 14))
    given = {"pool": "gap", "num_heads": 4, "gelu": "tanh"}
    assert_agrees(open_checkpoint(file, image_size=size, model=given), "timm-config")
    opened = open_checkpoint(file, image_size=size, model={"num_heads": 4})
    assert opened.model["pool"] == "token"
    assert np.abs(outputs(opened) - drawn.fixture("timm-config")["outputs"]).max() > 0.1


def test_what_timms_config_says(tmp_path: Path) -> None:
    path = files.of_fixture("timm-config", tmp_path)
    opened = open_checkpoint(path)
    assert opened.label_names == ("a", "b", "c", "d", "e")
    assert opened.image_size == (14, 56) and not opened.said
    config = json.loads((path / "config.json").read_text())
    for key, value, message in (
        ("act_layer", "quick_gelu", 'act_layer is "quick_gelu"'),
        ("rope_type", "mixed", "model_args has rope_type"),
        ("global_pool", "avgmax", None),  # the top level wins
    ):
        args = {**config["model_args"], key: value}
        text = json.dumps({**config, "model_args": args})
        (path / "config.json").write_text(text)
        if message is None:
            assert open_checkpoint(path).model["pool"] == "gap"
            continue
        with pytest.raises(UserError, match=message):
            open_checkpoint(path)
    (path / "config.json").write_text(json.dumps({**config, "global_pool": "avgmax"}))
    with pytest.raises(UserError, match='global_pool is "avgmax"'):
        open_checkpoint(path)


def test_timms_config_of_2021(tmp_path: Path) -> None:
    """One level, with what is `pretrained_cfg` today, and labels under `labels`."""
    path = files.of_fixture("timm-vit", tmp_path).parent
    config = {
        "architecture": "vit_small_patch16_224",
        "num_classes": 5,
        "labels": ["a", "b", "c", "d", "e"],
        "input_size": [3, 28, 28],
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "interpolation": "bicubic",
        "crop_pct": 0.9,
    }
    (path / "config.json").write_text(json.dumps(config))
    opened = open_checkpoint(path)
    assert opened.label_names == ("a", "b", "c", "d", "e")
    assert opened.preprocessing is not None
    assert opened.preprocessing.mean == (0.485, 0.456, 0.406)


def test_registers_that_have_positions_are_named(tmp_path: Path) -> None:
    """As timm's vit_so150m_patch16_reg4_gap_256 has them."""
    shapes = vit_shapes(128, 2, 256, 16, 256 + 4) | {"reg_token": [1, 4, 128]}
    file = files.index(tmp_path / "m.safetensors", shapes)
    with pytest.raises(UserError, match="registers have position embeddings"):
        open_checkpoint(file)
    own = vit_shapes(128, 2, 256, 16, 256) | {"reg_token": [1, 4, 128]}
    file = files.index(tmp_path / "m.safetensors", own)
    assert open_checkpoint(file).image_size == (256, 256)


def test_attention_pooling_beside_registers_is_asked_for(tmp_path: Path) -> None:
    shapes = vit_shapes(64, 1, 192, 16, 16) | {"reg_token": [1, 1, 64]}
    pool = {"latent": [1, 1, 64], "q.weight": [64, 64], "q.bias": [64]}
    pool |= {"kv.weight": [128, 64], "kv.bias": [128]}
    pool |= {"proj.weight": [64, 64], "proj.bias": [64], "norm.weight": [64]}
    pool |= {"norm.bias": [64], "mlp.fc1.weight": [192, 64], "mlp.fc1.bias": [192]}
    pool |= {"mlp.fc2.weight": [64, 192], "mlp.fc2.bias": [64]}
    shapes |= {f"attn_pool.{name}": shape for name, shape in pool.items()}
    file = files.index(tmp_path / "m.safetensors", shapes)
    with pytest.raises(UserError, match="whether these are pooled too"):
        open_checkpoint(file)
    open_checkpoint(file, model={"pool": "map"}).check_complete()


@pytest.mark.parametrize("name, lacking", [
    ("timm-vit", "blocks.0.mlp.fc1.weight"), ("timm-mixer", "stem.proj.weight"),
    ("timm-bit", "stem.conv.weight"),
])  # fmt: skip
def test_what_a_broken_file_lacks_is_a_sentence(
    name: str, lacking: str, tmp_path: Path
) -> None:
    shapes = dict(drawn.fixture(name)["shapes"])
    del shapes[lacking]
    file = files.index(tmp_path / "m.safetensors", shapes)
    with pytest.raises(
        UserError, match=f"lacks '{lacking}'. It may be incomp"
    ) as found:
        open_checkpoint(file)
    assert "KeyError" not in str(found.value)


def test_defaults_of_transformers_where_config_json_says_nothing(
    tmp_path: Path,
) -> None:
    """`to_diff_dict`, which writes what is not the default alone."""
    path = files.of_fixture("hf-vit", tmp_path)
    config = json.loads((path / "config.json").read_text())
    for key in ("layer_norm_eps", "hidden_act"):
        del config[key]
    (path / "config.json").write_text(json.dumps(config))
    assert_agrees(open_checkpoint(path), "hf-vit")
    (path / "config.json").write_text(json.dumps({**config, "patch_size": [7, 7]}))
    assert_agrees(open_checkpoint(path), "hf-vit")


def test_a_head_that_ours_cannot_be_is_left_out_when_asked(tmp_path: Path) -> None:
    path = files.of_fixture("hf-dinov2", tmp_path)
    shapes = drawn.fixture("hf-dinov2")["shapes"]
    own = {f"dinov2.{name}": shape for name, shape in shapes.items()}
    own |= {"classifier.weight": [5, 64], "classifier.bias": [5]}
    files.safetensors(path / "model.safetensors", drawn.draw_all(own))
    with pytest.raises(
        UserError, match=r"mean of the patches.*num_classes=0 leaves it"
    ):
        open_checkpoint(path)
    opened = open_checkpoint(path, model={"num_classes": 0})
    opened.check_complete()
    assert "head/kernel" not in opened.shapes
