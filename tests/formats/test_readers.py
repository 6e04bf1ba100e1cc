"""Checkpoints of other libraries, read and run, give what those libraries give."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.formats import drawn, files
from tests.models import tiny
from vit_jax import models
from vit_jax.checkpoints.formats.opened import Opened, nest, open_checkpoint
from vit_jax.errors import UserError


def outputs(opened: Opened) -> np.ndarray:
    """Of the fixture's images, in float64: what is left is a difference of meaning."""
    with jax.enable_x64(True):
        fields = {**opened.model, "dtype": "float64", "param_dtype": "float64"}
        model_class = models.MODELS[fields.pop("name")]
        model: Any = model_class(**{k: v for k, v in fields.items() if v is not None})
        params = nest(opened.read(convert=lambda _, a: a.astype(np.float64)))
        images = drawn.images(opened.image_size).astype(np.float64)
        return np.asarray(tiny.jit(model.apply)({"params": params}, images))


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
    apply = tiny.jit(model.apply)
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
    index.write_text(files.json.dumps({"weight_map": weight_map}))
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
