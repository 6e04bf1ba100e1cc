"""How a folder of images is laid out: which folders are splits, which are classes.

SPLIT/CLASS/IMAGE, or CLASS/IMAGE, either inside of one folder more; images may lie at
any depth below a class. Links are followed, hidden names are left out.
"""

import heapq
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from vit_jax.data import splits
from vit_jax.data.decode import is_image
from vit_jax.errors import UserError

# What macOS and network drives put beside images, with copies or pieces of them.
_JUNK = ("__MACOSX", "@eaDir")
_NAMED = 5  # at most so many folders are named in a message

HIDDEN, NO_CLASS = "hidden", "in no class folder"
DEAD_LINK, NO_FILE = "links to no file", "pipes or devices"
LINK_BACK = "links to a folder above"
LINK_AGAIN = "links to a folder that is read already"


class Layout(NamedTuple):
    """Where the splits and classes are.

    Attributes:
        root: under the folder that was given, "" for that itself; it holds the split
            folders, or the class folders.
        splits: names of the split folders; none where there are class folders only.
    """

    root: str
    splits: tuple[str, ...]


def find(data_dir: str, wanted: Sequence[str]) -> Layout:
    """Tells split folders from class folders.

    A folder is a split if it has the name of one that is wanted, or one that splits
    usually have, and holds class folders.

    Raises:
        UserError: there is no such folder, or it looks like splits of unknown names.
    """
    if not os.path.isdir(data_dir):
        raise UserError(f'config.data.data_dir="{data_dir}" is not a folder.')
    root = ""
    while True:
        path = os.path.join(data_dir, root)
        names = folders(path)
        called = [n for n in names if n in wanted or splits.purpose(n)]
        with_classes = [n for n in called if folders(os.path.join(path, n))]
        if called and (with_classes or called == names):
            return Layout(root, tuple(names))
        inner = _only_folder(path, names)
        if inner is None:
            _check_classes(path, names)
            return Layout(root, ())
        root = os.path.join(root, inner)


def _only_folder(path: str, names: Sequence[str]) -> str | None:
    """The folder that holds all the others, such as "images"; None if there is none."""
    if any(loose_images(os.path.join(path, n)) for n in names):
        return None
    holds = [n for n in names if next(_walk(os.path.join(path, n)), None) is not None]
    return holds[0] if len(holds) == 1 else None


def _check_classes(path: str, names: Sequence[str]) -> None:
    """Refuses no folders at all, and folders that hold the same ones, as splits do."""
    if not names:
        raise UserError(
            f"{path} has no folders; expected SPLIT/CLASS/IMAGE or CLASS/IMAGE, such "
            f"as {os.path.join(path, 'train', 'cat', '1.jpg')}."
        )
    inside = [os.path.join(path, n) for n in names]
    shared = set.intersection(*(set(folders(inner)) for inner in inside))
    if len(names) > 1 and shared and not any(map(loose_images, inside)):
        raise UserError(
            f"{path} has the folders {named(names)}, and each of them has "
            f"{named(sorted(shared))}. If the first are splits, name one, such as "
            f"config.data.split={names[0]}; if they are classes, put them into a "
            "folder called train."
        )


def named(names: Sequence[str]) -> str:
    r"""The first of some names, fit to be printed.

    >>> named(["caf\udce9", "tea"])
    'caf\\xe9, tea'
    """
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(printable(name) for name in names[:_NAMED]) + more


def printable(path: str) -> str:
    r"""A path on one line: what is not UTF-8, or controls a terminal, as backslashes.

    >>> printable("caf\udce9 \x1b[31m")
    'caf\\xe9 \\x1b[31m'
    """
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one; a link in a circle is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def is_file(entry: os.DirEntry[str]) -> bool:
    """Whether it is a file or a link to one; a link in a circle is none."""
    try:
        return entry.is_file()
    except OSError:
        return False


def folders(path: str) -> list[str]:
    """The sorted names of the folders in a folder, links to folders too.

    But for links to a folder that they lie in: all of that is found without them.
    """
    with _scan(path) as entries:
        found = [e for e in entries if _counts(e.name) and is_folder(e)]
        return sorted(
            e.name for e in found if not (e.is_symlink() and _leads_back(e.path))
        )


def _leads_back(link: str) -> bool:
    """Whether a link leads to a folder that it lies in."""
    place, target = map(os.path.realpath, (os.path.dirname(link), link))
    return os.path.commonpath((place, target)) == target


def loose_images(path: str) -> int:
    """How many images lie in a folder of class folders, hence in no class."""
    with _scan(path) as entries:
        return sum(is_image(e.name) and is_file(e) for e in entries)


def images(path: str) -> tuple[list[str], Counter[str]]:
    """The images below a folder, at any depth.

    Returns:
        Paths under `path`, sorted; and how many other files there are of each kind.
    """
    found, left_out = [], Counter[str]()
    for name, kind in _walk(path, above=_above(path)):
        if kind is None:
            found.append(name)
        else:
            left_out[kind] += 1
    return sorted(found), left_out


def listed(left_out: Counter[str]) -> str:
    """What was left out, the most frequent kind first.

    >>> listed(Counter({".txt": 2, "hidden": 1}))
    '3 files: 2 .txt, 1 hidden'
    """
    counts = [f"{count:,} {kind}" for kind, count in left_out.most_common() if count]
    if not counts:
        return ""
    files = "1 file" if left_out.total() == 1 else f"{left_out.total():,} files"
    return f"{files}: {', '.join(counts)}"


def _walk(
    root: str, above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[tuple[str, str | None]]:
    """(path under root, None for an image, else what kind of other file it is).

    Each folder is read once, however many links lead to it: two links in each of 30
    folders to the next would be 2^30 ways. Links wait until all else is read, and are
    taken in the order of their paths, so that the system's order changes nothing.
    """
    folders, links, read = [""], list[str](), set[tuple[int, int]]()
    while folders or links:
        inside = folders.pop() if folders else heapq.heappop(links)
        path = os.path.join(root, inside)
        status = os.stat(path)
        here = (status.st_dev, status.st_ino)
        if here in above or here in read:
            back = here in above or _leads_back(path)
            yield inside, LINK_BACK if back else LINK_AGAIN
            continue
        read.add(here)
        with _scan(path) as entries:
            for entry in entries:
                name = os.path.join(inside, entry.name)
                if not _counts(entry.name):
                    yield name, HIDDEN
                elif is_folder(entry) and entry.is_symlink():
                    heapq.heappush(links, name)
                elif is_folder(entry):
                    folders.append(name)
                elif not is_file(entry):
                    yield name, DEAD_LINK if entry.is_symlink() else NO_FILE
                else:
                    yield name, None if is_image(entry.name) else _kind(entry.name)


def _above(path: str) -> frozenset[tuple[int, int]]:
    """The folders that a folder lies in, as it is named and as links lead to it."""
    places = (os.path.abspath(path), os.path.realpath(path))
    found = {parent for place in places for parent in Path(place).parents}
    statuses = [os.stat(parent) for parent in found]
    return frozenset((status.st_dev, status.st_ino) for status in statuses)


def _kind(name: str) -> str:
    return printable(os.path.splitext(name)[1].lower()) or "without an extension"


def _counts(name: str) -> bool:
    return name[0] != "." and name not in _JUNK


def _scan(path: str) -> AbstractContextManager[Iterator[os.DirEntry[str]]]:
    try:
        return os.scandir(path)
    except OSError as e:
        raise UserError(f"{printable(path)} cannot be read: {e.strerror}.") from e
