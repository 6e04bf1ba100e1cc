"""setup.py, requirements/ and the tools agree with each other."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import vit_jax
from tests import wheel
from vit_jax import __main__

ROOT = Path(__file__).parent.parent
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))


def pins(path: Path) -> dict[str, str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_lowest_txt_holds_the_lower_bounds_of_setup_py():
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    bounds = re.findall(r'"([\w-]+)(?:\[\w+\])?>=([\w.]+)', text)
    assert len(bounds) > 10
    assert dict(bounds) == pins(ROOT / "requirements" / "lowest.txt")


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_locks_hold_nothing_but_names_and_versions(path: Path):
    """No address, no local path: a lock must work from any package index."""
    for line in path.read_text(encoding="utf-8").splitlines():
        assert re.fullmatch(r"#.*|[a-z0-9-]+==[\w.]+", line), line
        assert "://" not in line


@pytest.mark.parametrize("name", ["lock-py311.txt", "latest.txt"])
def test_a_lock_covers_what_setup_py_asks_for(name: str):
    lowest = pins(ROOT / "requirements" / "lowest.txt")
    # TensorFlow's other name is for other platforms than the one that made the lock.
    assert set(lowest) - {"tensorflow", "tensorflow-cpu"} <= set(
        pins(ROOT / "requirements" / name)
    )


@pytest.mark.parametrize("environment", [".venv", ".venv-latest", ".venv-lowest"])
def test_make_installs_the_extras_under_the_pins(environment: str):
    """Make parts the arguments of a call at each comma, also between brackets."""
    printed = subprocess.run(
        ["make", "--always-make", "--dry-run", f"{environment}/.dev"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    (install,) = [line for line in printed.splitlines() if "--editable" in line]
    found = re.search(r"--editable '([^']*)' --constraint (\S+)", install)
    assert found, install
    extras, pinned_by = found.groups()
    assert extras == ".[dev,plan]"
    assert ROOT / pinned_by in LOCKS


def folders_with_code() -> list[Path]:
    """Those that are installed, as they stand in the repository."""
    found = {path.parent for path in Path(ROOT, "vit_jax").rglob("*.py")}
    return sorted(found | {ROOT / "configs", ROOT / "launch", ROOT / "launch/sweep"})


@pytest.mark.parametrize("folder", folders_with_code(), ids=str)
def test_every_folder_with_code_is_a_package(folder: Path):
    """find_packages of setuptools leaves out any other, without a word."""
    assert (folder / "__init__.py").is_file()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheel.build_offline(tmp_path_factory.mktemp("wheel"))


def test_a_wheel_has_every_file_of_the_package(built: Path):
    assert wheel.contents(built) ^ wheel.expected() == set()


@pytest.mark.slow
def test_every_module_of_a_wheel_can_be_imported(built: Path, tmp_path: Path):
    shutil.unpack_archive(built, tmp_path, "zip")
    check = wheel.IMPORT_ALL.replace("sys.prefix", repr(str(tmp_path)))
    done = subprocess.run(
        [sys.executable, "-c", check],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 150


def test_python_m_vit_jax_names_every_command():
    """The modules that do something when they are run, and the packages."""
    internal = {"launch.child", "planning.worker", "requirements.resolve"}
    found = set()
    for path in [*(ROOT / "vit_jax").rglob("*.py"), *(ROOT / "launch").rglob("*.py")]:
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts).removeprefix("vit_jax.")
        if path.name == "__main__.py":
            found.add(name.removesuffix("__main__").rstrip("."))
        elif '__name__ == "__main__"' in path.read_text(encoding="utf-8"):
            found.add(name)
    assert found - internal - {"vit_jax", ""} == set(__main__.COMMANDS)


@pytest.mark.parametrize(
    "argv, code, said",
    [
        ([], 0, "python -m vit_jax.predict "),
        (["--help"], 0, "python -m vit_jax.launch.local "),
        (["--version"], 0, f"vit_jax {vit_jax.__version__}\n"),
        (["predcit"], 2, 'did you mean "predict"'),
        (["--verison"], 2, 'did you mean "version"'),
    ],
)
def test_python_m_vit_jax(
    argv: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
):
    assert __main__.main(["vit_jax", *argv]) == code
    captured = capsys.readouterr()
    assert said in (captured.err if code else captured.out)


@pytest.mark.slow
def test_what_tpu_workers_install_goes_together(tmp_path: Path):
    """As launch/worker.sh and the Dockerfile have it, resolved and not installed."""
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    lock = ROOT / "requirements" / f"lock-{python}.txt"
    lock = lock if lock.exists() else ROOT / "requirements" / "latest.txt"
    lines = lock.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = tmp_path / "pins.txt"
    kept.write_text("".join(x for x in lines if not x.startswith("libtpu==")))
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed"]
    done = subprocess.run(
        [*pip, ".[tpu]", "--constraint", str(kept)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"Would install .*\blibtpu-", done.stdout)
