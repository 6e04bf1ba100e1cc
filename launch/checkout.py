"""This checkout as one archive: what git tracks, as it is now in the working tree."""

import gzip
import hashlib
import io
import os
import tarfile
from pathlib import Path

from vit_jax.errors import UserError
from vit_jax.launch import command


def pack(config: str) -> tuple[bytes, str]:
    """Archives the files of the current directory that git tracks.

    Args:
      config: the recipe that the run needs, PATH.py or PATH.py:ARG.

    Returns:
      The archive (tar, gzip) and a name for its contents: equal files give equal bytes,
      whenever and by whomever they are packed.

    Raises:
      UserError: if this is no git checkout, or the recipe would not be in it.
    """
    names = tracked_files()
    recipe = os.path.normpath(config.partition(":")[0])
    if recipe not in names:
        raise UserError(
            f"--config={config} would not be shipped, since git does not track "
            f"{recipe}: git add it, within this checkout"
        )
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in names:
            _add(archive, name)
    tar = buffer.getvalue()
    return gzip.compress(tar, compresslevel=1, mtime=0), hashlib.sha256(
        tar
    ).hexdigest()[:12]


def tracked_files() -> list[str]:
    """Paths, from the current directory, of what git tracks and is still there."""
    listed = command.capture(["git", "ls-files", "-z"])
    if listed.code or not listed.output:
        raise UserError(
            "the code is shipped from a git checkout, and git finds none here: run "
            f"from the root of your clone ({listed.error or 'no file is tracked'})"
        )
    names = sorted(listed.output.strip("\0").split("\0"))
    return [n for n in names if Path(n).is_file() or Path(n).is_symlink()]


def untracked_files() -> list[str]:
    """Files that git neither tracks nor ignores: they are not shipped."""
    others = ["git", "ls-files", "--others", "--exclude-standard"]
    return command.output(others).splitlines()


def _add(archive: tarfile.TarFile, name: str) -> None:
    info = archive.gettarinfo(name)
    info.mtime, info.uid, info.gid, info.uname, info.gname = 0, 0, 0, "", ""
    info.mode = 0o755 if info.mode & 0o100 else 0o644
    if info.isreg():
        with Path(name).open("rb") as file:
            archive.addfile(info, file)
    else:
        archive.addfile(info)
