"""A model that says what it is told, so that what is tested is what comes after it.

The first two pixels of an image hold the number of its example, and the logits are that
row of a table. All else is real: the file, the batches, the mesh, the compiled step.
"""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vit_jax.evaluators import EVALUATORS, Result
from vit_jax.objectives import losses

BATCH = 16
AXES = ("data", "fsdp", "tensor")


def mesh(*sizes: int) -> Mesh:
    count = int(np.prod(sizes))
    return Mesh(np.array(jax.devices()[:count]).reshape(sizes), AXES)


def program(num_classes: int, loss: str = "softmax_xent") -> Any:
    def apply(variables: Any, images: jax.Array, train: bool) -> jax.Array:
        assert not train
        low, high = jnp.round(images[:, 0, :2, 0] * 255).astype(jnp.int32).T
        return variables["params"]["table"][low + 256 * high]

    return SimpleNamespace(
        model=SimpleNamespace(apply=apply),
        abstract_batch={"image": jax.ShapeDtypeStruct((BATCH, 2, 2, 3), "uint8")},
        num_classes=num_classes,
        eval_loss=losses.make(name=loss),  # type: ignore[arg-type]
    )


def images(count: int) -> np.ndarray:
    """uint8 [n, 2, 2, 3]: each holds its number."""
    made = np.random.default_rng(0).integers(0, 256, (count, 2, 2, 3), np.uint8)
    made[:, 0, 0, 0], made[:, 0, 1, 0] = np.divmod(np.arange(count), 256)[::-1]
    return made


def save(path: Path, labels: np.ndarray) -> Path:
    np.savez(path, x_test=images(len(labels)), y_test=labels)
    return path


def data(path: Path) -> dict[str, Any]:
    """`config.data` that changes no pixel."""
    return {
        "name": "npz",
        "data_dir": str(path),
        "image_size": 2,
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        "train": {},
        "eval": {},
    }


def evaluate(
    section: dict[str, Any],
    logits: np.ndarray,
    on: Mesh,
    loss: str = "softmax_xent",
    label_names: Sequence[str] | None = None,
    **keys: Any,
) -> Result:
    """The result of one entry of `config.evals` called "it", as a run gets it."""
    entry = {"type": "classification", "data": {}} | keys
    made = EVALUATORS[entry["type"]]("it", on, section, BATCH, **entry)
    whole = NamedSharding(on, PartitionSpec())
    params = {"table": jax.device_put(logits, whole)}
    abstract = {"table": jax.ShapeDtypeStruct(logits.shape, "float32", sharding=whole)}
    k = logits.shape[1]
    made.check(k, program(k, loss), abstract, label_names)
    made.compile()
    result = made.run(params, lambda: None)
    assert list(result.scalars) == made.result_names()
    return result
