"""Trials through the other launchers."""

import argparse
import getpass
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from vit_jax.errors import UserError
from vit_jax.launch import job, slurm
from vit_jax.launch.sweep.trials import Trial

# What makes their command lines wait for the end of the run, and exit with its code.
LAUNCHERS: dict[str, tuple[str, ...]] = {
    "local": (),
    "slurm": (),
    "gke": ("--follow",),
    "tpu": (),
}


def command(trial: Trial, flags: argparse.Namespace) -> list[str]:
    """The command that runs a trial to its end."""
    line = trial.job.command()
    if flags.launcher == "local":
        return line
    given = launcher_args(flags)
    main = line.index("vit_jax.main")
    launcher = [*line[:main], f"vit_jax.launch.{flags.launcher}"]
    return [*launcher, *line[main + 1 :], *given, *LAUNCHERS[flags.launcher]]


def launcher_args(flags: argparse.Namespace) -> list[str]:
    """The flags in `--launcher_args`, as a shell would part them.

    Raises:
      UserError: if a quote is not closed.
    """
    try:
        return shlex.split(flags.launcher_args)
    except ValueError as error:
        raise UserError(f"--launcher_args={flags.launcher_args}: {error}") from error


def submit_to_slurm(
    found: Sequence[Trial], directory: Path, flags: argparse.Namespace
) -> None:
    """Submits the trials as one array, and says how to look at them.

    Raises:
      UserError: if some are in the queue already, or Slurm refuses.
    """
    if not found:
        print("All trials have ended.")
        return
    if numbers := in_queue(directory):
        raise UserError(
            f"jobs of this sweep are in Slurm's queue ({', '.join(numbers)}): wait for "
            "them, or scancel them first; --table shows how far the trials are"
        )
    options = slurm_options(flags)
    number = slurm.submit([trial.job for trial in found], options)
    print(
        f"Submitted {len(found)} trials as job {number}. The same command with --table "
        "shows how far they are; without it, submits again what has not finished."
    )


def slurm_script(found: Sequence[Trial], flags: argparse.Namespace) -> str:
    """What would be submitted."""
    return slurm.script([trial.job for trial in found], slurm_options(flags))


def slurm_options(flags: argparse.Namespace) -> slurm.Options:
    """What `--launcher_args` and `--parallel` ask of Slurm."""
    parser = job.Parser("slurm", None)
    slurm.add_flags(parser)
    given = parser.parse_args(launcher_args(flags))
    return slurm.read_flags(given, parallel=flags.parallel)


def in_queue(directory: Path) -> list[str]:
    """Numbers of the jobs that wait or run and whose script is in this directory.

    Slurm is asked, since a note of ours could be out of date.
    """
    query = ["squeue", "--noheader", f"--user={getpass.getuser()}", "--format=%A %o"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"squeue does not say what is queued: {error}") from error
    jobs = (line.split(maxsplit=1) for line in answer.stdout.splitlines())
    return sorted({n for n, script in jobs if Path(script).is_relative_to(directory)})
