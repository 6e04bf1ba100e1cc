"""Stands for srun: starts the tasks of a job, and waits for them as srun does."""

import os
import re
import signal
import subprocess
import sys
import time


def main() -> None:
    first = next(i for i, a in enumerate(sys.argv[1:], 1) if not a.startswith("--"))
    flags, command = sys.argv[1:first], sys.argv[first:]
    for flag in flags:
        if not re.fullmatch(r"--wait=\d+|--kill-on-bad-exit=[01]|--label", flag):
            print(f"srun: unrecognized option '{flag}'", file=sys.stderr)
            sys.exit(1)
    assert "--kill-on-bad-exit=0" in flags, "a cluster's own setting may be 1"
    patience = int(next(f for f in flags if f.startswith("--wait=")).partition("=")[2])
    tasks = [
        subprocess.Popen(command, env=os.environ | {"SLURM_PROCID": str(i)})
        for i in range(int(os.environ["SLURM_NTASKS"]))
    ]
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda n, frame: [t.send_signal(n) for t in tasks])
    first_end = None
    while any(task.poll() is None for task in tasks):
        time.sleep(0.01)
        if first_end is None and any(task.poll() is not None for task in tasks):
            first_end = time.monotonic()
        if first_end is not None and time.monotonic() - first_end > patience:
            for task in tasks:
                task.kill()
    codes = [task.returncode for task in tasks]
    sys.exit(max(code if code >= 0 else 128 - code for code in codes))


if __name__ == "__main__":
    main()
