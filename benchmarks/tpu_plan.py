"""What a training step costs on TPUs, as `vit_jax.plan` sees it: one row a cell.

    python benchmarks/tpu_plan.py              all cells; minutes of CPU for each
    python benchmarks/tpu_plan.py B/16 v5p     those whose name has one of these in it
    python benchmarks/tpu_plan.py --fast       memory alone, seconds for each

Needs the extra [plan] and no TPU. What is compiled is kept (see `--cache`), so that an
interrupted table goes on where it was. `ms` leaves collectives out; `links` is what
they need of the links. Each cell has a target in ms and in GiB, where there is one.
"""

import argparse
import sys
from pathlib import Path

from vit_jax import config as configs
from vit_jax.planning import planner, report, topologies

# AdamW with its first moment in bfloat16, clipping, bfloat16 compute, float32
# parameters; without dropout, whose random numbers cost a B/16 step half of its time.
COMMON = {
    "model.dropout": "0.0",
    "model.representation_size": "none",
    "optim.moment_dtype": "bfloat16",
}
# Layers in a loop take three times as long to compile as in a scan, and 7 to 9% less to
# run.
FAST = {"mesh.fsdp": "4", "model.remat_policy": "save_only_these_names"}
# What LayerNorm gives written to memory: faster for H/14, slower for L/16.
WRITE_NORMS = {"model.write_norms": "true"}
# "mid" costs a small product to compute again, and 0.7 GiB of H/14 to keep.
WITHOUT_MID = {**FAST, "model.remat_names": "q,k,v,attn_o,up"}
SMALL = {"model.scan": "true", "model.remat_policy": "nothing_saveable"}
# (variant, topology, batch size, changes, target ms, target GiB)
CELLS = (
    ("B/16", "v5e:4x4", 1024, FAST, 46, 2.8),
    ("B/16", "v5e:4x4", 1024, {"mesh.fsdp": "4", **SMALL}, None, 1.05),
    ("L/16", "v5e:4x4", 1024, FAST, 158, 7.5),
    ("L/16", "v5e:4x4", 1024, {"mesh.fsdp": "16", **SMALL}, None, 1.9),
    ("H/14", "v5e:4x4", 512, {**WITHOUT_MID, **WRITE_NORMS}, 208, 9.0),
    ("H/14", "v5e:4x4", 512, {"mesh.fsdp": "16", **SMALL, **WRITE_NORMS}, 235, 1.8),
    ("H/14", "v5e:4x4", 4096, {"mesh.fsdp": "16", **SMALL}, None, 9.7),
    (
        *("H/14", "v5p:4x4x4", 4096),
        {**FAST, "mesh.fsdp": "16", **WRITE_NORMS},
        *(180, 14.0),
    ),
    ("H/14", "v5p:4x4x4", 4096, {"mesh.fsdp": "64", **SMALL}, None, 2.4),
    ("H/14", "v4:2x2x4", 512, {**FAST, **WRITE_NORMS}, 190, 9.0),
    (
        *("H/14", "v3:4x4", 1024),
        {"mesh.fsdp": "32", "accumulation_steps": "2", **SMALL},
        *(None, 1.49),
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", help="parts of names")
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/vit_jax/plans"))
    parser.add_argument(
        "--change",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of the config, in every cell",
    )
    args = parser.parse_args()
    changes = dict(change.split("=", 1) for change in args.change)
    rows: list[tuple[str, ...]] = [
        ("cell", "GiB", "target", "ms", "target", "links ms", "MFU", "computed")
    ]
    for cell in CELLS:
        name = f"{cell[0]} {cell[1]} {cell[2]}"
        if not args.only or any(part in name for part in args.only):
            print(f"{name} {cell[3]}", file=sys.stderr, flush=True)
            rows.append(row(name, cell, changes, args))
            print("\n".join(report.table(rows)), flush=True)


def row(name: str, cell: tuple, changes: dict[str, str], args) -> tuple[str, ...]:
    variant, topology, batch_size, own, target_ms, target_gib = cell
    keys = {**COMMON, **own, "batch_size": str(batch_size), **changes}
    recipe = f"configs/imagenet1k.py:{variant}"
    config = configs.load(recipe, list(keys.items())).to_dict()
    target = planner.Planner(
        topology=topologies.parse(topology),
        shape=planner.Shape.of(config),
        cache=args.cache.expanduser(),
    )
    compiled = target.compile(config, fast=args.fast)
    plan = target.assemble(config, compiled, [])
    links = sum(one["seconds"] for one in plan["collectives"])
    estimate = plan["estimate"]["hidden"] if plan["estimate"] else None
    gib = plan["hbm_per_device"]["total"] / 2**30
    return (
        name,
        f"{gib:.2f}" + ("" if plan["fits"] else " OOM"),
        "-" if target_gib is None else f"{target_gib:.2f}",
        f"{estimate['step_ms']:.1f}" if estimate else "-",
        "-" if target_ms is None else f"{target_ms}",
        f"{1e3 * links:.1f}",
        f"{estimate['mfu']:.1%}" if estimate else "-",
        f"{plan['flops_per_step']['recompute']:+.0%}",
    )


if __name__ == "__main__":
    main()
