"""Means over groups of trials, where the recipe says which group a trial is in.

A recipe that sweeps over tasks, such as configs/vtab.py, defines

    def group(config): return "Natural"  # of a trial's config, a dict

and the tables then end with the mean of each group.
"""

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vit_jax import config as configs
from vit_jax.errors import UserError
from vit_jax.launch.sweep.table import Row, as_table, short, to_csv

ALL = "all"

GroupOf = Callable[[Mapping[str, Any]], str]


@dataclasses.dataclass(frozen=True)
class Group:
    """Trials that the recipe puts together.

    Attributes:
      name: as the recipe says, or "all".
      values: the metric at the end of each trial that has finished.
      trials: how many there are.
    """

    name: str
    values: list[float]
    trials: int

    @property
    def mean(self) -> float | None:
        """None until all have finished: a mean of some tasks is of other tasks."""
        complete = self.values and len(self.values) == self.trials
        return statistics.fmean(self.values) if complete else None


def of_recipe(recipe: str) -> GroupOf | None:
    """The function `group(config)` of the recipe, if it has one."""
    module = configs.recipe_module(recipe)
    return module.group if hasattr(module, "group") else None


def grouped(rows: Sequence[Row], group_of: GroupOf) -> list[Group]:
    """The groups in the order of their names, then all trials.

    Raises:
      UserError: if the recipe's function does not return a string.
    """
    groups: dict[str, Group] = {}
    for row in rows:
        name = group_of(row.trial.config)
        if not isinstance(name, str):
            raise UserError(
                f"group(config) of the recipe returns {name!r} for {row.trial.name}: "
                "it should return a string"
            )
        for key in (name, ALL):
            before = groups[key] if key in groups else Group(key, [], 0)
            finished = row.status.state == "finished"
            groups[key] = Group(
                key,
                before.values + [row.status.last] * finished,
                before.trials + 1,
            )
    return [groups[key] for key in sorted(groups, key=lambda k: (k == ALL, k))]


def as_csv(found: Sequence[Group], metric: str) -> str:
    """The text of sweep_groups.csv."""
    return to_csv(
        [
            {
                "group": group.name,
                f"mean {metric}": "" if group.mean is None else repr(group.mean),
                "finished": str(len(group.values)),
                "trials": str(group.trials),
            }
            for group in found
        ]
    )


def as_markdown(found: Sequence[Group], metric: str) -> str:
    """What is added to sweep.md."""
    body = [
        [
            group.name,
            "" if group.mean is None else short(group.mean),
            f"{len(group.values)} of {group.trials}",
        ]
        for group in found
    ]
    table = as_table(["group", f"mean {metric}", "trials"], body)
    return f"By the recipe's groups, once all of a group have finished:\n\n{table}\n"
