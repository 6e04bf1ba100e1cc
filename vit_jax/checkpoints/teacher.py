"""The teacher that a student is distilled from, read from any checkpoint."""

from collections.abc import Callable

from etils import epath

from vit_jax import models
from vit_jax.checkpoints import adapt
from vit_jax.checkpoints.formats.opened import nest
from vit_jax.distillation import Distillation, Teacher
from vit_jax.errors import UserError


def read_teacher(
    distillation: Distillation,
    path: epath.Path,
    *,
    num_classes: int,
    image_size: tuple[int, int],
    dtype: str,
    progress: Callable[[int, int], None] | None = None,
) -> Teacher:
    """Reads a teacher, and makes it take the student's images.

    Args:
      distillation: the config's section.
      path: its teacher.
      num_classes: of the student.
      image_size: of the student, to which position embeddings are resampled.
      dtype: that it computes in.
      progress: called with the bytes read so far and in all.

    Raises:
      UserError: if it cannot be read, or has other classes.
    """
    source = adapt.read_weights(
        path, weights=distillation.teacher_weights, progress=progress
    )
    classes = source.arrays["head/bias"].shape[0] if "head/bias" in source.arrays else 0
    if classes != num_classes:
        raise UserError(
            f"config.distill.teacher: {path} knows {classes} classes and the data has "
            f"{num_classes}: a teacher must have been trained on the same classes"
        )
    fields = models.looped(dict(source.model))
    fields |= {"num_classes": classes, "dtype": dtype}
    arrays, _ = adapt.adapt(source, fields, image_size, head="keep")
    mean, std = source.normalization or ((0.5,) * 3, (0.5,) * 3)
    return Teacher(
        distillation=distillation,
        apply=models.create(**fields).apply,
        arrays=nest(arrays),
        mean=mean,
        std=std,
    )
