"""Builds what people install, and uses that in an empty folder, by the README.

    python -m tests.wheel requirements/lock-py311.txt

The wheel is built from an sdist, and from the repository as `pip install git+...` does.
It is installed, with the versions of the file, into a fresh environment of the Python
that runs this. Needs the standard library and a package index: `make test-wheel`.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from tests import readme
from tests.readme import ROOT

# Where a folder of the repository is in the wheel.
PLACES = {
    "vit_jax/": "vit_jax/",
    "configs/": "vit_jax/configs/",
    "launch/": "vit_jax/launch/",
    "requirements/": "vit_jax/requirements/",
}

IMPORT_ALL = """
import importlib, pkgutil, sys, vit_jax
assert vit_jax.__file__.startswith(sys.prefix), vit_jax.__file__
found = [m.name for m in pkgutil.walk_packages(vit_jax.__path__, "vit_jax.")]
names = [name for name in found if not name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
print(len(names), "modules")
"""

TWENTY_STEPS = "--config.total_epochs=0.08 --config.optim.warmup_steps=5"
OTHERS = f"""
python -m vit_jax --version
python -m vit_jax.plan --config=quickstart.py --topology=local
python -m vit_jax.data.check --config=quickstart.py
python -m vit_jax.launch.local --config=quickstart.py --workdir=two --processes=2 \
    --devices_per_process=1 {TWENTY_STEPS}
"""


def main(pins: str) -> None:
    """Builds, installs and uses."""
    os.environ.pop("PYTHONPATH", None)
    with tempfile.TemporaryDirectory(prefix="vit_jax_wheel_") as folder:
        wheel = build(Path(folder))
        say(f"built {wheel.name}")
        python = environment(Path(folder) / "environment")
        run(python, "-m", "pip", "install", "--quiet", wheel, "--constraint", pins)
        say("installed")
        empty = Path(folder) / "empty"
        empty.mkdir()
        say(f"imported {run(python, '-c', IMPORT_ALL, cwd=empty).strip()}")
        follow_the_readme(python, empty)
        for _ in readme.run([("bash", OTHERS)], python, empty):
            say("ran the other commands")
        for command in launchers():
            run(python, *command, "--dry_run", cwd=empty)
        say("dry-ran the launchers")


def build(folder: Path) -> Path:
    """A wheel from an sdist; its files are the repository's, however it is built."""
    python = environment(folder / "builder")
    run(python, "-m", "pip", "install", "--quiet", "build")
    run(python, "-m", "build", "--outdir", folder / "dist", ROOT)
    pip = (python, "-m", "pip", "wheel", "--quiet", "--no-deps")
    run(*pip, "--wheel-dir", folder / "git", f"git+file://{ROOT}")
    (wheel,), (of_git,) = (folder / "dist").glob("*.whl"), (folder / "git").iterdir()
    assert (missing := expected() ^ contents(wheel)) == set(), missing
    assert contents(wheel) == contents(of_git)
    return wheel


def build_offline(folder: Path) -> Path:
    """A wheel of the working tree, by the setuptools that is here.

    The working tree gets no files of the build. Links are lost, as by zip files and on
    Windows: that must do no harm.
    """
    for name in sources():
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / "source" / name)
    pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation")
    run(*pip, "--quiet", "--wheel-dir", folder / "dist", folder / "source")
    (found,) = (folder / "dist").glob("*.whl")
    return found


def sources(*folders: str) -> list[str]:
    """The files that git does not ignore, without links."""
    flags = ("--cached", "--others", "--exclude-standard")
    names = run("git", "ls-files", *flags, *folders, cwd=ROOT).splitlines()
    paths = [(name, ROOT / name) for name in names]
    return [name for name, path in paths if path.is_file() and not path.is_symlink()]


def expected() -> set[str]:
    """What a wheel should have."""
    pairs = [(f"{name.partition('/')[0]}/", name) for name in sources(*PLACES)]
    return {name.replace(top, PLACES[top], 1) for top, name in pairs}


def contents(wheel: Path) -> set[str]:
    """The files of a wheel that are vit_jax's own."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def follow_the_readme(python: str, folder: Path) -> None:
    """Its "Use what you trained" up to fine-tuning, with 20 steps of training."""
    shorter = {"workdirs/quickstart": TWENTY_STEPS}
    found = [
        (language, readme.with_flags(text, shorter))
        for language, text in readme.blocks("Use what you trained")
        if "transformers" not in text and "init_from" not in text
    ]
    printed = "".join(readme.run(found, python, folder))
    told = re.findall(r"^accuracy ([\d.]+)$", printed, re.MULTILINE)
    trained = re.findall(r"^  test +accuracy ([\d.]+)", printed, re.MULTILINE)
    assert len(told) == 2 and len(trained) == 1, printed
    say(f"trained 20 steps: {trained[0]}; loaded and exported: {', '.join(told)}")
    # Of 2,000 images one may stand on the edge.
    assert all(abs(float(a) - float(trained[0])) < 0.0006 for a in told)


def launchers() -> list[list[str]]:
    """The README's commands of launchers, without `python`."""
    lines = [
        line
        for text in re.findall(r"```bash\n(.*?)```", readme.TEXT, re.DOTALL)
        for line in text.replace("\\\n", " ").splitlines()
        if line.startswith("python -m vit_jax.launch.")
    ]
    assert len(lines) >= 2
    return [shlex.split(line)[1:] for line in lines]


def environment(folder: Path) -> str:
    """Makes a virtual environment; returns its Python."""
    run(sys.executable, "-m", "venv", folder)
    return str(folder / "bin" / "python")


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """What a command prints.

    Raises:
      SystemExit: if it fails, with what it has printed.
    """
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        shown = shlex.join(map(str, command))
        sys.exit(f"{shown}\n{done.stdout}\n{done.stderr}\nexit code {done.returncode}")
    return done.stdout


def say(what: str) -> None:
    print(f"{time.monotonic() - _BEGAN:4.0f} s  {what}", flush=True)


_BEGAN = time.monotonic()

if __name__ == "__main__":
    main(sys.argv[1])
