"""What all commands share: flags, help, and mistakes that are told in one message."""

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from vit_jax import __version__, errors, streams

_PREFIX = "--config."
_BROKEN_PIPE = 128 + 13  # as shells say of what SIGPIPE has ended


class Parser(argparse.ArgumentParser):
    """Raises what it has to complain about; no abbreviations, no --help of its own."""

    def __init__(self) -> None:
        super().__init__(add_help=False, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise errors.UserError(message)

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """The flags.

        Raises:
          UserError: for one that there is not, with the nearest name, or that is empty.
        """
        check_values(argv)
        args, unknown = self.parse_known_args(argv)
        if unknown:
            flags = [f for action in self._actions for f in action.option_strings]
            hint = errors.did_you_mean(unknown[0].partition("=")[0], flags)
            raise errors.UserError(f"{unknown[0]} is not a flag; {hint}")
        return args


def check_values(argv: Sequence[str]) -> None:
    """Refuses `--flag=`, and `--flag=--`, of which argparse makes an empty list.

    Raises:
      UserError: if there is one.
    """
    for given in argv:
        flag, found, value = given.partition("=")
        if not flag.startswith("--") or not found:
            continue
        if not value:
            raise errors.UserError(
                f"{given} is empty (an unset variable of the shell?): give a "
                "value, or leave the flag out"
            )
        if value == "--":
            raise errors.UserError(f"{given}: -- is no value")


def image_size(text: str) -> tuple[int, int]:
    """(height, width) from N or HEIGHT,WIDTH.

    Raises:
      ValueError: if it is neither; `argparse` names the flag.

    >>> image_size("224"), image_size("224,448")
    ((224, 224), (224, 448))
    """
    numbers = tuple(int(number) for number in text.split(","))
    height, width = numbers if len(numbers) == 2 else numbers * 2
    if min(height, width) < 1:
        raise ValueError(text)
    return height, width


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Takes `--config.KEY=VALUE` and `--config.KEY VALUE` out of a command line.

    Returns:
      The other arguments, and the overrides as (key, text).

    Raises:
      UserError: for a key without a value.

    >>> split_overrides(["--config=a.py", "--config.seed=1", "--config.ema", "0.9"])
    (['--config=a.py'], [('seed', '1'), ('ema', '0.9')])
    """
    rest: list[str] = []
    pairs: list[tuple[str, str]] = []
    left = list(argv)
    while left:
        argument = left.pop(0)
        if not argument.startswith(_PREFIX):
            rest.append(argument)
            continue
        key, found, text = argument.removeprefix(_PREFIX).partition("=")
        if not found:
            if not left or left[0].startswith("--"):
                raise errors.UserError(
                    f"{argument} has no value: give {argument}=VALUE"
                )
            text = left.pop(0)
        pairs.append((key, text))
    return rest, pairs


def run(doc: str | None, argv: Sequence[str], command: Callable[[], int | None]) -> int:
    """Runs a command; returns its exit code, see `vit_jax.errors`.

    Args:
      doc: its help; None leaves `--help` to the command.
      argv: all arguments, for `--help` and `--version`.
      command: does the work; returns an exit code, or None for 0.
    """
    streams.fill_closed()
    show_anything()
    try:
        return _told(doc, argv, command)
    except BrokenPipeError:
        # Who read the output is gone, as `head` is: nobody is left to be told, and
        # Python would complain when it flushes at the end.
        streams.settle()
        return _BROKEN_PIPE


def _told(
    doc: str | None, argv: Sequence[str], command: Callable[[], int | None]
) -> int:
    try:
        with streams.checked():
            if doc is not None and ("--help" in argv or "-h" in argv):
                print(doc.strip())
                return 0
            if list(argv) == ["--version"]:  # with a value, it is a dataset's
                print(f"vit_jax {__version__}")
                return 0
            return command() or 0
    except errors.Stop as stop:
        streams.say(f"{stop.label}: {stop}", error=True)
        streams.settle()
        return stop.exit_code


def show_anything() -> None:
    """Lets stdout and stderr print any text: what they cannot say, as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # and not a notebook's
            stream.reconfigure(errors="backslashreplace")
