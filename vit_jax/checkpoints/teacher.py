"""The teacher that a student is distilled from, read from any checkpoint."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from vit_jax import class_names, models
from vit_jax.checkpoints import adapt
from vit_jax.checkpoints.formats.opened import nest
from vit_jax.errors import UserError
from vit_jax.objectives import Distillation, Teacher


def model_of(source: adapt.Weights, num_classes: int, dtype: str) -> dict[str, Any]:
    """The fields of a teacher's model, which nothing trains: its layers in a loop."""
    return models.looped(dict(source.model)) | {
        "num_classes": num_classes,
        "dtype": dtype,
    }


def normalization_of(
    source: adapt.Weights,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of the images it was trained with; 0.5 where nothing is said."""
    return source.normalization or ((0.5,) * 3, (0.5,) * 3)


def read_teacher(
    distillation: Distillation,
    path: epath.Path,
    *,
    num_classes: int,
    label_names: Sequence[str] | None,
    image_size: tuple[int, int],
    dtype: str,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Teacher, list[str]]:
    """Reads a teacher, and makes it take the student's images and say its classes.

    Args:
      distillation: the config's section.
      path: its teacher.
      num_classes: of the student.
      label_names: of them, where they are known: then a teacher that has names too may
        have more classes, or the same in another order.
      image_size: of the student, to which position embeddings are resampled.
      dtype: that it computes in.
      progress: called with the bytes read so far and in all.

    Returns:
      The teacher, and what should be told of it.

    Raises:
      UserError: if it cannot be read, or has other classes.
    """
    source = adapt.read_weights(
        path, weights=distillation.teacher_weights, progress=progress
    )
    found = class_names.match(label_names, source.label_names)
    if found.unknown:
        assert label_names is not None and source.label_names is not None
        unknown = [label_names[i] for i in found.unknown]
        raise UserError(
            f"config.distill.teacher: {path} does not know the classes "
            f"{class_names.listed(unknown)} of the data; it knows "
            f"{class_names.listed(source.label_names)}: a teacher must have been "
            "trained on the same classes, and call them the same"
        )
    arrays = dict(source.arrays)
    if found.places is not None and len(found.places) == num_classes:
        arrays = adapt.choose_classes(arrays, found.places)
    classes = arrays["head/bias"].shape[0] if "head/bias" in arrays else 0
    if classes != num_classes:
        raise UserError(
            f"config.distill.teacher: {path} knows {classes} classes and the data has "
            f"{num_classes}: a teacher must have been trained on the same classes"
        )
    by = f"its classes are taken by {found.by}"
    by += f" ({found.why})" if found.why else ""
    fields = model_of(source, classes, dtype)
    source = dataclasses.replace(source, arrays=arrays)
    arrays, said = adapt.adapt(source, fields, image_size, head="keep")
    # Of its classes `by` tells.
    said = [line for line in said if not line.startswith("the head ")] + [by]
    if not arrays["head/kernel"].any():
        said.append("its head is all zeros, so that every class is as likely to it")
    mean, std = normalization_of(source)
    teacher = Teacher(
        distillation=distillation,
        apply=models.create(**fields).apply,
        arrays=nest(arrays),
        mean=mean,
        std=std,
    )
    return teacher, said
