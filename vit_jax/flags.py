"""Command-line flags of the tools, whose mistakes are UserErrors."""

import argparse
from collections.abc import Sequence
from typing import NoReturn

from vit_jax import errors


class Parser(argparse.ArgumentParser):
    """Raises what it has to complain about; no abbreviations, no --help of its own."""

    def __init__(self) -> None:
        super().__init__(add_help=False, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise errors.UserError(message)

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """The flags.

        Raises:
          UserError: for one that there is not, with the nearest name.
        """
        args, unknown = self.parse_known_args(argv)
        if unknown:
            flags = [f for action in self._actions for f in action.option_strings]
            hint = errors.did_you_mean(unknown[0].partition("=")[0], flags)
            raise errors.UserError(f"{unknown[0]} is not a flag; {hint}")
        return args


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
