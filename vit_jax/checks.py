"""What the values of a run may be, and how they follow from the data."""

import math

import jax

from vit_jax import host_memory, progress
from vit_jax.errors import UserError
from vit_jax.state import TrainState

LARGEST_COUNT = 2**24  # of a batch, and of steps between lines of the log


LARGEST_STEP = 2**31 - 1  # the step is an int32 on the devices


def check_memory(what: str, wanted: float, advice: str) -> None:
    """Refuses what is larger than all memory of this machine.

    Args:
      what: is to be held.
      wanted: its bytes.
      advice: what to do.
    """
    there = host_memory.physical_bytes()
    if wanted > there:
        raise UserError(
            f"{what} takes {progress.size(wanted)}, and this machine has "
            f"{progress.size(there)} of memory: {advice}"
        )


def check_ranges(
    seed: int,
    batch_size: int,
    accumulation_steps: int,
    ema: float | None,
    log_every: int,
    profile: tuple[int, int] | None,
) -> None:
    """Refuses values that are out of range, by name."""
    for name, value in (
        ("batch_size", batch_size),
        ("accumulation_steps", accumulation_steps),
        ("log_every", log_every),
    ):
        if not 1 <= value <= LARGEST_COUNT:
            raise UserError(
                f"config.{name} is {value:,}: it should be from 1 to {LARGEST_COUNT:,}"
            )
    if not 0 <= seed < 2**63:
        raise UserError(f"config.seed is {seed}: it should be 0 or more, below 2**63")
    if ema is not None and not 0 < ema < 1:
        raise UserError(f"config.ema is {ema}: it should lie between 0 and 1, or none")
    if profile is not None and not 0 < profile[0] <= profile[1]:
        raise UserError(
            f"config.profile is {profile}: it should be (first step, last step)"
        )


def resolve_steps(
    total_steps: int | None,
    total_epochs: float | None,
    num_examples: int,
    batch_size: int,
) -> int:
    """Steps of a run, from exactly one of steps and epochs.

    >>> resolve_steps(None, 2.0, 100, 64)
    4
    """
    if (total_steps is None) == (total_epochs is None):
        raise UserError(
            f"config.total_steps is {total_steps} and config.total_epochs is "
            f"{total_epochs}: set exactly one of them, the other to none"
        )
    steps: float = total_steps or 0
    if total_epochs is not None:
        steps = total_epochs * num_examples / batch_size
    if not 0 < steps <= LARGEST_STEP:
        name = "total_steps" if total_epochs is None else "total_epochs"
        raise UserError(
            f"config.{name} means {steps:,.10g} steps: there should be 1 to "
            f"{LARGEST_STEP:,}"
        )
    return math.ceil(steps)


def head_width(num_classes: int | None, in_data: int | None) -> int:
    """`model.num_classes`, by default as many as the data has."""
    if num_classes is None and in_data is None:
        raise UserError(
            "config.model.num_classes is not set and the data does not say how many "
            "classes it has: set it"
        )
    if num_classes is not None and in_data is not None and num_classes < in_data:
        raise UserError(
            f"config.model.num_classes is {num_classes}, but the data has {in_data} "
            f"classes: set it to {in_data} or leave it out"
        )
    width = in_data if num_classes is None else num_classes
    assert width is not None
    return width


def wider_head(num_classes: int, in_data: int | None) -> list[str]:
    """What should be told of a head with more classes than the data has.

    >>> wider_head(21_843, 19_167)
    ['the data has 19,167 classes, the head 21,843: config.model.num_classes; ...']
    """
    if in_data is None or in_data >= num_classes:
        return []
    return [
        f"the data has {in_data:,} classes, the head {num_classes:,}: "
        f"config.model.num_classes; {in_data} leaves none without an image"
    ]


def state_bytes(abstract: TrainState) -> int:
    """What a state takes of this machine's memory, where that is the devices'."""
    here = [d for d in jax.local_devices() if d.platform == "cpu"]
    leaves = jax.tree.leaves(abstract)
    return len(here) * sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in leaves
    )
