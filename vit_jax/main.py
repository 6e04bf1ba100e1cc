"""python -m vit_jax.main --config=configs/NAME.py[:ARG] --workdir=DIR

  --config.KEY=VALUE   overrides a key of the config, such as --config.seed=1
  --evaluate_only      evaluates the workdir's checkpoint, or --config.init_from
  --evals=NAME,...     with it: these of config.evals, not all

One of several processes is given the same, and where it stands, unless a TPU pod,
Slurm, Kubernetes or Open MPI says so:

  --coordinator_address=HOST:PORT --num_processes=N --process_id=I

The keys and their values stand in DIR/config.json; the README says more.
"""

import os
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags, logging

from vit_jax import cluster, errors, preemption
from vit_jax import config as configs

FLAGS = flags.FLAGS
flags.DEFINE_string("config", None, "Recipe: PATH.py or PATH.py:ARG.")
flags.DEFINE_string("workdir", None, "Directory of the run; may be in an object store.")
flags.DEFINE_bool("evaluate_only", False, "Evaluate a checkpoint and stop.")
flags.DEFINE_list("evals", None, "Names in config.evals, with --evaluate_only.")
flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0.")
flags.DEFINE_integer("num_processes", None, "Processes of the run.")
flags.DEFINE_integer("process_id", None, "Number of this process, from 0.")


def parse(argv: Sequence[str]) -> list[tuple[str, str]]:
    """Parses the flags into FLAGS; returns the overrides as (key, text)."""
    overrides = [a for a in argv[1:] if a.startswith("--config.")]
    try:
        rest = FLAGS([a for a in argv if a not in overrides], known_only=True)[1:]
    except flags.Error as error:
        raise errors.UserError(str(error)) from error
    if rest:
        known = ["--config", "--workdir", "--evaluate_only", "--evals"]
        names = [*known, *cluster.FLAGS]
        hint = errors.did_you_mean(rest[0].partition("=")[0], names)
        raise errors.UserError(f"{rest[0]} is not a flag; {hint}")
    if FLAGS.config is None or FLAGS.workdir is None:
        raise errors.UserError(f"--config and --workdir are both needed:\n\n{__doc__}")
    pairs = [a.removeprefix("--config.").partition("=") for a in overrides]
    return [(key, text) for key, _, text in pairs]


def chosen(evals: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The evaluations that --evals names."""
    if not FLAGS.evaluate_only:
        raise errors.UserError("--evals goes with --evaluate_only: training does all")
    for name in names:
        if name not in evals:
            hint = errors.did_you_mean(name, evals)
            raise errors.UserError(f'--evals: config.evals has no "{name}"; {hint}')
    return {name: evals[name] for name in names}


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns its exit code, see `vit_jax.errors`."""
    preemption.install()
    # TensorFlow only writes TensorBoard's files: it need not greet and complain.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    logging.use_absl_handler()
    if "--help" in argv:
        print(__doc__)
        return 0
    try:
        overrides = parse(argv)
        place = cluster.find(
            FLAGS.coordinator_address, FLAGS.num_processes, FLAGS.process_id
        )
        config = configs.load(FLAGS.config, overrides).to_dict()
        if FLAGS.evals is not None:
            config["evals"] = chosen(config["evals"], FLAGS.evals)
        # Slow to import: after the config is good.
        from vit_jax import distributed, train, workdirs

        run = train.evaluate_only if FLAGS.evaluate_only else train.train_and_evaluate
        with distributed.joined(
            place,
            peer_timeout=config["peer_timeout"],
            stall_timeout=config["stall_timeout"],
        ):
            run(workdirs.absolute(FLAGS.workdir), config)
    except errors.Stop as stop:
        print(f"{stop.label}: {stop}", file=sys.stderr)
        if isinstance(stop, errors.Preempted):
            preemption.leave(stop.exit_code)  # the compiler may still be at work
        return stop.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
