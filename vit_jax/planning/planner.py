"""From a config to its plan, and to those of its neighbours."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

from vit_jax.checks import head_width, resolve_steps
from vit_jax.data.shapes import DataShape
from vit_jax.errors import UserError
from vit_jax.planning import compilation, data_shapes, figures, search, teachers
from vit_jax.planning.topologies import Topology


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """What a config says of a run's size.

    Attributes:
      data: the shape of its training data.
      num_classes: of the head.
      total_steps: of the run.
      teacher: of its `distill` section, if there is one.
    """

    data: DataShape
    num_classes: int
    total_steps: int
    teacher: teachers.Described | None = None

    @classmethod
    def of(cls, config: dict[str, Any], num_examples: int | None = None) -> "Shape":
        """The shape of a complete config.

        Raises:
          UserError: if the number of steps or of classes cannot be known, or if the
            teacher cannot be read.
        """
        data = data_shapes.of_config(config["data"], num_examples)
        if config["total_epochs"] is not None and data.num_examples is None:
            raise UserError(
                f'how many examples "{config["data"]["name"]}" has is not known here: '
                "give --num_examples=N, or set config.total_steps and "
                "config.total_epochs=none"
            )
        steps = resolve_steps(
            config["total_steps"],
            config["total_epochs"],
            data.num_examples or 0,
            config["batch_size"],
        )
        classes = head_width(config["model"]["num_classes"], data.num_classes)
        teacher = teachers.describe(config, classes)
        return cls(data=data, num_classes=classes, total_steps=steps, teacher=teacher)

    def program(self, config: dict[str, Any]) -> dict[str, Any]:
        """The keyword arguments of `vit_jax.program.Program`."""
        chosen = {key: config[key] for key in compilation.PROGRAM_KEYS}
        if config["loss"]["class_weights"] == "balanced":  # any numbers cost the same
            ones = (1.0,) * self.num_classes
            chosen["loss"] = {**config["loss"], "class_weights": ones}
        return {
            **chosen,
            "total_steps": self.total_steps,
            "num_classes": self.num_classes,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planner:
    """Plans configs for one topology.

    Attributes:
      topology: to plan for.
      shape: of the run.
      cache: a folder that keeps what was compiled.
      price: dollars for an hour of one chip.
    """

    topology: Topology
    shape: Shape
    cache: Path
    price: float | None = None

    def compile(self, config: dict[str, Any], *, fast: bool) -> dict[str, Any]:
        """See `compilation.run`."""
        request = compilation.Request(
            topology=self.topology,
            data=self.shape.data,
            program=self.shape.program(config),
            teacher=self.shape.teacher,
            fast=fast,
        )
        return compilation.run(request, self.cache)

    def compiler_of(self, config: dict[str, Any]) -> search.Compile:
        """Compiles the config with some changes."""
        return lambda changes, fast: self.compile(
            search.apply(config, changes), fast=fast
        )

    def assemble(
        self, config: dict[str, Any], compiled: dict[str, Any], command: list[str]
    ) -> dict[str, Any]:
        run = figures.Run(
            batch_size=config["batch_size"],
            total_steps=self.shape.total_steps,
            price=self.price,
        )
        return figures.assemble(self.topology, run, compiled, command)

    def plan(
        self, config: dict[str, Any], *, fast: bool, command: list[str]
    ) -> dict[str, Any]:
        """The plan of a config; if it does not fit, with what would make it fit."""
        plan = self.assemble(config, self.compile(config, fast=fast), command)
        if not plan["fits"]:
            say("It does not fit; trying what would make it fit:")
            plan["remedies"] = search.remedies(
                self.compiler_of(config),
                devices=self.topology.num_devices,
                available=self.topology.chip.hbm,
                say=say,
            )
        return plan

    def search(self, config: dict[str, Any], *, fast: bool) -> list[dict[str, Any]]:
        """Plans of other arrangements that fit, the best first."""
        chip = self.topology.chip
        found = search.search(
            self.compiler_of(config),
            devices=self.topology.num_devices,
            available=chip.hbm,
            peak_flops=chip.peak_flops * self.topology.num_chips,
            fast=fast,
            say=say,
        )
        return [
            self.assemble(config, one.compiled, [search.describe(one.changes)])
            for one in found
        ]


def say(line: str) -> None:
    """Progress, apart from what is printed in the end."""
    print(line, file=sys.stderr, flush=True)
