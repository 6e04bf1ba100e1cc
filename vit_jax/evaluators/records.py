"""The files of an evaluation: `workdir/evals/NAME-STEP.json`, and its pictures."""

import json
import math
from typing import Any

import cv2
import numpy as np
from etils import epath

from vit_jax import workdirs
from vit_jax.evaluators.base import Result


def write(
    workdir: epath.Path, name: str, at: str, result: Result, about: dict[str, Any]
) -> epath.Path:
    """Writes a result; one that was there is replaced.

    Args:
      workdir: of the run.
      name: of the evaluation.
      at: the step, or the name of the checkpoint.
      result: what it found.
      about: what else the record should begin with, such as the step.

    Returns:
      The path of the record.
    """
    folder = workdir / "evals"
    for what, picture in result.pictures.items():
        _, png = cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1]))
        workdirs.write_atomically(folder / f"{name}-{at}-{what}.png", png.tobytes())
    record = {**about, "results": result.scalars, **result.record}
    path = folder / f"{name}-{at}.json"
    workdirs.write_atomically(path, to_json(record))
    return path


def to_json(record: dict[str, Any]) -> str:
    """A line for each key, so that a person can read it; NaN as in metrics.jsonl.

    >>> print(to_json({"a": np.arange(2), "b": {"c": math.nan}}), end="")
    {
      "a": [0, 1],
      "b": {"c": "NaN"}
    }
    """
    lines = [
        f"  {json.dumps(key)}: {json.dumps(_plain(value), allow_nan=False)}"
        for key, value in record.items()
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _plain(value: Any) -> Any:
    """Without NumPy, and without numbers that JSON cannot say."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)]
    return value
