"""Accuracy and loss over a split; every example counts exactly once."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vit_jax import steps
from vit_jax.evaluators.base import Evaluator, Examples, Result
from vit_jax.program import Program
from vit_jax.state import Params


class Classification(Evaluator):
    """One entry of `config.evals` with `type="classification"`."""

    def __init__(
        self,
        name: str,
        mesh: Mesh,
        training_data: dict[str, Any],
        training_batch_size: int,
        *,
        type: str = "classification",
        every: int | None = None,
        split: str = "test",
        batch_size: int | None = None,
        data: dict[str, Any],
    ) -> None:
        """Opens the data.

        Args:
          name: of the entry; results are called NAME/accuracy, NAME/loss.
          mesh: that the batches are laid out over.
          training_data: `config.data`, which holds but for what is said here.
          training_batch_size: `config.batch_size`, the default of `batch_size`.
          type: read by the table of evaluators.
          every: steps between evaluations; None is once, at the end.
          split: of the data.
          batch_size: global.
          data: keys of `config.data` that differ for this evaluation.
        """
        super().__init__(name, every)
        self._protocol = {"type": type}
        self.examples = Examples(
            mesh,
            training_data,
            training_batch_size,
            where=f"config.evals.{name}",
            split=split,
            batch_size=batch_size,
            data=data,
        )

    def check(self, num_classes: int, program: Program, params: Params) -> None:
        self.examples.check(num_classes)
        dataset = self.examples.dataset
        step = program.make_eval_step(mean=dataset.mean, std=dataset.std)
        self._to_compile = step, params, self.examples.try_step(step, params)

    def compile(self) -> None:
        step, params, batch = self._to_compile
        self._step = steps.compile_eval_step(step, self.examples.mesh, params, batch)

    def result_names(self) -> list[str]:
        return [f"{self.name}/{what}" for what in ("accuracy", "loss", "examples")]

    def run(self, params: Params, check: Callable[[], None]) -> Result:
        totals = {"correct": 0, "loss": 0.0, "examples": 0}
        pending: dict[str, jax.Array] | None = None
        for batch in self.examples.batches(check):
            sums = self._step(params, batch)
            if pending is not None:  # read a batch late: the device does not wait
                add(totals, pending)
            pending = sums
        if pending is not None:
            add(totals, pending)
        count = totals["examples"]
        scalars = {
            f"{self.name}/accuracy": totals["correct"] / count,
            f"{self.name}/loss": totals["loss"] / count,
            f"{self.name}/examples": int(count),
        }
        return Result(scalars, {**self._protocol, **self.examples.describe()})


def add(totals: dict[str, Any], sums: dict[str, jax.Array]) -> None:
    """Adds sums from the device to Python numbers: exact ints, float64 losses."""
    for name, value in jax.device_get(sums).items():
        totals[name] += np.asarray(value).item()
