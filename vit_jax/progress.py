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
def of_images(what: str, total: int, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A function of a number of images, which have been done since its last call.

    The bar is shown once it has taken 10 seconds.
    """
    with tqdm.tqdm(
        desc=what, total=total, unit=" images", delay=10, leave=False, disable=quiet
    ) as bar:

        def tell(count: int) -> None:
            bar.update(count)

        yield tell
