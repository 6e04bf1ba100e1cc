"""Sources for `vit_jax.data.prepare`, made by others, and what it made of them."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vit_jax.data.prepare import __main__ as command
from vit_jax.data.prepare import run

ROOT = Path(__file__).parents[2]
Files = dict[str, bytes]  # SPLIT/CLASS/IMAGE


def encoded(seed: int, kind: str = "JPEG", mode: str = "RGB", **how: Any) -> bytes:
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (3 + seed % 3, 4, 3), np.uint8)
    image = Image.fromarray(blocks.repeat(8, 0).repeat(8, 1)).convert(mode)
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def some(train: int = 12, test: int = 5) -> Files:
    """Two classes, JPEG and PNG."""
    files = {}
    for split, n, first in (("train", train, 0), ("test", test, 100)):
        for i in range(n):
            kind = "PNG" if i % 4 == 3 else "JPEG"
            name = f"{split}/{'ab'[i % 2]}/{i}.{kind.lower()}"
            files[name] = encoded(first + i, kind)
    return files


def folder(root: Path, files: Files) -> str:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return str(root)


def tar(path: Path, files: Files, mode: Any = "w") -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as file:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path.read_bytes()


def under(files: Files, prefix: str) -> Files:
    return {n.removeprefix(prefix): c for n, c in files.items() if n.startswith(prefix)}


def prepare(tmp_path: Path, *arguments: str, name: str = "mine") -> list[str]:
    """In this process but for the workers; returns what was said."""
    flags = [f"--data_dir={tmp_path}/data", f"--name={name}", "--num_workers=1"]
    said: list[str] = []
    run.prepare(command.parse([*arguments, *flags]), said.append)
    return said


def contents(tmp_path: Path, name: str = "mine") -> Files:
    folder = tmp_path / "data" / name / "1.0.0"
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def built(tmp_path: Path, name: str = "mine") -> Any:
    import tensorflow_datasets as tfds

    return tfds.builder_from_directory(str(tmp_path / "data" / name / "1.0.0"))


def records(tmp_path: Path, name: str = "mine", label: str = "label") -> dict[str, Any]:
    """{SPLIT/FILE_NAME: (bytes, label)}, read by TFDS."""
    import tensorflow_datasets as tfds

    builder = built(tmp_path, name)
    found = {}
    for split in builder.info.splits:
        source = builder.as_data_source(
            split, decoders={"image": tfds.decode.SkipDecoding()}
        )
        for record in source:
            key = f"{split}/{record['file_name'].decode()}"
            found[key] = (record["image"], record[label])
        assert len(source) == builder.info.splits[split].num_examples
    return found


def expected(files: Files) -> dict[str, Any]:
    return {n: (c, "ab".index(n.split("/")[1])) for n, c in files.items()}


def report(tmp_path: Path, kind: str) -> list[dict[str, Any]]:
    text = contents(tmp_path)[f"{kind}.jsonl"].decode()
    return [json.loads(line) for line in text.splitlines()]
