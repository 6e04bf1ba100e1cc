"""Writes docs/plans.md: does ImageNet-21k pre-training fit, on which TPUs, and how?

    python benchmarks/plan_table.py            all of it: two hours of CPU or more
    python benchmarks/plan_table.py v5e H/14   only rows with all of these in them

Fast plans of the recipe `imagenet21k` for five models and the slices of five kinds of
TPU, and full ones of the twelve cells of `FULL`. Each cell is the first of
`ARRANGEMENTS` that fits. What was compiled is kept, and the tables are written after
each row: run it again and it goes on.
"""

import argparse
import sys
from pathlib import Path

from vit_jax import config as configs
from vit_jax.errors import UserError
from vit_jax.planning import planner, topologies

VARIANTS = ("B/16", "L/16", "H/14", "g/14", "G/14")
# (topology, slices), 16 to 1,024 chips.
TOPOLOGIES = (
    *(("v3:4x4", 1), ("v3:8x8", 1), ("v3:16x16", 1), ("v3:32x32", 1)),
    *(("v4:2x2x4", 1), ("v4:4x4x4", 1), ("v4:4x8x8", 1), ("v4:8x8x16", 1)),
    *(("v5e:4x4", 1), ("v5e:8x8", 1), ("v5e:16x16", 1), ("v5e:16x16", 4)),
    *(("v5p:2x2x4", 1), ("v5p:4x4x4", 1), ("v5p:4x8x8", 1), ("v5p:8x8x16", 1)),
    *(("v6e:4x4", 1), ("v6e:8x8", 1), ("v6e:16x16", 1), ("v6e:16x16", 4)),
)
# From the one that computes least again to the one that needs least memory.
ARRANGEMENTS = (
    ("fsdp 4", {"mesh.fsdp": "4"}),
    ("fsdp 16", {"mesh.fsdp": "16"}),
    ("fsdp 16, full remat", {"mesh.fsdp": "16", "remat": "nothing_saveable"}),
    (
        "fsdp 16, full remat, 4 micro-batches",
        {"mesh.fsdp": "16", "remat": "nothing_saveable", "accumulation_steps": "4"},
    ),
)
# Cells that are compiled to the end, for their time.
FULL = (
    *(("L/16", "v5p:2x2x4"), ("B/16", "v4:2x2x4"), ("B/16", "v5e:4x4")),
    *(("B/16", "v5p:2x2x4"), ("B/16", "v6e:4x4")),
    *(("L/16", "v4:4x4x4"), ("L/16", "v5e:8x8"), ("L/16", "v6e:8x8")),
    *(("H/14", "v4:4x4x4"), ("H/14", "v5e:16x16")),
    *(("H/14", "v5p:4x4x4"), ("H/14", "v6e:16x16")),
)
HEAD = """# Plans of ImageNet-21k pre-training

Written by `python benchmarks/plan_table.py`; [planning.md](planning.md) says what the
figures are. The recipe is `configs/imagenet21k.py`, a global batch of 4,096, scanned
layers and the first moment in bfloat16. HBM is per device, links are milliseconds of
the links in a step.

## Fast plans

| model | TPU | chips | arrangement | HBM, GiB | of | sent, GB | links, ms |
|---|---|---|---|---|---|---|---|
"""
FULL_HEAD = """
## Full plans

Of twelve of these cells the code was generated too, which gives the time of a step
with the collectives hidden behind the computation, and with all of them added. The
recipe has a dropout of 0.1, as the paper's Table 3 says, which draws a random number
for each activation: of B/16 on v5e some 48 of 114 ms at a batch of 1,024.

| model | TPU | chips | ms | with links | MFU | images/s | days | chip-hours |
|---|---|---|---|---|---|---|---|---|
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", help="parts of rows")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/vit_jax/plans"))
    parser.add_argument("--output", type=Path, default=Path("docs/plans.md"))
    args = parser.parse_args()
    cache = args.cache.expanduser()
    fast: list[str] = []
    full: list[str] = []

    def add(lines: list[str], line: str) -> None:
        lines.append(line)
        print(line, file=sys.stderr, flush=True)
        tables = [*fast, *([FULL_HEAD.rstrip("\n"), *full] if full else [])]
        args.output.write_text(HEAD + "\n".join(tables) + "\n")

    for name, slices in TOPOLOGIES:
        topology = topologies.parse(name, slices)
        for variant in VARIANTS:
            if all(part in f"{variant} {topology}" for part in args.only):
                add(fast, row(variant, topology, cache))
    for variant, name in FULL:
        topology = topologies.parse(name)
        if all(part in f"{variant} {topology}" for part in args.only):
            add(full, full_row(variant, topology, cache))


def row(variant: str, topology: topologies.Topology, cache: Path) -> str:
    cells = ["-", "-", "-", "-", "-"]
    for label, changes in ARRANGEMENTS:
        try:
            compiled = plan(variant, topology, changes, cache)
        except UserError:  # a batch that so many devices do not divide
            continue
        total = compiled["memory"]["total"]
        sent = compiled["collectives"]
        fits = compiled["refused"] is None and total <= topology.chip.hbm
        cells = [
            label if fits else f"{label}: does not fit",
            f"{total / 2**30:.2f}",
            f"{topology.chip.hbm / 2**30:.2f}",
            f"{sum(one['bytes'] for one in sent) / 1e9:.2f}",
            f"{1e3 * sum(one['seconds'] for one in sent):.1f}",
        ]
        if fits:
            break
    return f"| {variant} | {topology} | {topology.num_chips} | {' | '.join(cells)} |"


def full_row(variant: str, topology: topologies.Topology, cache: Path) -> str:
    """The time of the first arrangement that fits."""
    changes: dict[str, str] = {}
    for _, changes in ARRANGEMENTS:
        compiled = plan(variant, topology, changes, cache)
        fits = compiled["memory"]["total"] <= topology.chip.hbm
        if compiled["refused"] is None and fits:
            break
    target, config = planner_of(variant, topology, changes, cache)
    found = target.assemble(config, target.compile(config, fast=False), [])["estimate"]
    hidden, added = found["hidden"], found["exposed"]
    cells = (
        f"{hidden['step_ms']:.1f}",
        f"{added['step_ms']:.1f}",
        f"{hidden['mfu']:.1%}",
        f"{hidden['images_per_second']:,.0f}",
        f"{hidden['days']:.2f}",
        f"{hidden['chip_hours']:,.0f}",
    )
    return f"| {variant} | {topology} | {topology.num_chips} | {' | '.join(cells)} |"


def plan(
    variant: str, topology: topologies.Topology, changes: dict[str, str], cache: Path
) -> dict:
    target, config = planner_of(variant, topology, changes, cache)
    return target.compile(config, fast=True)


def planner_of(
    variant: str, topology: topologies.Topology, changes: dict[str, str], cache: Path
) -> tuple[planner.Planner, dict]:
    overrides = {
        "model.scan": "true",
        "optim.moment_dtype": "bfloat16",
        **{key.replace("remat", "model.remat_policy"): v for key, v in changes.items()},
    }
    recipe = f"configs/imagenet21k.py:{variant}"
    config = configs.load(recipe, list(overrides.items())).to_dict()
    shape = planner.Shape.of(config)
    return planner.Planner(topology=topology, shape=shape, cache=cache), config


if __name__ == "__main__":
    main()
