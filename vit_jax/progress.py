"""A bar for what takes long: how much is done, how fast, how long it will take."""

import contextlib
import os
from collections.abc import Callable, Iterator

import tqdm

# Files that are read in less than a second or so need no bar.
_LARGE = 2**27


def of_reading(path: os.PathLike | str) -> Callable[[int, int], None]:
    """A function of (bytes read, bytes in all) that shows a bar for a large file."""
    bar: tqdm.tqdm | None = None

    def update(done: int, total: int) -> None:
        nonlocal bar
        if total < _LARGE:
            return
        if bar is None:
            bar = tqdm.tqdm(
                desc=f"Reading {os.path.basename(os.fspath(path))}",
                total=total,
                unit="B",
                unit_scale=True,
            )
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    return update


@contextlib.contextmanager
def of_items(
    total: int, what: str, unit: str, *, passing: bool = False, quiet: bool = False
) -> Iterator[Callable[[int], None]]:
    """A function that is told how many more are done, and shows the rate and ETA.

    Args:
        total: of the items.
        what: is done to them.
        unit: what they are.
        passing: the bar is shown after 10 seconds only, and is gone at the end.
        quiet: nothing is shown.
    """
    with tqdm.tqdm(
        desc=what,
        total=total,
        unit=f" {unit}",
        unit_scale=True,
        delay=10 if passing else 0,
        leave=not passing,
        disable=quiet,
    ) as bar:

        def done(count: int) -> None:
            bar.update(count)

        yield done


def size(count: float) -> str:
    """A number of bytes, to read.

    >>> size(138_200_000_000), size(512)
    ('138GB', '512B')
    """
    return f"{tqdm.tqdm.format_sizeof(count)}B"
