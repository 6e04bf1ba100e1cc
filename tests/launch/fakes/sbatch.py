"""Stands for sbatch: takes jobs into the folder $FAKE_SLURM, refuses as sbatch does."""

import json
import os
import re
import shlex
import sys
from pathlib import Path

# The options of sbatch(1), 22.05, that a test uses, and what their values look like.
OPTIONS = {
    "--account": r"\w+",
    "--array": r"\d+-\d+(%\d+)?",
    "--constraint": r".+",
    "--cpus-per-task": r"\d+",
    "--gpus-per-node": r"(\w+:)?\d+",
    "--job-name": r".+",
    "--nodes": r"\d+",
    "--ntasks-per-node": r"\d+",
    "--open-mode": r"append|truncate",
    "--output": r"/.+",
    "--partition": r"\w+",
    "--requeue": None,
    "--signal": r"([RB]*:)?[A-Z]+(@\d+)?",
    "--time": r"(\d+-)?\d+(:\d+){0,2}",
}


def refuse(message: str) -> None:
    print(f"sbatch: error: {message}", file=sys.stderr)
    sys.exit(1)


def main() -> None:
    slurm = Path(os.environ["FAKE_SLURM"])
    if sys.argv[1:-1] != ["--parsable"]:
        refuse(f"unrecognized option in {sys.argv[1:-1]}")
    script = Path(sys.argv[-1]).read_text()
    if not script.startswith("#!"):
        refuse("This does not look like a batch script.")
    options = {}
    for line in script.splitlines():
        if line.startswith("#SBATCH"):
            (option,) = shlex.split(line.removeprefix("#SBATCH"))
            name, has_value, value = option.partition("=")
            if name not in OPTIONS or (OPTIONS[name] is None) == bool(has_value):
                refuse(f"unrecognized option '{option}'")
            if has_value and not re.fullmatch(OPTIONS[name], value):
                refuse(f"Invalid {name} specification: {value}")
            options[name] = value
    if (slurm / "refusal").exists():
        refuse((slurm / "refusal").read_text())
    number = len(list(slurm.glob("job.*"))) + 1
    job = {"number": number, "options": options, "script": script}
    (slurm / f"job.{number}").write_text(json.dumps(job))
    print(f"{number};cluster")


if __name__ == "__main__":
    main()
