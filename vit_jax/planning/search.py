"""Other arrangements of the same run: which fit, and which of them are fast.

All of them train the same model on the same global batch: they differ in the layout of
the mesh, in layers as a loop or a scan, in what a layer keeps for its backward pass,
and in the number of micro-batches.
"""

import copy
import dataclasses
import shlex
from collections.abc import Callable, Iterator
from typing import Any

from vit_jax.errors import UserError

Changes = dict[str, Any]  # keys of the config, with dots, and their values
# Compiles the config with some changes; the second argument is whether to be fast.
Compile = Callable[[Changes, bool], dict[str, Any]]
Say = Callable[[str], None]

_NAMES = "save_only_these_names"
_WITHOUT_UP = ("q", "k", "v", "attn_o", "mid")
# What a layer keeps, from most to least memory.
ARRANGEMENTS: tuple[Changes, ...] = (
    {"model.scan": False, "model.remat_policy": "none", "model.remat_names": None},
    {"model.scan": False, "model.remat_policy": _NAMES, "model.remat_names": None},
    {"model.scan": True, "model.remat_policy": _NAMES, "model.remat_names": None},
    {
        "model.scan": True,
        "model.remat_policy": _NAMES,
        "model.remat_names": _WITHOUT_UP,
    },
    {
        "model.scan": True,
        "model.remat_policy": "nothing_saveable",
        "model.remat_names": None,
    },
)
ACCUMULATION = (1, 4)
# How many of those that fit a search compiles fully, which takes minutes each.
MOST_FULL = 6


@dataclasses.dataclass(frozen=True)
class Found:
    """An arrangement that was compiled."""

    changes: Changes
    compiled: dict[str, Any]

    @property
    def total(self) -> int:
        return self.compiled["memory"]["total"]

    @property
    def milliseconds(self) -> float | None:
        time = self.compiled["time"]
        return None if time is None else sum(time["parts"].values())

    @property
    def link_ms(self) -> float:
        return 1e3 * sum(one["seconds"] for one in self.compiled["collectives"])

    def fits(self, available: float) -> bool:
        return self.compiled["refused"] is None and self.total <= available


def apply(config: dict[str, Any], changes: Changes) -> dict[str, Any]:
    """A copy of the config with the changes.

    >>> apply({"mesh": {"fsdp": 1}}, {"mesh.fsdp": 4})
    {'mesh': {'fsdp': 4}}
    """
    config = copy.deepcopy(config)
    for path, value in changes.items():
        *parents, last = path.split(".")
        section = config
        for name in parents:
            section = section[name]
        section[last] = value
    return config


def layouts(devices: int) -> Iterator[Changes]:
    """Data alone, the state over 4, 16, ... devices and all, ZeRO-1, tensor over 2."""
    plain = {"mesh.data": -1, "mesh.fsdp": 1, "mesh.tensor": 1, "mesh.zero1": False}
    yield plain
    sizes = [n for n in (4, 16, 64, 256) if n < devices and devices % n == 0]
    for fsdp in (*sizes, devices):
        yield {**plain, "mesh.fsdp": fsdp}
    yield {**plain, "mesh.fsdp": devices, "mesh.zero1": True}
    for fsdp in sizes[:1]:
        yield {**plain, "mesh.fsdp": fsdp, "mesh.tensor": 2}


def candidates(devices: int) -> list[Changes]:
    """Every combination."""
    return [
        {**layout, **arrangement, "accumulation_steps": accumulation}
        for layout in layouts(devices)
        for arrangement in ARRANGEMENTS
        for accumulation in ACCUMULATION
    ]


def search(
    compile: Compile,
    *,
    devices: int,
    available: float,
    peak_flops: float,
    fast: bool,
    say: Say,
) -> list[Found]:
    """Compiles all candidates fast, then the most promising that fit fully.

    The best of these is compiled once more, with `model.write_norms`.

    Returns:
      Those that fit, the best first: by time, or with `fast` by memory.
    """
    found = []
    tried = candidates(devices)
    for number, changes in enumerate(tried, 1):
        try:
            compiled = compile(changes, True)
        except UserError as error:  # a layout that this model or batch does not allow
            say(f"{number}/{len(tried)} {describe(changes)}: {error}")
            continue
        found.append(Found(changes, compiled))
        fits = "fits" if found[-1].fits(available) else "does not fit"
        gib = found[-1].total / 2**30
        say(f"{number}/{len(tried)} {describe(changes)}: {gib:.2f} GiB, {fits}")
    fitting = [one for one in found if one.fits(available)]
    if fast:
        return sorted(fitting, key=lambda one: one.total)

    def least_ms(one: Found) -> float:
        flops = one.compiled["program"]["hardware_flops"]
        return 1e3 * flops / peak_flops + one.link_ms

    def with_links(one: Found) -> float:
        return (one.milliseconds or 0.0) + one.link_ms

    full = []
    for number, one in enumerate(sorted(fitting, key=least_ms)[:MOST_FULL], 1):
        say(f"fully {number}/{min(len(fitting), MOST_FULL)}: {describe(one.changes)}")
        full.append(Found(one.changes, compile(one.changes, False)))
    if full:  # whether this helps, only the schedule tells
        changes = {**min(full, key=with_links).changes, "model.write_norms": True}
        say(f"fully, the best of them with its norms written: {describe(changes)}")
        one = Found(changes, compile(changes, False))
        full += [one] if one.fits(available) else []
    return sorted(full, key=with_links)


def remedies(
    compile: Compile, *, devices: int, available: float, say: Say
) -> list[str]:
    """What makes a step fit that does not, tried one after the other.

    Each is added to those before; ends with the first that fits.
    """
    steps: list[Changes] = [
        {"mesh.data": -1, "mesh.fsdp": min(devices, 4)},
        {"mesh.data": -1, "mesh.fsdp": devices},
        ARRANGEMENTS[2],
        ARRANGEMENTS[3],
        ARRANGEMENTS[4],
        {"accumulation_steps": 2},
        {"accumulation_steps": 4},
        {"accumulation_steps": 8},
        {"accumulation_steps": 16},
    ]
    lines, changes = [], {}
    for step in steps:
        try:
            compiled = compile(changes | step, True)
        except UserError:
            continue
        changes |= step
        one = Found(changes, compiled)
        verdict = "fits" if one.fits(available) else "does not fit"
        gib = one.total / 2**30
        lines.append(f"with {describe(changes)}: {gib:.2f} GiB, {verdict}")
        say(lines[-1])
        if one.fits(available):
            return lines
    return [*lines, "none of these fits: lower the batch size, or take more chips"]


def describe(changes: Changes) -> str:
    """Changes as flags, quoted for a shell.

    >>> print(describe({"mesh.fsdp": 4, "model.remat_names": ("q", "k")}))
    --config.mesh.fsdp=4 '--config.model.remat_names=("q","k")'
    """

    def shown(value: Any) -> str:
        if isinstance(value, tuple):
            return "(" + ",".join(f'"{x}"' for x in value) + ")"
        return str(value).lower() if isinstance(value, bool | None) else str(value)

    return shlex.join(
        f"--config.{key}={shown(value)}" for key, value in changes.items()
    )
