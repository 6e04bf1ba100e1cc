"""python -m vit_jax.data.catalog

Prints the table of docs/datasets.md: the datasets whose classes, counts and splits are
known, and how to get each.
"""

import sys
from collections.abc import Sequence

from vit_jax import flags
from vit_jax.data import catalog


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns its exit code, see `vit_jax.errors`."""
    return flags.run(__doc__, argv[1:], lambda: table(argv[1:]))


def table(argv: Sequence[str]) -> None:
    """Prints it.

    Raises:
      UserError: for a flag: there is none.
    """
    flags.Parser().parse(argv)
    print(catalog.table(), end="")


if __name__ == "__main__":
    sys.exit(main(sys.argv))
