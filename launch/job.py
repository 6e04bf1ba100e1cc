"""One run of `vit_jax.main`: its command line, and whether to start it again.

Every launcher takes the flags of vit_jax.main and adds its own:

  parser = job.Parser("local", __doc__)
  parser.add_argument("--processes", type=int, default=1)
  run, flags = job.parse(parser, argv)
"""

import argparse
import contextlib
import dataclasses
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from etils import epath

from vit_jax import config as configs
from vit_jax import errors, streams, workdirs
from vit_jax import flags as command_line

# Exit codes that the same command would only give again: done, an error in the input,
# a loss that is not finite. All others (75 preempted, 76 a peer lost, a crash, death by
# a signal) are worth a start into the same workdir.
FINAL_CODES = (0, errors.UserError.exit_code, errors.NonFiniteLossError.exit_code)


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of vit_jax.main.

    Attributes:
      config: a recipe, "configs/quickstart.py" or "configs/imagenet1k.py:B/16".
      workdir: as the process that runs it will see it; may be in an object store.
      arguments: further ones such as "--config.seed=1", in their order.
      stored: the run goes on with the config in its workdir; `config` is then the
        recipe that it began with, "" if its records do not say.
    """

    config: str
    workdir: str
    arguments: tuple[str, ...] = ()
    stored: bool = False

    def command(
        self, python: str = sys.executable, extra: Sequence[str] = ()
    ) -> list[str]:
        """The command line; `extra` is for the launcher's own arguments.

        >>> Job("c.py", "/runs/a b", ("--config.seed=1",)).command("python")
        ['python', '-m', 'vit_jax.main', '--config=c.py', '--workdir=/runs/a b',
         '--config.seed=1']
        """
        flags = [] if self.stored else [f"--config={self.config}"]
        flags.append(f"--workdir={self.workdir}")
        return [python, "-m", "vit_jax.main", *flags, *self.arguments, *extra]


def shell(command: Sequence[str], variables: Mapping[str, str] | None = None) -> str:
    """A command line as one types it.

    >>> shell(["ls", "a b"], {"LANG": "C"})
    "LANG=C ls 'a b'"
    """
    given = [f"{name}={shlex.quote(text)}" for name, text in (variables or {}).items()]
    return " ".join([*given, shlex.join(command)])


class Parser(argparse.ArgumentParser):
    """A parser of flags that raises UserError where argparse would end the process."""

    def __init__(self, launcher: str, description: str | None) -> None:
        super().__init__(
            prog=f"python -m vit_jax.launch.{launcher}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise errors.UserError(message)


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str]
) -> tuple[Job, argparse.Namespace]:
    """Reads the command line of a launcher, without its program name.

    Adds --config, --workdir, --evaluate_only, --evals and --dry_run to what `parser`
    knows. A flag that has to be given is best left optional there and checked
    afterwards, so that a misspelling of it is named as such.

    Raises:
      UserError: for a flag or a `--config.` key that does not exist or has a wrong
        value, with the nearest name; if --workdir is missing, or --config and this
        machine sees no run in --workdir.
    """
    parser.add_argument(
        "--config",
        help="recipe: PATH.py or PATH.py:ARG; default: the config of the run in "
        "--workdir",
    )
    parser.add_argument("--workdir", help="directory of the run")
    parser.add_argument("--evaluate_only", action="store_true", help="do not train")
    parser.add_argument("--evals", help="with it: NAME,... of config.evals, not all")
    parser.add_argument("--dry_run", action="store_true", help="print, start nothing")
    argv, overrides = command_line.split_overrides(argv)
    command_line.check_values(argv)
    flags, rest = parser.parse_known_args(argv)
    if rest:
        names = re.findall(r"--\w+", parser.format_usage())
        hint = errors.did_you_mean(rest[0].partition("=")[0], names)
        raise errors.UserError(f"{rest[0]} is not a flag; {hint}")
    if not flags.workdir:
        raise errors.UserError(
            "--config and --workdir are both needed; --help says more"
        )
    path = workdirs.absolute(flags.workdir, of="--workdir")
    if flags.evals and not flags.evaluate_only:
        raise errors.UserError("--evals goes with --evaluate_only: training does all")
    recipe = flags.config or recipe_of(path)
    configs.load(flags.config or os.fspath(path), overrides)
    arguments = [f"--config.{key}={text}" for key, text in overrides]
    arguments += ["--evaluate_only"] if flags.evaluate_only else []
    arguments += [f"--evals={flags.evals}"] if flags.evals else []
    stored = not flags.config
    return Job(recipe, flags.workdir, tuple(arguments), stored=stored), flags


def recipe_of(workdir: epath.Path) -> str:
    """The recipe that the run in a workdir began with, "" if its records do not say.

    Raises:
      UserError: if this machine sees no run there.
    """
    stored, records = workdir / workdirs.CONFIG, workdir / workdirs.RUNS
    try:
        there = stored.exists()
        lines = records.read_text().splitlines() if there and records.exists() else []
    except Exception as error:  # each kind of storage has errors of its own
        said = str(error).strip().splitlines() or [""]
        raise errors.UserError(
            f"--config is not given, and this machine cannot read {stored} "
            f"({type(error).__name__}: {said[0][:200]}): give --config, as when the "
            "run began"
        ) from error
    if not there:
        raise errors.UserError(
            f"--config is not given, and this machine sees no {stored}: a new run "
            "needs --config, and so does one whose workdir its workers alone see, "
            "such as a volume or a disk of another machine"
        )
    for line in lines:
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and "recipe" in record and record["recipe"]:
                return record["recipe"]
    return ""


def should_restart(code: int) -> bool:
    """Whether a run that ended so is worth a start into the same workdir.

    >>> should_restart(75), should_restart(-9), should_restart(70), should_restart(0)
    (True, True, False, False)
    """
    return code not in FINAL_CODES


def newest_step(workdir: str) -> int | None:
    """The step of the newest checkpoint in a workdir, None if there is none."""
    directory = epath.Path(workdir) / "checkpoints"
    if not directory.is_dir():
        return None
    steps = [int(p.name) for p in directory.iterdir() if p.name.isdigit()]
    return max(steps, default=None)


class Restarts:
    """Decides whether and when a run that ended is started again.

    A run that makes progress is started again without end. One that ends `limit` + 1
    times in a row without a new checkpoint is given up; the waits between double.
    """

    def __init__(
        self, newest: Callable[[], int | None], *, limit: int = 5, first_wait: float = 1
    ) -> None:
        """Before the first start.

        Args:
          newest: the step of the newest checkpoint; see `newest_step`.
          limit: restarts in a row without a new checkpoint.
          first_wait: seconds before the first of these.
        """
        self._newest, self._limit, self._first_wait = newest, limit, first_wait
        self._last = newest()
        self._without_progress = 0
        self.count = 0  # restarts in all

    def after(self, code: int) -> float | None:
        """Counts an end with this exit code.

        Returns:
          Seconds to wait before the next start; None if there is to be none.
        """
        if not should_restart(code):
            return None
        newest = self._newest()
        if newest != self._last:
            self._last, self._without_progress = newest, 0
        if self._without_progress == self._limit:
            return None
        seconds = self._first_wait * 2**self._without_progress
        self._without_progress += 1
        self.count += 1
        return seconds


def run_main(main: Callable[[Sequence[str]], int]) -> int:
    """Runs a launcher on sys.argv; returns its code. A UserError is one message.

    A terminal that is gone, or a full disk behind stdout, is no reason to leave what
    has been started.
    """
    argv = sys.argv[1:]
    printed = {"--dry_run", "--help", "-h"} & set(argv)  # what was asked for is text

    def run() -> int:
        with contextlib.nullcontext() if printed else streams.lasting():
            return main(argv)

    return command_line.run(None, argv, run)
