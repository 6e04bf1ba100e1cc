"""What a plan knows of a teacher is what a run reads."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath

from tests import cli
from tests.formats import files
from vit_jax import config
from vit_jax.checkpoints.teacher import read_teacher
from vit_jax.errors import UserError
from vit_jax.objectives import Distillation
from vit_jax.planning import flops, planner, teachers
from vit_jax.program import Program

CLASSES = 5  # of the library's model


def of_teacher(path: object) -> dict[str, Any]:
    overrides = [
        ("distill.teacher", str(path)),
        ("accumulation_steps", "1"),
    ]
    return config.load(cli.EVERYTHING, overrides).to_dict()


def test_it_has_the_shapes_that_a_run_reads(tmp_path: Path) -> None:
    path = files.of_fixture("hf-vit", tmp_path)
    section = Distillation(teacher=str(path))
    read, _ = read_teacher(
        section,
        epath.Path(path),
        num_classes=CLASSES,
        label_names=None,
        image_size=(42, 42),
        dtype="float32",
    )
    described = teachers.describe(of_teacher(path), CLASSES)
    assert described is not None
    built = described.build((42, 42, 3))
    assert (built.mean, built.std) == (read.mean, read.std)
    shapes = [jax.tree.map(np.shape, x.arrays) for x in (read, built)]
    assert shapes[0] == shapes[1]


def test_its_forward_pass_is_in_the_planned_step(tmp_path: Path) -> None:
    settings = of_teacher(files.of_fixture("hf-vit", tmp_path))
    shape = planner.Shape.of(settings)
    assert shape.teacher is not None
    counted = []
    for teacher in (None, shape.teacher.build(shape.data.image_shape)):
        program = Program(
            shape.data, jax.devices()[:1], teacher, **shape.program(settings)
        )
        counted.append(flops.traced_flops(program.trace_train_step().jaxpr.jaxpr))
    assert counted[1] > 1.05 * counted[0]


def test_one_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"without it: --config\.distill\.teacher=none"):
        planner.Shape.of(of_teacher(tmp_path / "nowhere"))
    assert planner.Shape.of(of_teacher("none")).teacher is None
