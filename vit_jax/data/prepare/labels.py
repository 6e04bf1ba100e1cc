"""Labels that lie in a file of their own, as those of ImageNet's validation images."""

import dataclasses
import io
import os
import tarfile
from typing import Any

import numpy as np

from vit_jax import limits
from vit_jax.data.prepare.items import Items, Labels
from vit_jax.data.prepare.tables import of_texts
from vit_jax.errors import UserError

_GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"


def apply(items: Items, path: str) -> Items:
    """The items with the labels of a file.

    Args:
        items: of one folder or file, sorted by name.
        path: a line for each image, in the order of their names: a class's name, or
            its number, from 0; or lines of an image's name, a space and that. Or the
            development kit of ILSVRC-2012, ILSVRC2012_devkit_t12.tar.gz.

    Raises:
        UserError: more or fewer labels than images, or numbers that begin at 1: in
            which order those classes are, such a file does not say.
    """
    if path.endswith((".tar.gz", ".tgz", ".tar")):
        texts = _of_devkit(path)
    else:
        texts = _of_lines(items, path)
    if len(texts) != len(items):
        raise UserError(
            f"--labels={path} has {len(texts)} labels, but there are {len(items)} "
            f"images in {items.containers[0]}."
        )
    ends = np.arange(1, len(texts) + 1)
    if all(text.isdecimal() for text in texts):
        labels = of_texts(f"--labels={path}", [[text] for text in texts])
        numbers = labels.values
        if numbers.min() == 1:
            raise UserError(
                f"--labels={path} has numbers from 1 to {numbers.max()}: in which "
                "order the classes are it does not say (the development kit of "
                "ILSVRC-2012 numbers them in an order of its own). Expected the names "
                "of classes, numbers from 0, or ILSVRC2012_devkit_t12.tar.gz."
            )
        return dataclasses.replace(items, labels=labels)
    names, values = np.unique(texts, return_inverse=True)
    of_names = Labels(values.astype(np.int32), ends, tuple(names.tolist()))
    return dataclasses.replace(items, labels=of_names)


def read_classes(path: str) -> tuple[str, ...]:
    """Names of classes in their order, one a line."""
    names = tuple(line.strip() for line in _text(path).splitlines() if line.strip())
    if not names or len(set(names)) != len(names):
        raise UserError(f"--classes={path}: expected names, one a line, each once.")
    return names


def _of_lines(items: Items, path: str) -> list[str]:
    lines = [line.split() for line in _text(path).splitlines() if line.strip()]
    if not all(len(line) == len(lines[0]) <= 2 for line in lines):
        raise UserError(f"--labels={path}: expected LABEL or IMAGE LABEL on each line.")
    if len(lines[0]) == 1:
        return [label for (label,) in lines]
    of_image = {os.path.basename(name): label for name, label in lines}
    names = [os.path.basename(items.name(i)) for i in range(len(items))]
    missing = [name for name in names if name not in of_image]
    if missing:
        raise UserError(
            f"--labels={path} has no label for {len(missing)} images, such as "
            f"{missing[0]}."
        )
    return [of_image[name] for name in names]


def _text(path: str) -> str:
    limits.check_regular(path)
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read()
    except (OSError, ValueError) as e:
        raise UserError(f"{path} cannot be read: {e}.") from e
    if not text.strip():
        raise UserError(f"{path} is empty.")
    return text


def _of_devkit(path: str) -> list[str]:
    """The classes of the validation images by their WordNet number."""
    from scipy import io as matlab

    try:
        with tarfile.open(path) as tar:
            files = {os.path.basename(m.name): m for m in tar if m.isreg()}
            truth = tar.extractfile(files[_GROUND_TRUTH])
            meta = tar.extractfile(files["meta.mat"])
            assert truth is not None and meta is not None  # they are regular files
            numbers = [int(line) for line in truth.read().split()]
            table: Any = matlab.loadmat(io.BytesIO(meta.read()), squeeze_me=True)
        name_of = {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in table["synsets"]}
        return [name_of[number] for number in numbers]
    except (OSError, KeyError, ValueError, tarfile.TarError) as e:
        raise UserError(
            f"--labels={path} is not the development kit of ILSVRC-2012: {e!r}."
        ) from e
