"""A fake Python of a worker: makes no environment, installs nothing, and trains fast.

Its first argument is the path that it was called by.
"""

import os
import sys
from pathlib import Path

import state

TRAINER = Path(__file__).parent / "trainer.py"


def main(me: str, argv: list[str]) -> None:
    match argv:
        case ["-c", code]:  # the probes of requirements/find-python.sh
            sys.executable, sys.version_info = me, (3, 11, 0)  # as its name says
            exec(code, {})
        case ["-m", "venv", "--clear", directory]:
            target = Path(directory) / "bin" / "python"
            target.parent.mkdir(parents=True)
            target.write_text(Path(me).read_text())
            target.chmod(0o755)
        case ["-m", "pip", "install", *arguments]:
            install(arguments)
        case ["-m", "vit_jax.main", *_] if state.scenario()["true_main"]:
            flags = "--xla_force_host_platform_device_count=1"
            flags += " --xla_backend_optimization_level=0"  # as all tests
            env = os.environ | {"PYTHONPATH": os.getcwd(), "XLA_FLAGS": flags}
            os.execve(sys.executable, [sys.executable, *argv], env)
        case ["-m", "vit_jax.main", *arguments]:
            os.execv(sys.executable, [sys.executable, str(TRAINER), *arguments])
        case _:
            sys.exit(f"fake python: {argv}")


def install(arguments: list[str]) -> None:
    """What pip would need to find in the current directory."""
    *flags, constraint = arguments
    wheels = [f"./{path}[tpu]" for path in Path().glob("vit_jax-*-py3-none-any.whl")]
    what = wheels or ["--editable", ".[tpu]"]
    assert flags == ["--quiet", *what, "--constraint"], arguments
    pins = Path(constraint).read_text()
    assert pins.startswith("# Resolved on"), constraint
    assert "\njax==" in pins and "libtpu==" not in pins, "jax[tpu] has its own"
    assert wheels or "vit_jax" in Path("setup.py").read_text()
    with state.locked() as now:
        now["installed"] += 1


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
