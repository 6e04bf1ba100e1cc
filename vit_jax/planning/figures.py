"""The figures of a plan: what follows from a compiled step, and what they leave out."""

import dataclasses
from typing import Any

from vit_jax.planning.topologies import Topology

# What no figure of a plan contains; printed with every plan.
NOT_MODELLED = (
    "Times are from the compiler's schedule, not from a clock: bundles at the clock "
    "rate or HBM bytes at the peak bandwidth, whichever is longer, for each operation. "
    "Prefetches count as hidden, branches as taken, and no bundle waits: a large "
    "matrix product, which keeps the matrix units busy, takes some 20% more.",
    "Collectives: bytes over the links that their groups span, without latency or "
    "contention; whether other work hides them is not known, so both ends are given.",
    "Reading data, evaluations, checkpoints, waiting for the slowest host, restarts.",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What of a run is not in its step.

    Attributes:
      batch_size: global.
      total_steps: of the run.
      price: dollars for an hour of one chip; None if it is not known.
    """

    batch_size: int
    total_steps: int
    price: float | None


def assemble(
    topology: Topology, run: Run, compiled: dict[str, Any], command: list[str]
) -> dict[str, Any]:
    """The plan as plain values, ready for JSON.

    Args:
      topology: planned for.
      run: see there.
      compiled: from `compilation.run`.
      command: the arguments that were given.
    """
    program, memory = compiled["program"], compiled["memory"]
    chip = topology.chip
    fits = compiled["refused"] is None and memory["total"] <= chip.hbm
    flops = {
        "model": program["model_flops"],
        "hardware": program["hardware_flops"],
        "recompute": program["hardware_flops"] / program["model_flops"] - 1,
    }
    return {
        "command": command,
        "topology": str(topology),
        "chips": topology.num_chips,
        "devices": topology.num_devices,
        "layout": program["layout"],
        "parameters": program["parameters"],
        "batch_size": run.batch_size,
        "total_steps": run.total_steps,
        "fits": fits,
        "refused": compiled["refused"],
        "hbm_per_device": {
            "available": int(chip.hbm),
            "total": memory["total"],
            **memory["arguments_by_kind"],
            "temporaries": memory["temporaries"],
            "outputs": memory["outputs"],
            "constants": memory["constants"],
        },
        "temporaries_at_peak": memory["peak"],
        "replicated": program["replicated"],
        "flops_per_step": flops,
        "collectives": compiled["collectives"],
        "time": compiled["time"],
        "estimate": estimate(topology, run, compiled),
        "not_modelled": [
            *NOT_MODELLED,
            *uncounted(compiled["uncounted_loops"]),
            *unscheduled(compiled["time"]),
            *too_few_bundles(topology, flops, compiled["time"]),
        ],
    }


def uncounted(loops: list[str]) -> list[str]:
    """A line on loops that count as one iteration, if there are any."""
    if not loops:
        return []
    places = ", ".join(sorted(set(loops)))
    return [f"Loops that end by what they compute count as one iteration: {places}"]


def too_few_bundles(
    topology: Topology, flops: dict[str, float], time: dict[str, Any] | None
) -> list[str]:
    """A line where the bundles are fewer than the products need at the peak rate."""
    if not time:
        return []
    floor = 1e3 * flops["hardware"] / (topology.chip.peak_flops * topology.num_chips)
    if time["bundles_ms"] >= floor:
        return []
    return [
        f"This chip's schedules do not show how long a matrix product lasts: bundles "
        f"alone take {time['bundles_ms']:.1f} ms, and the products {floor:.1f} at the "
        "peak rate. The time is too short"
    ]


def unscheduled(time: dict[str, Any] | None) -> list[str]:
    """A line on matrix products without a schedule, if there are any."""
    if not time or not time["unscheduled"]:
        return []
    count = time["unscheduled"]
    return [f"{count} matrix products, for which the compiler left no schedule"]


def estimate(
    topology: Topology, run: Run, compiled: dict[str, Any]
) -> dict[str, dict[str, float | None]] | None:
    """Speed and cost with collectives "hidden" behind other work, and "exposed".

    None without a schedule, as in a fast plan.
    """
    if compiled["time"] is None:
        return None
    hidden = sum(compiled["time"]["parts"].values()) / 1e3
    links = sum(collective["seconds"] for collective in compiled["collectives"])
    # Not even hidden collectives take less than the links need.
    seconds = {"hidden": max(hidden, links), "exposed": hidden + links}
    return {name: cost(topology, run, compiled, s) for name, s in seconds.items()}


def cost(
    topology: Topology, run: Run, compiled: dict[str, Any], seconds: float
) -> dict[str, float | None]:
    """What follows from the seconds of a step."""
    peak = topology.num_chips * topology.chip.peak_flops
    hours = seconds * run.total_steps / 3600
    chip_hours = hours * topology.num_chips
    return {
        "step_ms": 1e3 * seconds,
        "mfu": compiled["program"]["model_flops"] / seconds / peak,
        "images_per_second": run.batch_size / seconds,
        "days": hours / 24,
        "chip_hours": chip_hours,
        "price": None if run.price is None else chip_hours * run.price,
    }
