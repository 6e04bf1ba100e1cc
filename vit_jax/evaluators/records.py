"""The files of an evaluation: `workdir/evals/NAME-STEP.json`, and its pictures."""

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import cv2
import numpy as np
from etils import epath

from vit_jax import workdirs
from vit_jax.evaluators.base import Result

PICTURES = ("confusion", "mistakes")  # what evaluations draw


class Written(NamedTuple):
    """Where a result is.

    Attributes:
      record: the path of the JSON file.
      pictures: the paths of pictures, by what they show.
      drawn: the pictures, uint8 [h, w, 3].
    """

    record: epath.Path
    pictures: dict[str, epath.Path]
    drawn: dict[str, np.ndarray]


def write(
    workdir: epath.Path,
    name: str,
    at: str,
    result: Result,
    about: dict[str, Any],
    *,
    last: bool,
) -> Written:
    """Writes a result; one that was there is replaced.

    Args:
      workdir: of the run.
      name: of the evaluation.
      at: the step, or the name of the checkpoint.
      result: what it found.
      about: what else the record should begin with, such as the step.
      last: whether no evaluation follows in this run: then all pictures are drawn.
    """
    functions = result.pictures | (result.last_pictures if last else {})
    drawn: dict[str, np.ndarray] = {}
    for what, draw in functions.items():
        picture = draw(_title(name, at, result.scalars))
        if picture is not None:
            drawn[what] = picture
    places = {what: _picture_path(workdir, name, at, what) for what in drawn}
    for what, picture in drawn.items():
        workdirs.write_atomically(places[what], to_png(picture))
    record = {**about, "results": result.scalars, **result.record}
    path = workdir / "evals" / f"{name}-{at}.json"
    workdirs.write_atomically(path, to_json(record))
    return Written(path, places, drawn)


def pictures(workdir: epath.Path, name: str, at: str) -> dict[str, epath.Path]:
    """The paths of the pictures that an evaluation has, by what they show."""
    paths = {what: _picture_path(workdir, name, at, what) for what in PICTURES}
    return {what: path for what, path in paths.items() if path.exists()}


def _picture_path(workdir: epath.Path, name: str, at: str, what: str) -> epath.Path:
    return workdir / "evals" / f"{name}-{at}-{what}.png"


def to_png(picture: np.ndarray) -> bytes:
    """A picture, uint8 [h, w, 3], RGB, as a file."""
    _, png = cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1]))
    return png.tobytes()


def _title(name: str, at: str, scalars: Mapping[str, float | int]) -> str:
    """What a picture is of.

    >>> _title("test", "1407", {"test/accuracy": 0.8, "test/examples": 2000})
    'test, step 1407: accuracy 0.8000 of 2,000 images'
    """
    where = f"step {at}" if at.isdecimal() else at
    accuracy, count = scalars[f"{name}/accuracy"], scalars[f"{name}/examples"]
    return f"{name}, {where}: accuracy {accuracy:.4f} of {count:,} images"


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
