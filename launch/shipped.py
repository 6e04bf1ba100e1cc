"""What workers get that have no vit_jax: an installed one, as an archive.

It holds the wheel that was installed, made again from its files, worker.sh and pins as
in a checkout, and the user's recipe with the folders from which it can import others.
"""

import base64
import csv
import hashlib
import importlib.metadata
import io
import os
import zipfile
from pathlib import Path

from vit_jax import recipes
from vit_jax.errors import UserError

HERE = Path(__file__).parent
PINS = HERE.parent / "requirements"


def files(config: str | None) -> dict[str, bytes]:
    """The contents of the archive by their paths in it.

    Args:
      config: the recipe that the run needs, PATH.py or PATH.py:ARG; None for none.

    Raises:
      UserError: if vit_jax is not installed from a wheel, or the recipe is not below
        this folder.
    """
    name, content = wheel()
    found = {name: content, "launch/worker.sh": (HERE / "worker.sh").read_bytes()}
    for path in (*PINS.glob("*.txt"), *PINS.glob("*.sh")):
        found[f"requirements/{path.name}"] = path.read_bytes()
    for path in with_imports(config) if config is not None else ():
        found[path.as_posix()] = path.read_bytes()
    return found


def with_imports(config: str) -> list[Path]:
    """The recipe and those that it can import; none if it comes with vit_jax."""
    recipe, _ = recipes.split(config)
    if recipes.find(recipe).is_relative_to(recipes.PACKAGED):
        return []
    path = Path(os.path.normpath(recipe))
    if path.is_absolute() or path.parts[0] in ("..", "~"):
        raise UserError(
            f"--config={config} would not be shipped: it has to be below this folder, "
            "and given relative to it"
        )
    folders = {path.parent / "configs", Path("configs")}
    if path.parent.name == "configs":
        folders.add(path.parent)
    beside = {file for folder in folders for file in folder.glob("*.py")}
    return sorted({path, *beside})


def wheel() -> tuple[str, bytes]:
    """The file name and the contents of the wheel of the vit_jax that runs here.

    Equal installs give equal bytes. The format is that of
    https://packaging.python.org/en/latest/specifications/binary-distribution-format/.

    Raises:
      UserError: if it runs from a checkout.
    """
    found = list(importlib.metadata.distributions(name="vit_jax"))
    kept = [file for me in found[:1] for file in me.files or () if _is_of_wheel(file)]
    located = [Path(str(file.locate())).resolve() for file in kept]
    if Path(__file__).resolve() not in located:
        raise UserError(
            "the code is shipped from a git checkout, and git finds none here: run "
            "from the root of your clone"
        )
    rows = io.StringIO()
    record, buffer = csv.writer(rows, lineterminator="\n"), io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(kept):
            content = file.read_binary()
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest())
            sha256 = f"sha256={digest.decode().rstrip('=')}"
            record.writerow([file.as_posix(), sha256, len(content)])
            info = zipfile.ZipInfo(file.as_posix())  # of 1980: equal for equal files
            archive.writestr(info, content, zipfile.ZIP_DEFLATED)
        name = f"vit_jax-{found[0].version}"
        record.writerow([f"{name}.dist-info/RECORD", "", ""])
        info = zipfile.ZipInfo(f"{name}.dist-info/RECORD")
        archive.writestr(info, rows.getvalue(), zipfile.ZIP_DEFLATED)
    return f"{name}-py3-none-any.whl", buffer.getvalue()


def _is_of_wheel(file: importlib.metadata.PackagePath) -> bool:
    """Whether an installed file came with the wheel; pip has written the others."""
    by_pip = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")
    if file.parts[0].endswith(".dist-info"):
        return file.name not in by_pip
    return file.parts[0] == "vit_jax" and file.suffix != ".pyc"
