"""Weights in another model: another head, another resolution, another library's."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from etils import epath

from tests import cli
from tests.formats import drawn, files
from vit_jax import models
from vit_jax.checkpoints import adapt, position_embeddings
from vit_jax.errors import UserError

GRIDS = [((7, 7), (24, 24)), ((14, 14), (16, 32)), ((37, 37), (16, 16))]


@pytest.mark.parametrize("old, new", GRIDS)
def test_resampling(old: tuple[int, int], new: tuple[int, int]) -> None:
    grid = np.random.default_rng(0).normal(size=(*old, 5)).astype(np.float32)
    zoom = (new[0] / old[0], new[1] / old[1], 1)
    linear = position_embeddings.resample(grid, new)
    assert linear.dtype == np.float32 and linear.shape == (*new, 5)
    expected: Any = scipy.ndimage.zoom(grid.astype(np.float64), zoom, order=1)
    np.testing.assert_allclose(linear, expected, atol=1e-6)
    cubic = position_embeddings.resample(grid, new, method="cubic")
    np.testing.assert_allclose(cubic, pil_bicubic(grid, new), atol=1e-5)


def pil_bicubic(grid: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """PIL's antialiased bicubic resizing of floating-point images."""
    from PIL import Image

    channels = [
        np.asarray(
            Image.fromarray(grid[..., i]).resize(
                (size[1], size[0]), Image.Resampling.BICUBIC
            )
        )
        for i in range(grid.shape[2])
    ]
    return np.stack(channels, axis=-1)


FIELDS: dict[str, Any] = {
    "patch_size": 4,
    "width": 8,
    "depth": 2,
    "mlp_dim": 16,
    "num_heads": 2,
    "num_classes": 5,
}


def weights(size: int = 56, **fields: Any) -> adapt.Weights:
    model = models.create(**FIELDS | fields)
    shapes = jax.eval_shape(
        model.init, jax.random.key(0), jnp.zeros((1, size, size, 3))
    )
    arrays = {
        path: drawn.draw(path, leaf.shape)
        for path, leaf in adapt.flatten(shapes["params"]).items()
    }
    return adapt.Weights(
        arrays=arrays,
        model=FIELDS | fields,
        image_size=(size, size),
        normalization=None,
    )


POSEMB = "Transformer/posembed_input/pos_embedding"


@pytest.mark.parametrize("was", ["token", "gap"])
@pytest.mark.parametrize("now", ["token", "gap"])
@pytest.mark.parametrize("size", [(56, 56), (64, 128)])
def test_position_embeddings_with_and_without_a_class_token(
    was: str, now: str, size: tuple[int, int]
) -> None:
    """14 x 14 patches are 196 tokens without one and 197 with: both come out right."""
    source = weights(pool=was)
    table = source.arrays[POSEMB]
    assert table.shape[1] == 196 + (was == "token")
    found, said = adapt.adapt(source, FIELDS | {"pool": now}, size)
    rows, columns = size[0] // 4, size[1] // 4
    patches = table[0, was == "token" :].reshape(14, 14, 8)
    zoom = (rows / 14, columns / 14, 1)
    zoomed: Any = scipy.ndimage.zoom(patches.astype(float), zoom, order=1)
    expected = zoomed.reshape(-1, 8)
    result = found[POSEMB][0]
    assert len(result) == rows * columns + (now == "token")
    np.testing.assert_allclose(result[now == "token" :], expected, atol=1e-6)
    if now == "token":
        of_class = table[0, 0] if was == "token" else np.zeros(8)
        np.testing.assert_array_equal(result[0], of_class)
    assert ("cls" in found) == (was == now == "token")
    resampled = f"resampled from 14 x 14 to {rows} x {columns} (linear)"
    assert (resampled in "".join(said)) == (size != (56, 56))


def test_the_head() -> None:
    source = weights(representation_size=6)
    same = FIELDS | {"representation_size": 6}
    found, said = adapt.adapt(source, same, (56, 56))
    assert found.keys() == source.arrays.keys()
    by_number = "the head is kept, its classes by number (neither side has names of "
    assert said == [f"{by_number}classes)"]
    _, said = adapt.adapt(source, same, (56, 56), head="new")
    assert said == ["starts anew: head"]
    found, said = adapt.adapt(source, same | {"num_classes": 7}, (56, 56))
    assert said == ["starts anew: head"] and "pre_logits/kernel" in found
    # Without pre_logits, as the paper fine-tunes, the head is of another width too.
    found, said = adapt.adapt(source, FIELDS, (56, 56))
    assert said == ["starts anew: head", "left out: pre_logits"]
    assert "head/kernel" not in found and "pre_logits/kernel" not in found
    with pytest.raises(UserError, match=r"head/bias: \(5,\) float32 in the checkpoint"):
        adapt.adapt(source, same | {"num_classes": 7}, (56, 56), head="keep")


def test_what_differs_otherwise_is_refused() -> None:
    source = weights()
    with pytest.raises(UserError, match=r"(?s)encoderblock_2.*pre-trained must"):
        adapt.adapt(source, FIELDS | {"depth": 3}, (56, 56))
    with pytest.raises(UserError, match=r"it has model.gelu=tanh, this config erf:"):
        adapt.adapt(source, FIELDS | {"gelu": "erf"}, (56, 56))
    with pytest.raises(UserError, match=r"--config\.model\.num_heads=2"):
        adapt.adapt(source, FIELDS | {"num_heads": 4}, (56, 56))


@pytest.mark.slow
def test_weights_of_another_library_in_scanned_layers(tmp_path: Path) -> None:
    """Through the command line: the loss at step 1 is that of the library's logits."""
    path = files.of_fixture("timm-vit", tmp_path)
    source = adapt.read_weights(epath.Path(path))
    fields = {"width": 64, "depth": 2, "mlp_dim": 96, "num_heads": 1, "gelu": "erf"}
    flags = [f"--config.model.{key}={value}" for key, value in fields.items()]
    output = cli.run(
        "--config=configs/quickstart.py",
        f"--workdir={tmp_path}/run",
        f"--config.init_from={path}",
        "--config.model.pool=token",
        "--config.model.posemb=learn",
        "--config.model.scan=true",
        "--config.total_epochs=none",
        "--config.total_steps=1",
        "--config.optim.learning_rate=0",
        "--config.optim.warmup_steps=0",
        "--config.ema=0.5",
        *flags,
    )
    assert f"Starts from {path}." in output and "starts anew: head" in output
    saved = cli.saved_arrays(tmp_path / "run", 1)
    for item in ("params", "ema_params"):
        block = f"{item}['Transformer']['encoderblock']"
        expected = [
            source.arrays[f"Transformer/encoderblock_{i}/MlpBlock_0/Dense_0/bias"]
            for i in range(2)
        ]
        bias = saved[f"{block}['MlpBlock_0']['Dense_0']['bias']"]
        rounding = 0 if item == "params" else 2e-7  # of an average with itself
        np.testing.assert_allclose(bias, np.stack(expected), rtol=rounding)
        assert not saved[f"{item}['head']['kernel']"].any()


def test_learned_positions_start_from_fixed_ones(tmp_path: Path) -> None:
    """A model with a class token and a sine-cosine table, to a finer grid."""
    shapes = drawn.fixture("npz-vit")["shapes"]
    del shapes["Transformer/posembed_input/pos_embedding"]
    np.savez(tmp_path / "fixed.npz", **drawn.draw_all(shapes))  # type: ignore[arg-type]
    read = adapt.read_weights(epath.Path(tmp_path / "fixed.npz"))
    source = dataclasses.replace(read, image_size=(28, 28))  # the file does not say
    wanted = {**source.model, "posemb": "learn"}
    arrays, said = adapt.adapt(source, wanted, (28, 49))
    found = arrays["Transformer/posembed_input/pos_embedding"]
    assert found.shape == (1, 1 + 4 * 7, 64) and not found[0, 0].any()
    grid = models.sincos2d(4, 4, dim=64).reshape(4, 4, 64)
    expected: Any = scipy.ndimage.zoom(grid, (1, 7 / 4, 1), order=1)
    np.testing.assert_allclose(found[0, 1:], expected.reshape(-1, 64), atol=1e-6)
    assert said[0] == "fixed position embeddings are where learned ones start"


def test_a_trained_run_at_twice_the_resolution(tmp_path: Path) -> None:
    """Of our own, with another head; --evaluate_only keeps a head, and says if not."""
    base = [
        *(f"--config={cli.EVERYTHING}", "--config.total_steps=6"),
        *("--config.model.depth=1", "--config.accumulation_steps=1"),  # compiles faster
    ]
    cli.call(*base, f"--workdir={tmp_path}/small")
    output = cli.call(
        *base,
        f"--workdir={tmp_path}/large",
        f"--config.init_from={tmp_path}/small",
        "--config.init_head=new",
        "--config.data.image_size=56",
    )
    assert "position embeddings resampled from 4 x 4 to 8 x 8 (linear)" in output
    assert "starts anew: head" in output
    path = files.of_fixture("npz-vit", tmp_path)
    fields = {"width": 64, "depth": 2, "mlp_dim": 96, "num_heads": 1, "patch_size": 7}
    flags = [f"--config.model.{key}={value}" for key, value in fields.items()]
    output = cli.call(
        *base,
        f"--workdir={tmp_path}/other",
        f"--config.init_from={path}",
        "--evaluate_only",
        *flags,
        expect=2,
    )
    assert "has 10 classes, the model's head only 5" in output
