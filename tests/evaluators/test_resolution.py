"""An evaluation at another resolution than that of training resamples the positions."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from scipy import ndimage

from vit_jax import models, program
from vit_jax.errors import UserError
from vit_jax.evaluators import EVALUATORS

POSEMB = ("Transformer", "posembed_input", "pos_embedding")
TINY: dict[str, Any] = {"patch_size": 4, "width": 16, "depth": 1, "mlp_dim": 8}
VIT: dict[str, Any] = {**TINY, "num_heads": 2}


class Shape:
    """Of images that the model was trained with."""

    image_shape, label_classes = (16, 16, 3), None
    mean = std = (0.5, 0.5, 0.5)


def program_of(**model: Any) -> program.Program:
    return program.Program(
        Shape(),
        jax.devices()[:1],
        seed=0,
        batch_size=8,
        total_steps=1,
        num_classes=3,
        accumulation_steps=1,
        mixup=0.0,
        ema=None,
        model=model,
        loss={"name": "softmax_xent"},
        optim={"name": "adamw", "learning_rate": 1.0, "warmup_steps": 0},
        mesh={},
    )


def data_at(path: Path, size: int) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    images = np.random.default_rng(0).integers(0, 256, (20, size, size, 3), np.uint8)
    labels = np.random.default_rng(1).integers(0, 3, 20)
    np.savez(path, x_test=images, y_test=labels)
    section = {"name": "npz", "data_dir": str(path), "image_size": 16, "eval": {}}
    half = (0.5, 0.5, 0.5)
    return {**section, "train": {}, "mean": half, "std": half}, images, labels


def evaluator(mesh: Mesh, section: dict[str, Any], size: int) -> Any:
    entry = {"type": "classification", "data": {"image_size": size}}
    return EVALUATORS["classification"]("it", mesh, section, 8, **entry)


@pytest.mark.parametrize("keys", [{"scan": True}, {"pool": "gap"}])
def test_positions_are_resampled(keys: dict[str, Any], tmp_path: Path) -> None:
    made = program_of(**VIT, **keys)
    section, images, labels = data_at(tmp_path / "a.npz", 24)
    it = evaluator(made.mesh, section, 24)
    params = made.initialize().params
    table = (
        np.random.default_rng(2)
        .normal(size=params[POSEMB[0]][POSEMB[1]][POSEMB[2]].shape)
        .astype(np.float32)
    )
    params[POSEMB[0]][POSEMB[1]][POSEMB[2]] = jax.numpy.asarray(table)
    head = np.random.default_rng(3).normal(size=(16, 3)).astype(np.float32)
    params["head"]["kernel"] = jax.numpy.asarray(head)
    it.check(3, made, made.abstract_state.params)
    it.compile()
    found = it.run(params, lambda: None).scalars

    # The paper's code: scipy.ndimage.zoom of the grid, order 1.
    own = table.shape[1] - 16
    old = table[0, own:].reshape(4, 4, 16)
    grid: Any = ndimage.zoom(old, (6 / 4, 6 / 4, 1), order=1)
    resized = np.concatenate([table[0, :own], grid.reshape(36, 16)])[None]
    expected: Any = jax.tree.map(np.asarray, params)
    expected[POSEMB[0]][POSEMB[1]][POSEMB[2]] = resized
    module = models.create(num_classes=3, **VIT, **keys)
    logits = module.apply({"params": expected}, images / np.float32(127.5) - 1)
    likelihood: Any = jax.nn.log_softmax(logits)[np.arange(20), labels]
    assert found["it/loss"] == pytest.approx(-float(likelihood.mean()), rel=1e-4)
    right = np.asarray(logits).argmax(1) == labels
    assert found["it/accuracy"] == pytest.approx(right.mean())


def test_what_cannot_be_resampled(tmp_path: Path) -> None:
    mixer = {**TINY, "name": "mixer", "tokens_mlp_dim": 8}
    for keys, size, expected in (
        (mixer, 24, r"config.evals.it: a Mixer's layers are of 4 x 4 patches"),
        (VIT, 22, r"config.evals.it: .* nearest height 20 or 24"),
    ):
        made = program_of(**keys)
        section, _, _ = data_at(tmp_path / "b.npz", size)
        it = evaluator(made.mesh, section, size)
        with pytest.raises(UserError, match=expected):
            it.check(3, made, made.abstract_state.params)
