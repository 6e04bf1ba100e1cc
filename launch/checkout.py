"""The code that a run needs as one archive.

In a checkout it is what git tracks, as it is now in the working tree; elsewhere the
vit_jax that is installed.
"""

import gzip
import hashlib
import io
import os
import tarfile
from pathlib import Path

from vit_jax import recipes
from vit_jax.errors import UserError
from vit_jax.launch import command, shipped


def pack(config: str | None) -> tuple[bytes, str]:
    """Archives the files of this checkout that git tracks, or the installed package.

    Args:
      config: the recipe that the run needs, PATH.py or PATH.py:ARG; None if its
        workdir has its config.

    Returns:
      The archive (tar, gzip) and a name for its contents: equal files give equal bytes,
      whenever and by whomever they are packed.

    Raises:
      UserError: if the recipe would not be in it; if vit_jax is an editable install of
        another folder.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        if is_checkout():
            for name in _tracked_with(config):
                _add(archive, name)
        else:
            for name, content in sorted(shipped.files(config).items()):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    tar = buffer.getvalue()
    return gzip.compress(tar, compresslevel=1, mtime=0), hashlib.sha256(
        tar
    ).hexdigest()[:12]


def is_checkout() -> bool:
    """Whether this is the root of a clone of vit_jax."""
    wanted = ["launch/worker.sh", "vit_jax/main.py"]
    if not all(Path(name).is_file() for name in wanted):
        return False
    return command.capture(["git", "ls-files", "--error-unmatch", *wanted]).code == 0


def _tracked_with(config: str | None) -> list[str]:
    """The files of this checkout, if the recipe is one of them."""
    names = tracked_files()
    if config is None:
        return names
    recipe, _ = recipes.split(config)
    packaged = recipes.find(recipe).is_relative_to(recipes.PACKAGED)
    if not packaged and os.path.normpath(recipe) not in names:
        raise UserError(
            f"--config={config} would not be shipped, since git does not track "
            f"{recipe}: git add it, within this checkout"
        )
    return names


def tracked_files() -> list[str]:
    """Paths, from the current directory, of what git tracks and is still there."""
    listed = command.output(["git", "ls-files", "-z"])
    names = sorted(listed.strip("\0").split("\0"))
    return [n for n in names if Path(n).is_file() or Path(n).is_symlink()]


def untracked_files() -> list[str]:
    """Files that git neither tracks nor ignores: they are not shipped."""
    if not is_checkout():
        return []
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
