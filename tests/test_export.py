"""A model leaves as StableHLO and runs where vit_jax is not imported."""

import json
import subprocess
import sys
from pathlib import Path

import jax.export
import numpy as np
import pytest

import vit_jax
from tests.formats import files
from vit_jax import convert

# What the docstring of vit_jax/export.py tells its users to do.
ELSEWHERE = """
import sys
import jax, jax.export, numpy as np
folder, images, out = sys.argv[1:]
with open(f"{folder}/model.stablehlo", "rb") as file:
    program = jax.export.deserialize(bytearray(file.read()))
weights = dict(np.load(f"{folder}/weights.npz"))
images = np.load(images)
logits = [program.call(weights, images), program.call(weights, images[:1])]
assert not [m for m in sys.modules if m.split(".")[0] in ("vit_jax", "flax")]
np.save(out, np.concatenate(logits))
"""


def run_elsewhere(folder: Path, images: np.ndarray, scratch: Path) -> np.ndarray:
    """Logits of all images and then of the first, from another process."""
    np.save(scratch / "images.npy", images)
    paths = [folder, scratch / "images.npy", scratch / "logits.npy"]
    command = [sys.executable, "-I", "-c", ELSEWHERE, *map(str, paths)]
    subprocess.run(command, check=True, cwd=scratch, timeout=300)
    return np.load(scratch / "logits.npy")


@pytest.mark.parametrize(
    "name",
    [
        "timm-vit",
        "timm-bit",
        pytest.param("timm-mixer", marks=pytest.mark.slow),
    ],
)
def test_it_runs_without_us(name: str, tmp_path: Path) -> None:
    source, target = files.of_fixture(name, tmp_path), tmp_path / "out"
    flags = ["--to=stablehlo", "--image_size=32"] if "bit" in name else []
    flags = flags or ["--to=stablehlo"]
    assert convert.main(["", str(source), str(target), *flags]) == 0
    about = json.loads((target / "model.json").read_text())
    model = vit_jax.load(str(source), image_size=tuple(about["image_size"]))
    shape = (5, *about["image_size"], 3)
    images = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    expected = np.asarray(model(images))
    found = run_elsewhere(target, images, tmp_path)
    np.testing.assert_allclose(found, [*expected, expected[0]], rtol=0, atol=1e-4)
    assert expected.std() > 0.1


def test_for_all_platforms_and_any_number_of_images(tmp_path: Path) -> None:
    source, target = files.of_fixture("timm-vit", tmp_path), tmp_path / "out"
    assert convert.main(["", str(source), str(target), "--to=stablehlo"]) == 0
    program = jax.export.deserialize(
        bytearray((target / "model.stablehlo").read_bytes())
    )
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert str(program.in_avals[-1].shape) == "(b, 28, 28, 3)"
    assert program.in_avals[-1].dtype == np.uint8


def test_a_scanned_model_in_bfloat16(tmp_path: Path) -> None:
    """As large ones are trained: layers stacked, computed in half precision."""
    source, target = files.of_fixture("timm-vit", tmp_path), tmp_path / "out"
    flags = ["--to=stablehlo", "--model.dtype=bfloat16", "--model.scan=true"]
    assert convert.main(["", str(source), str(target), *flags]) == 0
    text = jax.export.deserialize(
        bytearray((target / "model.stablehlo").read_bytes())
    ).mlir_module()
    assert "bf16" in text


def test_what_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(files.of_fixture("timm-vit", tmp_path))
    assert convert.main(["", source, str(tmp_path), "--to=stablehlo"]) == 2
    assert "exists: give a new name" in capsys.readouterr().err
    target = str(tmp_path / "model.safetensors" / "out")
    assert convert.main(["", source, target, "--to=stablehlo"]) == 2
    assert "cannot write" in capsys.readouterr().err
    assert not list(tmp_path.glob(".*"))
