"""python -m vit_jax.launch.slurm --config=PATH.py[:ARG] --workdir=DIR --nodes=N

Writes an sbatch script to DIR/slurm.sh and submits it. Two minutes before the time
limit the run saves and goes back into the queue, to go on in the same workdir; so it
does after a crash or the loss of a node. What it prints goes to DIR/slurm.log.

  --config.KEY=VALUE   overrides a key of the config, such as --config.seed=1
"""

import argparse
import dataclasses
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from vit_jax.authentication import RUN_KEY
from vit_jax.errors import UserError
from vit_jax.launch import job

# The signal before the time limit goes to the tasks alone. A SIGTERM to the shell says
# that the job is cancelled, or that Slurm puts it back without us.
_SCRIPT = """\
#!/bin/bash
{options}

cd {directory} || exit 2
case "${{SLURM_ARRAY_TASK_ID:-0}}" in
{jobs}
esac
mkdir -p "$workdir" || exit 2
exec >>"$workdir/slurm.log" 2>&1 || exit 2
export PYTHONUNBUFFERED=1
# The tasks know each other by it. Drawn here, so that no file and no `ps` shows it.
export {run_key}="$(od -An -N32 -tx1 /dev/urandom | tr -d ' \\n')"
# srun of 22.05 and later does not take it from the job by itself.
[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
trap 'cancelled=yes' TERM

newest_checkpoint() {{
    ls "$workdir/checkpoints" 2>/dev/null | grep -x '[0-9]*' | sort -n | tail -n 1
}}
before=$(newest_checkpoint)
echo "launch: job $SLURM_JOB_ID, restart ${{SLURM_RESTART_COUNT:-0}}," \\
    "from step ${{before:-0}} on $SLURM_JOB_NODELIST, $(date)"

# When a task has ended the others get time to save or to notice.
srun {srun_flags} "${{run[@]}}"
code=$?
echo "launch: ended with code $code"
case $code in
    {final_codes}) exit $code ;; # the same again would end the same
esac
if [ -n "$cancelled" ]; then
    echo "launch: Slurm has ended the job, and knows whether to run it again"
    exit $code
fi

# One line for each start in a row that has made no checkpoint.
failures="$workdir/slurm.failures"
if [ -z "$SLURM_RESTART_COUNT" ] || [ "$(newest_checkpoint)" != "$before" ]; then
    : > "$failures"
fi
echo "job $SLURM_JOB_ID code $code $(date)" >> "$failures"
if [ "$(wc -l < "$failures")" -gt {limit} ]; then
    echo "launch: given up after {limit} restarts in a row without a new checkpoint"
    exit $code
fi
echo "launch: goes back into the queue"
scontrol requeue "$SLURM_JOB_ID" && exit $code
echo "launch: Slurm does not requeue: submit again to go on from the last checkpoint"
exit $code
"""

_LIMIT = 5  # restarts in a row without a new checkpoint
_WAIT = 300  # seconds that the other tasks have when one has ended
# Minutes, with seconds or hours and seconds; days and hours; as `man sbatch` says.
_TIME = re.compile(
    r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}|unlimited|infinite", re.IGNORECASE
)


@dataclasses.dataclass(frozen=True)
class Options:
    """What to ask of Slurm; `None` leaves it to the cluster.

    Attributes:
      tasks_per_node: processes; by default one for each GPU, or one.
      time: limit, such as "8:00:00".
      parallel: how many jobs of an array may run at once.
      python: the interpreter on the nodes.
      sbatch: further options of sbatch, such as "--qos=high"; they win over ours.
    """

    nodes: int = 1
    tasks_per_node: int | None = None
    gpus_per_node: int | None = None
    cpus_per_task: int | None = None
    partition: str | None = None
    account: str | None = None
    time: str | None = None
    parallel: int | None = None
    python: str = sys.executable
    sbatch: tuple[str, ...] = ()


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns its exit code, not the run's."""
    parser = job.Parser("slurm", __doc__)
    add_flags(parser)
    run, flags = job.parse(parser, argv)
    options = read_flags(flags)
    if flags.dry_run:
        print(script([run], options), end="")
        return 0
    number = submit([run], options)
    log = shlex.quote(f"{absolute(run).workdir}/slurm.log")
    print(f"Submitted job {number}.")
    print(f"  follow it  tail -F {log}")
    print(f"  stop it    scancel {number}")
    return 0


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds a flag for each of `Options` but `parallel`."""
    add = parser.add_argument
    add("--nodes", type=int, default=1, help="how many (1)")
    add(
        "--tasks_per_node",
        type=int,
        help="processes of a node; default: one for each of --gpus_per_node, or one",
    )
    add("--gpus_per_node", type=int, help="GPUs to ask for; default: none")
    add("--cpus_per_task", type=int, help="cores of a process; default: the cluster's")
    add("--partition", help="of the cluster, where the job waits; default: its own")
    add("--account", help="that the time is charged to; default: yours")
    add("--time", help="limit of one start, such as 8:00:00")
    add("--python", default=sys.executable, help="on the nodes")
    add(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION",
        help="another option of sbatch, as in --sbatch=--qos=high; may be repeated",
    )


def read_flags(flags: argparse.Namespace, *, parallel: int | None = None) -> Options:
    """Options from the flags that `add_flags` has added."""
    names = {f.name for f in dataclasses.fields(Options)} - {"parallel", "sbatch"}
    given = {name: getattr(flags, name) for name in names}
    return Options(**given, parallel=parallel, sbatch=tuple(flags.sbatch))


def submit(jobs: Sequence[job.Job], options: Options) -> str:
    """Submits jobs, several as an array; returns Slurm's number of it.

    The script is written to the directory that the workdirs have in common.

    Raises:
      UserError: if Slurm refuses it, with what it says; if a workdir cannot be made.
    """
    if shutil.which("sbatch") is None:
        raise UserError(
            "sbatch is not found here: run this where Slurm's commands are, or see "
            "with --dry_run what it would submit"
        )
    text, path = script(jobs, options), common_directory(jobs) / "slurm.sh"
    try:
        for run in jobs:
            Path(absolute(run).workdir).mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise UserError(f"cannot write {error.filename}: {error.strerror}") from error
    sbatch = ["sbatch", "--parsable", str(path)]
    answer = subprocess.run(sbatch, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise UserError(f"sbatch refuses {path}:\n{answer.stderr.strip()}")
    print(answer.stderr, end="", file=sys.stderr)  # its warnings
    return answer.stdout.strip().partition(";")[0]  # a cluster's name may follow


def script(jobs: Sequence[job.Job], options: Options) -> str:
    """The sbatch script of these jobs.

    Raises:
      UserError: for a number below 1, a workdir that is no path of a file system, an
        option that is none.
    """
    counts = ("nodes", "tasks_per_node", "gpus_per_node", "cpus_per_task", "parallel")
    for name in counts:
        if (value := getattr(options, name)) is not None and value < 1:
            raise UserError(f"--{name}={value} must be at least 1")
    if options.time is not None and not _TIME.fullmatch(options.time):
        raise UserError(
            f"--time={options.time}: expected a limit as Slurm takes it, such as "
            "8:00:00, 1-12 (days and hours) or 90 (minutes)"
        )
    jobs = [absolute(run) for run in jobs]
    tasks = options.nodes * tasks_per_node(options)
    cases = [
        f"    {i}) workdir={shlex.quote(run.workdir)}\n"
        f"       run=({shlex.join(run.command(options.python))}) ;;"
        for i, run in enumerate(jobs)
    ]
    srun_flags = [f"--wait={_WAIT}", "--kill-on-bad-exit=0"]
    return _SCRIPT.format(
        options="\n".join(f"#SBATCH {o}" for o in sbatch_options(jobs, options)),
        directory=shlex.quote(os.getcwd()),
        jobs="\n".join(cases),
        srun_flags=shlex.join([*srun_flags, *(["--label"] if tasks > 1 else [])]),
        final_codes=" | ".join(map(str, job.FINAL_CODES)),
        limit=_LIMIT,
        run_key=RUN_KEY,
    )


def sbatch_options(jobs: Sequence[job.Job], options: Options) -> list[str]:
    """The options of the script, quoted: sbatch reads them much as a shell does."""
    folder = common_directory(jobs)
    wanted: dict[str, object] = {
        "job-name": folder.name,
        "output": str(folder / "slurm.log").replace("%", "%%"),  # %j: the job's number
        "open-mode": "append",
        "signal": "TERM@120",
        "nodes": options.nodes,
        "ntasks-per-node": tasks_per_node(options),
        "gpus-per-node": options.gpus_per_node,
        "cpus-per-task": options.cpus_per_task,
        "partition": options.partition,
        "account": options.account,
        "time": options.time,
    }
    if len(jobs) > 1:
        limit = f"%{options.parallel}" if options.parallel else ""
        wanted["array"] = f"0-{len(jobs) - 1}{limit}"
    for option in options.sbatch:
        if not option.startswith("-"):
            raise UserError(
                f"--sbatch={option} is no option of sbatch: write --sbatch=--qos=high"
            )
    ours = [f"--{name}={value}" for name, value in wanted.items() if value is not None]
    lines = ["--requeue", *ours, *options.sbatch]
    for line in lines:
        if "\n" in line:
            raise UserError(f"{line!r}: a line break cannot be passed to sbatch")
    return [shlex.quote(line) for line in lines]


def tasks_per_node(options: Options) -> int:
    """Processes on a node: JAX wants one for each GPU under Slurm."""
    return options.tasks_per_node or options.gpus_per_node or 1


def common_directory(jobs: Sequence[job.Job]) -> Path:
    """What the workdirs have in common; of one job, its workdir."""
    return Path(os.path.commonpath([absolute(run).workdir for run in jobs]))


def absolute(run: job.Job) -> job.Job:
    """The job with its workdir in full: the nodes start elsewhere.

    Raises:
      UserError: for a workdir in an object store, or one with a backslash.
    """
    if "://" in run.workdir:
        raise UserError(
            f"--workdir={run.workdir}: give a directory that all nodes share; the "
            "logs are written there too"
        )
    if "\\" in run.workdir:
        raise UserError(
            f"--workdir={run.workdir}: Slurm drops a backslash from the path of a log"
        )
    workdir = os.path.abspath(os.path.expanduser(run.workdir))
    return dataclasses.replace(run, workdir=workdir)


if __name__ == "__main__":
    sys.exit(job.run_main(main))
