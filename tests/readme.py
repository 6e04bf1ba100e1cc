"""The commands of README.md, to be run; needs the standard library alone."""

import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(section: str) -> list[tuple[str, str]]:
    """("bash" or "python", text) of each block in the section of that title."""
    found = re.search(rf"## {section}\n(.*?)(\n## |\Z)", TEXT, re.DOTALL)
    assert found is not None, section
    return re.findall(r"```(bash|python)\n(.*?)```", found.group(1), re.DOTALL)


def with_flags(text: str, flags: Mapping[str, str]) -> str:
    """A block of bash, with further flags for the commands of these workdirs."""
    for workdir, more in flags.items():
        text = re.sub(
            rf"(--workdir={workdir}\b(?:.|\\\n)*?)\n(?!    )", rf"\1 {more}\n", text
        )
    return text


def run(
    found: Sequence[tuple[str, str]], python: str, folder: Path, **environment: str
) -> Iterator[str]:
    """Runs blocks in a folder, `python` as the interpreter; yields what each prints."""
    path = f"{Path(python).parent}:{os.environ['PATH']}"
    for language, text in found:
        command = ["bash", "-euc", text] if language == "bash" else [python, "-c", text]
        done = subprocess.run(
            command,
            cwd=folder,
            env=os.environ | {"PATH": path, "JAX_PLATFORMS": "cpu"} | environment,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        yield done.stdout
