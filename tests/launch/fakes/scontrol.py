"""Stands for scontrol: `scontrol requeue JOB`."""

import os
import re
import sys
from pathlib import Path


def main() -> None:
    slurm = Path(os.environ["FAKE_SLURM"])
    if len(sys.argv) != 3 or sys.argv[1] != "requeue":
        print(f"invalid keyword: {' '.join(sys.argv[1:])}", file=sys.stderr)
        sys.exit(1)
    if not re.fullmatch(r"\d+", sys.argv[2]) or (slurm / "no_requeue").exists():
        print(
            "Requested operation is presently disabled for job " + sys.argv[2],
            file=sys.stderr,
        )
        sys.exit(1)
    (slurm / f"requeue.{sys.argv[2]}").touch()


if __name__ == "__main__":
    main()
