"""python -m vit_jax.fsck WORKDIR

  WORKDIR     of a run, or one of the checkpoints in it; nothing is changed
  --help, -h  this text
  --version   prints the version

Reads every checkpoint and compares it with its manifest, and the other files of the run
that say what it is and did. Prints a line for each, and what the run would go on from.
The exit code is 0 if all is good, 1 if something is damaged, 2 for a path that is no
run. A run that is training may be looked at.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from vit_jax import errors, flags
from vit_jax.limits import is_number

# Files of one JSON value, and what it is.
_VALUES = {"config.json": dict, "labels.json": list}
# Files of one JSON object a line.
_LINES = ("metrics.jsonl", "runs.jsonl")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags.

    Raises:
      UserError: for what is no flag, and what is missing.
    """
    parser = flags.Parser()
    parser.add_argument("workdir", nargs="?")
    args = parser.parse(argv)
    if args.workdir is None:
        raise errors.UserError(f"WORKDIR is needed:\n\n{__doc__}")
    return args


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns its exit code."""
    return flags.run(__doc__, argv[1:], lambda: run(parse(argv[1:])))


def run(args: argparse.Namespace) -> int:
    """Looks at all there is; returns the exit code."""
    from vit_jax import checkpoints, host_memory, workdirs

    host_memory.leave_libtpu_alone()
    path = workdirs.absolute(args.workdir)
    if not checkpoints.is_run(path):
        raise errors.UserError(
            f"{path}: expected the workdir of a run, a directory with checkpoints/"
        )
    if not (path / "checkpoints").is_dir():
        return 0 if looked_at(path) else 1
    directory = path / "checkpoints"
    steps = checkpoints.committed_steps(directory)
    whole = [step for step in steps if looked_at(directory / str(step))]
    files = [check_file(file) for file in files_of_run(path)]
    for line in left_over(path):
        print(line, flush=True)
    if whole:
        print(f"The newest checkpoint that is whole is of step {whole[-1]}.")
    elif steps:
        print("No checkpoint is whole.")
    else:
        print("There is no checkpoint.")
    return 0 if all(files) and whole == steps else 1


def looked_at(directory: Any) -> bool:
    """Says whether a checkpoint is whole, and returns it."""
    from vit_jax import checkpoints, progress

    try:
        tell = progress.of_reading(directory)
        verified = checkpoints.examine(directory, tell=tell)
        if not verified:
            checkpoints.read_everything(directory)
    except checkpoints.Damaged as error:
        if not directory.exists():  # a run that trains has deleted it meanwhile
            return True
        say("damaged", directory, str(error))
        return False
    if verified:
        say("good", directory)
    else:
        say("readable", directory, "no manifest, so that its bits cannot be verified")
    return True


def files_of_run(workdir: Any) -> Iterator[tuple[Any, Callable[[str], None]]]:
    """The files beside the checkpoints that there are, and what checks each."""
    for name, kind in _VALUES.items():
        if (workdir / name).exists():
            yield workdir / name, lambda text, kind=kind: check_value(text, kind)
    for name in _LINES:
        if (workdir / name).exists():
            yield workdir / name, check_lines
    if (workdir / "evals").is_dir():
        for path in sorted((workdir / "evals").glob("*.json")):
            yield path, lambda text: check_value(text, dict)


def check_file(file: tuple[Any, Callable[[str], None]]) -> bool:
    """Says whether a file is good, and returns it."""
    path, check = file
    try:
        check(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        say("damaged", path, str(error).splitlines()[0][:200])
        return False
    say("good", path)
    return True


def check_value(text: str, kind: type) -> None:
    """Raises ValueError for what is no JSON value of this kind."""
    if not isinstance(json.loads(text), kind):
        raise ValueError(f"it is no JSON {'object' if kind is dict else 'list'}")


def check_lines(text: str) -> None:
    """Raises ValueError if a line is no JSON object, or steps come out of order.

    The last line may lack its end: a kill leaves that, and it is written again.
    """
    before = -1
    for number, line in enumerate(text.split("\n")[:-1], 1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number} is no JSON") from error
        if not isinstance(record, dict):
            raise ValueError(f"line {number} is no JSON object")
        if "started" in record or "note" in record:  # of runs.jsonl
            continue
        step = record["step"] if "step" in record else None
        if not isinstance(step, int) or step <= before:
            raise ValueError(f"line {number} is of step {step}, after step {before}")
        before = step


def left_over(workdir: Any) -> Iterator[str]:
    """What is there besides, which harms nothing."""
    for path in sorted((workdir / "checkpoints").iterdir()):
        if not is_number(path.name) or not path.is_dir():
            yield f"note      {path}: no checkpoint; an interrupted save leaves such"
    aside = workdir / "broken_checkpoints"
    for path in sorted(aside.iterdir()) if aside.is_dir() else ():
        if path.is_dir():
            reason = path.with_name(f"{path.name}.txt")
            said = reason.read_text().strip() if reason.exists() else "it was broken"
            yield f"note      {path}: put aside: {said}"


def say(verdict: str, path: os.PathLike[str], why: str = "") -> None:
    """Prints a line."""
    print(f"{verdict:9} {os.fspath(path)}{': ' if why else ''}{why}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
