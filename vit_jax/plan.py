"""python -m vit_jax.plan --config=configs/NAME.py[:ARG] --topology=v5e:16x16

  --config.KEY=VALUE   overrides a key of the config, as in training
  --topology=NAME      VERSION:SHAPE of a TPU slice (v2, v3, v4, v5e, v5p, v6e, tpu7x),
                       or "local": runs a few steps on this machine
  --slices=N           so many slices, joined by the data-centre network
  --fast               memory and collectives in seconds, but no times
  --search             tries other layouts, scans, remat policies and accumulation
  --price=DOLLARS      for an hour of one chip
  --num_examples=N     of the training split, where the dataset is not a published one
  --json               prints JSON
  --cache=DIR          keeps results (~/.cache/vit_jax/plans)

Compiles the step that training would run with the real TPU compiler, without a TPU and
without the data. docs/planning.md says how to read what it prints.
"""

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vit_jax import config as configs
from vit_jax import errors, flags


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
    """The flags, and the overrides as (key, text)."""
    parser = flags.Parser()
    parser.add_argument("--config")
    parser.add_argument("--topology")
    parser.add_argument("--slices", type=int, default=1)
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--search", action="store_true")
    parser.add_argument("--price", type=float)
    parser.add_argument("--num_examples", type=int)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/vit_jax/plans"))
    rest, overrides = flags.split_overrides(argv)
    args = parser.parse(rest)
    if args.config is None or args.topology is None:
        raise errors.UserError(f"--config and --topology are both needed:\n\n{__doc__}")
    return args, overrides


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns its exit code, see `vit_jax.errors`."""
    # So that what is ended by a signal ends the compiler's process too.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    return flags.run(__doc__, argv[1:], lambda: print(plan(argv[1:])))


def plan(argv: Sequence[str]) -> str:
    """What the command line asks for, to print."""
    args, overrides = parse(argv)
    topology = None
    if args.topology != "local":
        from vit_jax.planning import topologies

        topology = topologies.parse(args.topology, args.slices)
    config = configs.load(args.config, overrides).to_dict()
    return run(args, topology, config, argv)


def run(
    args: argparse.Namespace, topology: Any, config: dict[str, Any], argv: Sequence[str]
) -> str:
    """What to print."""
    from vit_jax.planning import local, planner, report
    from vit_jax.run import wider_head

    shape = planner.Shape.of(config, args.num_examples)
    for note in wider_head(shape.num_classes, shape.data.num_classes):
        planner.say(f"Note: {note}")
    if topology is None:
        plan = local.measure(config, shape, price=args.price)
        return json.dumps(plan, indent=2) if args.json else report.local_text(plan)
    target = planner.Planner(
        topology=topology,
        shape=shape,
        cache=args.cache.expanduser(),
        price=args.price,
    )
    if args.search:
        plans = target.search(config, fast=args.fast)
        return json.dumps(plans, indent=2) if args.json else report.ranking(plans)
    plan = target.plan(config, fast=args.fast, command=list(argv))
    return json.dumps(plan, indent=2) if args.json else report.text(plan)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
