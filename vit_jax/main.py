"""python -m vit_jax.main --config=configs/NAME.py[:ARG] --workdir=DIR

--config.KEY=VALUE   overrides a key of the config, such as --config.seed=1
--evaluate_only      evaluates the workdir's checkpoint, or --config.init_from
"""

import os
import sys
from collections.abc import Sequence

from absl import flags, logging
from etils import epath

from vit_jax import config as configs
from vit_jax import errors, preemption

FLAGS = flags.FLAGS
flags.DEFINE_string("config", None, "Recipe: PATH.py or PATH.py:ARG.")
flags.DEFINE_string("workdir", None, "Directory of the run; may be in an object store.")
flags.DEFINE_bool("evaluate_only", False, "Evaluate a checkpoint and stop.")


def parse(argv: Sequence[str]) -> list[tuple[str, str]]:
    """Parses absl's flags in place; returns the overrides (key, text)."""
    own = [a for a in argv[1:] if not a.startswith("--config.")]
    try:
        rest = FLAGS([argv[0], *own], known_only=True)[1:]
    except flags.Error as error:
        raise errors.UserError(str(error)) from error
    if rest:
        names = [f"--{name}" for name in ("config", "workdir", "evaluate_only")]
        hint = errors.did_you_mean(rest[0].partition("=")[0], names)
        raise errors.UserError(f"{rest[0]} is not a flag; {hint}")
    if FLAGS.config is None or FLAGS.workdir is None:
        raise errors.UserError(f"--config and --workdir are both needed:\n{__doc__}")
    pairs = [
        a.removeprefix("--config.").partition("=") for a in argv[1:] if a not in own
    ]
    return [(key, text) for key, _, text in pairs]


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns its exit code, see `vit_jax.errors`."""
    preemption.install()
    # TensorFlow, which writes TensorBoard's files, would greet and complain in C++.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.use_absl_handler()
    try:
        overrides = parse(argv)
        config = configs.load(FLAGS.config, overrides)
        from vit_jax import train  # after the config is known to be good: it is slow

        run = train.evaluate_only if FLAGS.evaluate_only else train.train_and_evaluate
        run(epath.Path(FLAGS.workdir), config.to_dict())
    except errors.UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return errors.EXIT_USER_ERROR
    except errors.NonFiniteLossError as error:
        print(f"error: {error}", file=sys.stderr)
        return errors.EXIT_NON_FINITE_LOSS
    except errors.Preempted as stop:
        where = str(stop) or "before it began: run the same command to start again"
        print(f"stopped: {where}", file=sys.stderr)
        preemption.leave(errors.EXIT_PREEMPTED)
    return errors.EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv))
