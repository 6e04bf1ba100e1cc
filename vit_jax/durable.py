"""Files that a crash of the machine leaves whole: the old content or the new one."""

import errno
import os

from etils import epath


def is_remote(path: os.PathLike[str]) -> bool:
    """Whether a path is in an object store."""
    return "://" in os.fspath(path)


def write(path: epath.Path, data: bytes) -> None:
    """Replaces a file by one rename, and returns once that is on disk.

    Object stores show an object when all of it is there, and then keep it.

    Raises:
      OSError: if it cannot be written; what was there before stays.
    """
    if is_remote(path):
        path.write_bytes(data)
        return
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        # A new file: what somebody else has put under the name is not written through.
        temporary.unlink(missing_ok=True)
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: os.PathLike[str]) -> None:
    """Returns once a file, or the names in a directory, are on disk."""
    if is_remote(path):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def explained(error: OSError) -> str:
    """What the system says of a file that cannot be written, and what helps.

    >>> explained(OSError(28, "No space left on device"))
    'No space left on device: make room and run the same command again'
    """
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    advice = ": make room and run the same command again" if full else ""
    return f"{error.strerror or error}{advice}"
