"""Places on this machine: what each of the trials that run at a time may use."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import TypeVar

from vit_jax.errors import UserError
from vit_jax.launch import local

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Place:
    """The part of the machine that one trial uses.

    Attributes:
      cores: of the CPU that it is bound to; none is all.
      environment: variables that leave it its devices.
    """

    cores: tuple[int, ...] = ()
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


def share_out(parallel: int, environment: Mapping[str, str]) -> list[Place]:
    """A place for each of `parallel` trials at a time.

    One trial alone takes what it finds. Several have the GPUs dealt out evenly, and
    the cores where there are no GPUs: without that each would start a thread for
    every core, and they would get in each other's way.

    Raises:
      UserError: if there are fewer GPUs than trials.
    """
    if parallel == 1:
        return [Place()]
    platform = environment.get("JAX_PLATFORMS", "").partition(",")[0]
    gpus = local.visible_gpus(environment) if platform in ("", "cuda", "gpu") else []
    if gpus and parallel > len(gpus):
        raise UserError(
            f"--parallel={parallel}: there are {len(gpus)} GPUs here, and each trial "
            f"needs one of its own; --parallel={len(gpus)} at most"
        )
    if gpus:
        return [
            Place(environment={"CUDA_VISIBLE_DEVICES": ",".join(own)})
            for own in deal(gpus, parallel)
        ]
    if not hasattr(os, "sched_getaffinity"):  # not Linux
        return [Place()] * parallel
    return [
        Place(cores=tuple(own))
        for own in deal(sorted(os.sched_getaffinity(0)), parallel)
    ]


def deal(things: Sequence[T], parts: int) -> list[Sequence[T]]:
    """Equal parts, neighbours together; all parts are empty if there is not one each.

    >>> deal([0, 1, 2, 3, 4], 2), deal([0], 2)
    ([[0, 1], [2, 3]], [[], []])
    """
    each = len(things) // parts
    return [things[i * each : (i + 1) * each] for i in range(parts)]
