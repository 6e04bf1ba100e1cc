"""python -m vit_jax: the commands there are; --version: which vit_jax this is."""

import sys
from collections.abc import Sequence

from vit_jax import errors, flags

COMMANDS = {
    "main": "trains, goes on, or evaluates: --config=quickstart.py --workdir=DIR",
    "predict": "classes of images, and pictures of attention",
    "convert": "writes a checkpoint for other libraries, or as a StableHLO program",
    "fsck": "verifies the checkpoints of a run, and its other files",
    "plan": "memory, time and cost of a run, without the accelerator",
    "data.prepare": "folders, tar files, CSV or Parquet into a dataset",
    "data.check": "checks all that a config reads",
    "data.catalog": "the datasets that are known by name",
    "data.augment_sheet": "every augmentation, on one picture",
    "launch.local": "a run of several processes on this machine",
    "launch.slurm": "a run, or several, on a Slurm cluster",
    "launch.gke": "a run on Kubernetes, on TPUs or GPUs",
    "launch.tpu": "a run on TPU VMs of Google Cloud",
    "launch.sweep": "many runs that differ in a few keys, and a table of them",
}


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns its exit code."""
    return flags.run(None, argv[1:], lambda: tell(argv[1:]))


def tell(argv: Sequence[str]) -> None:
    """Prints the commands.

    Raises:
      UserError: for anything but --help.
    """
    if not argv or list(argv) in (["--help"], ["-h"]):
        print("The commands of vit_jax; each has --help:\n")
        for name, what in COMMANDS.items():
            print(f"  python -m vit_jax.{name:<20}{what}")
        return
    hint = errors.did_you_mean(argv[0].lstrip("-"), [*COMMANDS, "version", "help"])
    raise errors.UserError(
        f"{argv[0]}: python -m vit_jax takes --version and --help; a command is a "
        f"module, as python -m vit_jax.main; {hint}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv))
