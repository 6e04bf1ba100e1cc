"""A model as a StableHLO program, for places where vit_jax is not installed.

The folder holds three files, and needs jax and NumPy alone:

    program = jax.export.deserialize(open("DIR/model.stablehlo", "rb").read())
    weights = dict(np.load("DIR/weights.npz"))
    logits = program.call(weights, images)  # uint8 [b, height, width, 3] to [b, k]

The third, model.json, has the image size, the classes and what the numbers mean.
`program.mlir_module_serialized` is StableHLO's portable bytecode for other compilers.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from vit_jax import models, objectives
from vit_jax.checkpoints.formats.opened import nest
from vit_jax.checkpoints.formats.writing import in_one_piece
from vit_jax.loading import Model

PLATFORMS = ("cpu", "cuda", "tpu")


def export(model: Model, path: Path) -> None:
    """Writes a model as StableHLO, reads it back and compares the logits.

    It takes any number of images and normalises them itself. The weights are an
    argument of the program, since the file of a program ends at 2 GiB.

    Args:
      model: from `vit_jax.load`.
      path: of a new folder.

    Raises:
      UserError: if the path is taken or cannot be written.
    """
    arrays = model.arrays()
    with in_one_piece(path) as folder:
        folder.mkdir()
        (folder / "model.stablehlo").write_bytes(trace(model, arrays).serialize())
        np.savez(folder / "weights.npz", **arrays)  # type: ignore[arg-type]
        text = json.dumps(describe(model), indent=2, ensure_ascii=False) + "\n"
        (folder / "model.json").write_text(text, encoding="utf-8")
        compare(model, folder)


def trace(model: Model, arrays: dict[str, np.ndarray]) -> jax.export.Exported:
    """The program (weights by path, uint8 images [b, h, w, 3]) -> logits [b, k]."""
    module = models.create(**models.looped(model.config))
    mean, std = np.asarray(model.mean, np.float32), np.asarray(model.std, np.float32)

    def predict(weights: dict[str, jax.Array], images: jax.Array) -> Any:
        images = objectives.normalize(images, jnp.asarray(mean), jnp.asarray(std))
        return module.apply({"params": nest(weights)}, images)

    weights = {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype)
        for name, array in arrays.items()
    }
    (batch,) = jax.export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((batch, *model.image_size, 3), jnp.uint8)
    return jax.export.export(jax.jit(predict), platforms=PLATFORMS)(weights, images)


def describe(model: Model) -> dict[str, Any]:
    """What a user of the program has to know."""
    activation = {"softmax_xent": "softmax", "sigmoid_xent": "sigmoid"}[model.loss]
    output = f"logits [batch, classes]; {activation} makes them probabilities"
    if not model.module.num_classes:
        output = "features [batch, width], for there is no head"
    return {
        "input": "uint8 RGB images [batch, height, width, 3], normalised inside",
        "image_size": list(model.image_size),
        "output": output,
        "classes": None if model.label_names is None else list(model.label_names),
        "mean": list(model.mean),
        "std": list(model.std),
        "preprocessing": dataclasses.asdict(model.preprocessing),
        "model": model.config,
    }


def compare(model: Model, folder: Path) -> None:
    """Runs what was written on three random images.

    Raises:
      AssertionError: if its logits are others than the model's.
    """
    program = jax.export.deserialize(
        bytearray((folder / "model.stablehlo").read_bytes())
    )
    weights = dict(np.load(folder / "weights.npz"))
    shape = (3, *model.image_size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    expected = np.asarray(model(images))
    found = np.asarray(program.call(weights, images))
    # Half precision rounds in other places when it is fused in another way.
    bound = 1e-5 if model.module.dtype == "float32" else 0.05
    if np.abs(found - expected).max() > bound * np.abs(expected).max():
        raise AssertionError("the exported program computes other logits")
