"""Stands for `python -m vit_jax.main` where only how it is started matters.

It "trains" STEPS steps of $FAKE_STEP_SECONDS and saves each, in step with its peers,
which it meets in files of the workdir. Like vit_jax.main it refuses unknown flags (2),
saves and leaves with the others on a signal to any one (75), and leaves if a peer does
not come (76).

A file `WORKDIR/faults/PROCESS.STEP.ACTION` makes something happen, once: ACTION is an
exit code, or the name of a signal that the process sends itself before this step.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

STEPS = 6
PATIENCE = 1.5  # seconds until a peer is taken for lost

KNOWN = ("config", "workdir", "coordinator_address", "num_processes", "process_id")


def flags_of(argv: list[str]) -> dict[str, str]:
    assert argv[:2] == ["-m", "vit_jax.main"], argv
    pairs = [a.removeprefix("--").partition("=") for a in argv[2:]]
    for name, _, _ in pairs:
        if name not in KNOWN and not name.startswith("config."):
            print(f"error: --{name} is not a flag")
            sys.exit(2)
    return {name: value for name, _, value in pairs}


def place(flags: dict[str, str]) -> tuple[int, int, str]:
    """(process, processes, a name of this start that the peers share)."""
    if "num_processes" in flags:
        address = flags["coordinator_address"]
        return int(flags["process_id"]), int(flags["num_processes"]), address
    if "SLURM_PROCID" in os.environ:
        names = ("SLURM_JOB_ID", "SLURM_RESTART_COUNT")
        start = ".".join(os.environ[n] for n in names if n in os.environ)
        return int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"]), start
    return 0, 1, str(os.getpid())


def fail_if_due(workdir: Path, process: int, step: int) -> None:
    for path in sorted((workdir / "faults").glob(f"{process}.{step}.*")):
        path.unlink()
        action = path.suffix.removeprefix(".")
        if action.isdigit():
            print(f"fails with {action}")
            sys.exit(int(action))
        os.kill(os.getpid(), signal.Signals[action])


def meet(
    folder: Path, process: int, processes: int, step: int, patience: float = PATIENCE
) -> None:
    """Returns when all have come to this step."""
    (folder / f"{process}.{step}").touch()
    since = time.monotonic()
    while any(not (folder / f"{i}.{step}").exists() for i in range(processes)):
        if time.monotonic() - since > patience:
            print(f"lost a peer at step {step}")
            sys.exit(76)
        time.sleep(0.005)


def pause(signaled: list[int]) -> None:
    """The step itself; cut short by a signal."""
    end = time.monotonic() + float(os.environ.get("FAKE_STEP_SECONDS", "0.02"))
    while time.monotonic() < end and not signaled:
        time.sleep(0.01)


def main() -> None:
    flags = flags_of(sys.argv[1:])
    signaled: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: signaled.append(number))
    process, processes, start = place(flags)
    workdir = Path(flags["workdir"])
    folder = workdir / "starts" / start
    folder.mkdir(parents=True, exist_ok=True)
    given = {"argv": sys.argv, "environment": dict(os.environ), "pid": os.getpid()}
    (folder / f"{process}.json").write_text(json.dumps(given))
    checkpoints = workdir / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    meet(folder, process, processes, -1, patience=60)
    first = max((int(p.name) for p in checkpoints.iterdir()), default=0)
    print(f"process {process} of {processes} goes on from {first}")
    for step in range(first + 1, STEPS + 1):
        fail_if_due(workdir, process, step)
        pause(signaled)
        if signaled:
            (folder / f"leave.{step}").touch()
        meet(folder, process, processes, step)
        if process == 0:
            (checkpoints / str(step)).mkdir()
        meet(folder, process, processes, STEPS + step)
        if (folder / f"leave.{step}").exists():
            print(f"saved at {step} and stopped")
            sys.exit(75)
    print(f"process {process} is done")


if __name__ == "__main__":
    main()
