"""Tar files: the images in them, without unpacking what is not compressed."""

import bz2
import gzip
import itertools
import lzma
import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any

from vit_jax import limits
from vit_jax.data.decode import is_image
from vit_jax.data.prepare import tables
from vit_jax.data.prepare.items import Items, Labels, in_container
from vit_jax.data.sources import layout
from vit_jax.errors import UserError

_COMPRESSED: dict[str, Callable[..., Any]] = {
    ".tar.gz": gzip.open,
    ".tgz": gzip.open,
    ".tar.bz2": bz2.open,
    ".tar.xz": lzma.open,
}
ENDINGS = (".tar", *_COMPRESSED)
_TO_FOLDER = "links to folders of a tar file"
_AT_A_TIME = 2**24  # bytes that are unpacked
_MOST_LINKS = 8  # from one link to the next


def ending(name: str) -> str:
    """What files that are no images are counted by.

    >>> ending("a/Notes.TXT"), ending("a/README")
    ('.txt', 'a/README')
    """
    return os.path.splitext(name)[1].lower() or name


def class_tar(
    path: str, name: str, offset: int, size: int
) -> tuple[Items, Counter[str]]:
    """The images of a class tar CLASS.tar, which may lie inside of another.

    Returns:
        These, and how many others were left out, by their kind.
    """
    label = os.path.basename(name).removesuffix(".tar")
    left_out = Counter[str]()
    files = list(members(path, offset, offset + size, left_out))
    found = [file for file in files if is_image(file[0])]
    left_out.update(ending(file[0]) for file in files if not is_image(file[0]))
    if not found:
        raise UserError(f"{name} of {path} has no images.")
    names, offsets, sizes = zip(*sorted(found), strict=True)
    names = [f"{label}/{n.rpartition('/')[2]}" for n in names]
    of = Labels.of_class(label, len(names))
    return in_container(path, names, sizes, of, offsets=offsets), left_out


def members(
    path: str,
    start: int = 0,
    stop: int | None = None,
    left_out: Counter[str] | None = None,
) -> Iterator[tuple[str, int, int]]:
    """(name, offset in the file, size) of the files in a tar that begins at `start`.

    A link has the place of the file of this tar that it leads to. One that leads
    elsewhere, or to a folder, is counted in `left_out`, as are pipes and devices.
    """
    stop = os.path.getsize(path) if stop is None else stop
    places: dict[str, tuple[int, int]] = {}
    links: list[tuple[str, str]] = []
    folders = set[str]()
    try:
        with open(path, "rb") as file:
            file.seek(start)
            tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115
            while (member := tar.next()) is not None:
                vars(tar)["members"] = []  # else it keeps them all: ~1 kB each
                if member.offset_data + member.size > stop:
                    raise tarfile.ReadError("unexpected end of data")
                name = member.name.removeprefix("./")
                if member.isreg():
                    places[name] = member.offset_data, member.size
                    yield name, member.offset_data, member.size
                elif member.issym():
                    target = os.path.join(os.path.dirname(name), member.linkname)
                    links.append((name, os.path.normpath(target)))
                elif member.islnk():
                    links.append((name, os.path.normpath(member.linkname)))
                elif member.isdir():
                    folders.add(os.path.normpath(name))
                elif left_out is not None:
                    left_out[layout.NO_FILE] += 1
            # It takes half a header, or none, for the end.
            file.seek(tar.offset)
            if tar.offset >= stop or any(file.read(tarfile.BLOCKSIZE)):
                raise tarfile.ReadError("it ends without the mark of an end")
    except (tarfile.TarError, OSError, ValueError) as e:
        raise UserError(f"{path} cannot be read as a tar file: {e}.") from e
    targets = dict(links)
    if links:
        folders.update(str(p) for name in places for p in PurePosixPath(name).parents)
    for name, target in links:
        for _ in range(_MOST_LINKS):  # a link may lead to a link
            if target not in targets:
                break
            target = targets[target]
        if target in places:
            yield name, *places[target]
        elif left_out is not None:
            left_out[_TO_FOLDER if target in folders else layout.DEAD_LINK] += 1


def unpack(path: str, spill: str) -> str:
    """The tar file itself, or where a compressed one has been unpacked to."""
    for compressed, opener in _COMPRESSED.items():
        if path.endswith(compressed):
            name = os.path.basename(path).removesuffix(compressed) + ".tar"
            place = os.path.join(tables.spill_folder(spill, path), name)
            if not os.path.exists(place):
                _unpack(opener, path, place)
            return place
    return path


def _unpack(opener: Callable[..., Any], path: str, place: str) -> None:
    tables.begin_spill(os.path.dirname(place), path)
    try:
        with opener(path) as source, open(f"{place}.tmp", "wb") as target:
            size = os.path.getsize(path)
            for start in itertools.count(step=_AT_A_TIME):
                if not (data := source.read(_AT_A_TIME)):
                    break
                limits.check_unpacked(path, size, start + len(data))
                target.write(data)
    except UserError:
        os.remove(f"{place}.tmp")
        raise
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as e:
        raise UserError(f"{path} cannot be unpacked to {place}: {e}.") from e
    os.replace(f"{place}.tmp", place)
