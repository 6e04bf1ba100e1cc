"""Writes a constraints file: the newest releases that install together, each pinned.

    python requirements/resolve.py OUT [EXTRA ...]

pip resolves the checkout with the named extras for the Python that runs this, without
installing anything. Called by `make lock` and `make refresh-latest`.
"""

import datetime
import json
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def resolve(extras: list[str]) -> dict[str, str]:
    """{distribution: version} of all that vit_jax with `extras` needs, itself not."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run"]
    pip += ["--ignore-installed", "--report", "-", f".[{','.join(extras)}]"]
    report = subprocess.run(pip, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    found = (item["metadata"] for item in json.loads(report)["install"])
    pins = {normalise(item["name"]): item["version"] for item in found}
    del pins["vit-jax"]
    return pins


def normalise(name: str) -> str:
    """A distribution's name as PEP 503 writes it: ml_dtypes -> ml-dtypes."""
    return name.lower().replace("_", "-").replace(".", "-")


def main(out: str, *extras: str) -> None:
    """Resolves and writes."""
    pins = resolve(list(extras))
    python = ".".join(platform.python_version_tuple()[:2])
    header = f"""\
# Resolved on {datetime.date.today().isoformat()} by pip for Python {python} on \
{platform.system()} {platform.machine()}.
# A constraints file (pip install -c): it says which versions, setup.py says what is
# installed, so that other platforms can use it too. Renew it: see CONTRIBUTING.md.
"""
    lines = [f"{name}=={version}\n" for name, version in sorted(pins.items())]
    Path(out).write_text(header + "".join(lines), encoding="utf-8")
    print(f"{out}: {len(pins)} pins, jax {pins['jax']}, flax {pins['flax']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
