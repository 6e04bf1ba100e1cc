"""python -m vit_jax: the commands there are; --version: which vit_jax this is."""

import sys
from collections.abc import Sequence

from vit_jax import __version__, errors

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
    if argv[1:] == ["--version"]:
        print(f"vit_jax {__version__}")
        return 0
    if not argv[1:] or argv[1:] in (["--help"], ["-h"]):
        print("The commands of vit_jax; each has --help:\n")
        for name, what in COMMANDS.items():
            print(f"  python -m vit_jax.{name:<20}{what}")
        return 0
    hint = errors.did_you_mean(argv[1].lstrip("-"), [*COMMANDS, "version", "help"])
    print(
        f"error: {argv[1]}: python -m vit_jax takes --version and --help; a command is "
        f"a module, as python -m vit_jax.main; {hint}",
        file=sys.stderr,
    )
    return errors.UserError.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv))
