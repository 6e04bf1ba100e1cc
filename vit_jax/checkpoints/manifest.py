"""The manifest of a checkpoint: name, size and digest of each of its files.

It is written last, so that a checkpoint with one was whole, and compared before
anything is restored: docs/design/durable-checkpoints.md.
"""

import concurrent.futures
import errno
import json
import os
from collections.abc import Callable, Collection, Iterator
from typing import Any

import xxhash
from etils import epath

from vit_jax import durable
from vit_jax.errors import UserError

NAME = "MANIFEST.json"
# In Orbax's metadata of a step: there must be a manifest.
EXPECTED = {"manifest": NAME}

# Orbax writes them after us; nothing that is restored is in them.
_METADATA = "_CHECKPOINT_METADATA"
_AFTERWARDS = frozenset({NAME, _METADATA, "commit_success.txt"})
_FORMAT = 1
_CHUNK = 1 << 20
_THREADS = 4
_DEPTH = 8  # of folders; Orbax makes three
# Errors of the system that say nothing of the files; all others do.
_ELSEWHERE = frozenset(
    {
        *(errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
        *(errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ECONNREFUSED),
    }
)

# Size and digest of a file; the digest is in hexadecimal.
Entry = tuple[int, str]
Progress = Callable[[int, int], None]


class Damaged(Exception):
    """A checkpoint that is not what was saved, and how one knows."""


def write(directory: epath.Path, step: int) -> None:
    """Makes the files of a checkpoint durable, and then writes their manifest.

    Args:
      directory: of the checkpoint, all written, under its temporary name.
      step: that it is of.

    Raises:
      OSError: if a file cannot be read or written.
    """
    found = dict(_files(directory))
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        digests = pool.map(lambda name: _digest(directory / name, sync=True), found)
        files = dict(zip(found, digests, strict=True))
    for folder in {(directory / name).parent for name in found}:
        while folder != directory.parent:
            durable.sync(folder)
            folder = folder.parent
    _write(directory, {"step": step, "files": files})


def replace(directory: epath.Path, name: str, data: bytes) -> None:
    """Replaces one file of a checkpoint; a kill at any moment leaves it whole.

    Args:
      directory: of the checkpoint.
      name: of the file, below the directory.
      data: its new content.

    Raises:
      OSError: if it cannot be written.
      Damaged: if the manifest is.
    """
    manifest = read(directory)
    entry = len(data), xxhash.xxh3_128_hexdigest(data)
    if manifest is not None:
        _write(directory, {**manifest, "replacing": {name: entry}})
    durable.write(directory / name, data)
    if manifest is not None:
        manifest["files"][name] = entry
        _write(directory, manifest)


def read(directory: epath.Path) -> dict[str, Any] | None:
    """The manifest of a checkpoint; None if it was saved before there were any.

    Raises:
      Damaged: if it is damaged, or lost.
      UserError: if it is of a newer version, or cannot be read for another reason.
    """
    try:
        if not (directory / NAME).exists():
            _refuse_lost(directory)
            return None
        body, digest, end = (directory / NAME).read_bytes().split(b"\n")
        if end or xxhash.xxh3_128_hexdigest(body).encode() != digest:
            raise Damaged(f"{NAME} is damaged")
        manifest = json.loads(body)
    except OSError as error:
        raise _of_system(directory / NAME, error) from error
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{NAME} is damaged") from error
    if manifest["format"] != _FORMAT:
        raise UserError(
            f"{directory / NAME} is of format {manifest['format']}, and this vit_jax "
            f"knows {_FORMAT}: use the version that wrote it, or a newer one"
        )
    return manifest


def verify(
    directory: epath.Path,
    *,
    leave_out: Collection[str] = (),
    part: tuple[int, int] = (0, 1),
    progress: Progress | None = None,
) -> bool:
    """Compares the files of a checkpoint with its manifest.

    Args:
      directory: of the checkpoint; its name is the step.
      leave_out: items whose content will not be read.
      part: (i, n) reads every n-th file from the i-th on, and only looks at the sizes
        of the others: so n processes share the work.
      progress: called with the bytes read so far and in all.

    Returns:
      Whether there is a manifest to compare with.

    Raises:
      Damaged: with the first files that differ.
      UserError: if files cannot be read for a reason that is not theirs.
    """
    if not directory.is_dir():
        raise Damaged("it is no directory")
    manifest = read(directory)
    if manifest is None:
        return False
    if str(manifest["step"]) != directory.name:
        raise Damaged(f"it holds step {manifest['step']}")
    wanted, replacing = manifest["files"], manifest.get("replacing", {})
    try:
        found = dict(_files(directory))
    except OSError as error:
        raise _of_system(directory, error) from error
    allowed: dict[str, list[Entry]] = {}
    for size_and_digest in (wanted, replacing):
        for name, (size, digest) in size_and_digest.items():
            allowed.setdefault(name, []).append((size, digest))
    _refuse(_differences(allowed, found))
    names = sorted(n for n in found if n.partition("/")[0] not in leave_out)
    names = names[part[0] :: part[1]]
    total, done = sum(found[name] for name in names), 0
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        for name, entry in zip(
            names,
            pool.map(lambda name: _try_digest(directory / name), names),
            strict=True,
        ):
            if entry not in allowed[name]:
                pool.shutdown(cancel_futures=True)
                said = entry if isinstance(entry, str) else "is not what was saved"
                raise Damaged(f"{name} {said}")
            done += found[name]
            if progress is not None:
                progress(done, total)
    return True


def _differences(
    allowed: dict[str, list[Entry]], found: dict[str, int]
) -> Iterator[str]:
    """What the names and sizes of files tell, without reading them."""
    for name in sorted(allowed.keys() - found.keys()):
        yield f"{name} is missing"
    for name in sorted(allowed.keys() & found.keys()):
        sizes = [size for size, _ in allowed[name]]
        if found[name] not in sizes:
            yield f"{name} has {found[name]:,} bytes of {sizes[0]:,}"
    for name in sorted(found.keys() - allowed.keys()):
        # A file manager or NFS may leave a hidden file; Orbax would read others.
        if not name.rpartition("/")[2].startswith("."):
            yield f"{name} is not of it"


def _refuse(differences: Iterator[str], most: int = 3) -> None:
    lines = list(differences)
    if lines:
        more = f" and {len(lines) - most} more" if len(lines) > most else ""
        raise Damaged("; ".join(lines[:most]) + more)


def _refuse_lost(directory: epath.Path) -> None:
    """Raises if there should be a manifest, or if that cannot be known."""
    path = directory / _METADATA
    if not path.exists():
        raise Damaged(f"{NAME} and {_METADATA} are missing: half a copy?")
    try:
        metadata = json.loads(path.read_bytes())
        expected = EXPECTED.items() <= metadata["custom_metadata"].items()
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{_METADATA} is damaged") from error
    if expected:
        raise Damaged(f"{NAME} is missing")


def _of_system(path: epath.Path, error: OSError) -> Damaged | UserError:
    """An error of the system, as what it says of a checkpoint."""
    said = error.strerror or str(error)
    if error.errno in _ELSEWHERE:
        return UserError(f"{path} cannot be read: {said}")
    return Damaged(f"{path.name} cannot be read: {said}")


def _files(directory: epath.Path, below: str = "") -> Iterator[tuple[str, int]]:
    """Names, as in the manifest, and sizes of the files of a checkpoint."""
    for path in sorted(directory.iterdir()):
        name = f"{below}{path.name}"
        if path.is_dir():
            if below.count("/") == _DEPTH:  # links in a circle
                continue
            yield from _files(path, f"{name}/")
        elif name not in _AFTERWARDS and path.is_file():  # and no pipe, no dead link
            yield name, path.stat().length


def _try_digest(path: epath.Path) -> Entry | str:
    """Size and digest of a file; or what is wrong with it.

    Raises:
      UserError: if it cannot be read for a reason that is not its own.
    """
    try:
        return _digest(path)
    except OSError as error:
        if isinstance(found := _of_system(path, error), UserError):
            raise found from error
        return f"cannot be read: {error.strerror or error}"


def _digest(path: epath.Path, *, sync: bool = False) -> Entry:
    """Size and digest of a file; with `sync`, once it is on disk."""
    state, size = xxhash.xxh3_128(), 0
    if durable.is_remote(path):
        with path.open("rb") as file:
            while data := file.read(_CHUNK):
                state.update(data)
                size += len(data)
        return size, state.hexdigest()
    buffer = memoryview(bytearray(_CHUNK))
    # Not mapped into memory: a disk that fails would kill the process with SIGBUS.
    with open(path, "rb", buffering=0) as file:
        if sync:
            os.fsync(file.fileno())
        while count := file.readinto(buffer):
            state.update(buffer[:count])
            size += count
    return size, state.hexdigest()


def _write(directory: epath.Path, manifest: dict[str, Any]) -> None:
    body = json.dumps({"format": _FORMAT, **manifest}).encode()
    digest = xxhash.xxh3_128_hexdigest(body).encode()
    durable.write(directory / NAME, body + b"\n" + digest + b"\n")
