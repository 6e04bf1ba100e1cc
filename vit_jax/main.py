"""python -m vit_jax.main --config=configs/NAME.py[:ARG] --workdir=DIR

  --config=RECIPE      PATH.py or PATH.py:ARG; or the workdir of a run, or its
                       config.json. Without it: the config of the run in --workdir
  --workdir=DIR        directory of the run, local or gs://...; a new one, or one to go
                       on with
  --config.KEY=VALUE   overrides a key of the config, such as --config.seed=1.
                       --config.evals.NAME.type=TYPE adds an evaluation,
                       --config.evals.NAME=none removes one
  --evaluate_only      evaluates the workdir's checkpoint, or --config.init_from
  --evals=NAME,...     with it: these of config.evals, not all
  --print_config       prints the complete config as JSON, and ends
  --help, -h           this text
  --version            prints the version

One of several processes is given the same, and where it stands, unless a TPU pod,
Slurm, Kubernetes or Open MPI says so:

  --coordinator_address=HOST:PORT  of process 0
  --num_processes=N                of the run
  --process_id=I                   of this one, from 0

The README says more; --print_config and DIR/config.json show every key and its value.
"""

import argparse
import json
import sys
import threading
from collections.abc import Sequence

from absl import logging

from vit_jax import api, cluster, errors, flags, preemption, streams, workdirs
from vit_jax import config as configs


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
    """The flags, and the overrides as (key, text).

    Raises:
      UserError: for what is no flag, and what is missing.
    """
    parser = flags.Parser()
    parser.add_argument("--config")
    parser.add_argument("--workdir")
    parser.add_argument("--evaluate_only", action="store_true")
    parser.add_argument("--evals", type=lambda text: text.split(","))
    parser.add_argument("--print_config", action="store_true")
    parser.add_argument("--coordinator_address")
    parser.add_argument("--num_processes", type=int)
    parser.add_argument("--process_id", type=int)
    rest, overrides = flags.split_overrides(argv)
    args = parser.parse(rest)
    if args.workdir is None and (args.config is None or not args.print_config):
        raise errors.UserError(f"--config and --workdir are both needed:\n\n{__doc__}")
    if args.evals is not None and not args.evaluate_only:
        raise errors.UserError("--evals goes with --evaluate_only: training does all")
    return args, overrides


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns its exit code, see `vit_jax.errors`."""
    logging.use_absl_handler()
    return flags.run(__doc__, argv[1:], lambda: run(argv))


def run(argv: Sequence[str]) -> None:
    """What the command line asks for.

    Raises:
      Stop: whatever ends it early.
    """
    args, overrides = parse(argv[1:])
    if args.print_config:
        given = args.config
        if given is None:
            given = str(workdirs.absolute(args.workdir, of="--workdir"))
        print(json.dumps(configs.load(given, overrides).to_dict(), indent=2))
        return
    place = cluster.find(args.coordinator_address, args.num_processes, args.process_id)
    with preemption.handled():
        api.run(
            args.config,
            args.workdir,
            overrides,
            evaluate_only=args.evaluate_only,
            evals=args.evals,
            command=argv,
            place=place,
        )


def script() -> None:
    """Runs the command line of this process, and ends it."""
    streams.fill_closed()
    with preemption.handled(leave_at_second=True):
        code = main(sys.argv)
        # The compiler may still be at work, or a thread waits for a lost worker.
        waits_for_nobody = errors.Preempted.exit_code, errors.WorkerLost.exit_code
        if code in waits_for_nobody or (code and saving_hangs()):
            preemption.leave(code)
    sys.exit(code)


def saving_hangs() -> bool:
    """Whether threads of a save are left, though nothing waits for one any more.

    After a save that failed Orbax's threads wait for each other for minutes.
    """
    return any(
        type(thread).__module__.startswith("orbax.") for thread in threading.enumerate()
    )


if __name__ == "__main__":
    script()
