"""The command that predicts, on folders as people have them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

import vit_jax
from tests.formats import drawn, files, prepared
from vit_jax import convert, host_memory, predict, visualize
from vit_jax.data.sources.folder import open_folder

NAMES = ["red tomato", "blue car", "c", "d", "e"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ViT with names of classes; it crops 28 of 32 pixels."""
    path = files.of_fixture("hf-vit", tmp_path_factory.mktemp("model"))
    config = json.loads((path / "config.json").read_text())
    config["id2label"] = {str(i): name for i, name in enumerate(NAMES)}
    (path / "config.json").write_text(json.dumps(config))
    processor = {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 32},
        "crop_size": 28,
    }
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
    return path


def run(model: Path, *arguments: Any) -> int:
    return predict.main(["", f"--checkpoint={model}", *map(str, arguments)])


def test_every_image_that_the_decoder_reads_is_found(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = Image.fromarray(prepared.images()["wide"])
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    (folder / "dir.jpg").mkdir()
    names = ["a.JPG", "b.tif", "c.gif", "d.bmp", "e.webp", "deep/f.tiff", "g.ppm"]
    for name in [*names, "dir.jpg/h.png"]:
        picture.save(folder / name)
    (folder / "._a.JPG").write_bytes(b"\0\5\26\7\0\2\0\0Mac OS X")
    (folder / "notes.txt").write_text("not an image")
    os.mkfifo(folder / "pipe.jpg")
    (tmp_path / "elsewhere").mkdir()
    picture.save(tmp_path / "elsewhere" / "i.jp2")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "back").symlink_to(folder)  # in a circle
    (folder / "dead.png").symlink_to(tmp_path / "nothing.png")
    (folder / ".thumbs").mkdir()
    picture.save(folder / ".thumbs" / "a.png")
    assert run(model, folder, "--json") == 0
    shown = capsys.readouterr()
    found = [Path(line["file"]) for line in json.loads(shown.out)]
    names += ["dir.jpg/h.png", "link/i.jp2"]
    assert [p.relative_to(folder).as_posix() for p in found] == sorted(names)
    (left,) = [line for line in shown.err.splitlines() if "left out" in line]
    begin, _, kinds = left.partition("left out 6 files: ")
    assert begin == f"{folder}: "
    expected = ["2 hidden", "1 .txt", "1 pipes or devices", "1 links to no file"]
    expected.append("1 links to a folder above")
    assert sorted(kinds.split(", ")) == sorted(expected)
    # Training on the folder, as one class, takes the same and says the same.
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "data" / "train" / "photos").symlink_to(folder)
    source = open_folder(str(tmp_path / "data"), "train")
    read = [source.describe(i).partition("/photos/")[2] for i in range(len(source))]
    assert read == sorted(names)
    assert source.notes[-1].endswith(left.partition(": ")[2])


def test_a_pipe_or_device_is_refused_at_once(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "x.jpg")
    for path in (tmp_path / "x.jpg", Path("/dev/zero")):
        assert run(model, path) == 2
        assert f"{path} is no file, but" in capsys.readouterr().err


def test_broken_images_are_counted_and_the_others_done(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(5):
        cv2.imwrite(str(tmp_path / f"{i}.png"), prepared.images()["tall"])
    (tmp_path / "1.png").write_bytes(b"")
    (tmp_path / "3.png").write_bytes(b"\x89PNG no")
    assert run(model, tmp_path, "--batch_size=2", "--json") == 2
    shown = capsys.readouterr()
    assert [Path(p["file"]).stem for p in json.loads(shown.out)] == ["0", "2", "4"]
    last = shown.err.splitlines()[-1]
    assert last == "error: 2 of 5 images could not be read, see above"
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "1.png").write_bytes(b"no")
    assert run(model, tmp_path / "all", "--json") == 2
    assert json.loads(capsys.readouterr().out) == []


def test_a_checkpoint_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), prepared.images()["tall"])
    for name in ("workdir", "a.pth", "a.npz"):
        path = tmp_path / name
        assert run(path, tmp_path) == 2
        assert f"{path}: there is no such file" in capsys.readouterr().err
        assert convert.main(["", str(path)]) == 2
        assert f"{path}: there is no such file" in capsys.readouterr().err
        with pytest.raises(vit_jax.errors.UserError, match="there is no such file"):
            vit_jax.load(str(path))


def test_overlays_are_of_the_photo_with_class_and_probability(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    large = cv2.resize(rng.integers(0, 256, (9, 16, 3), np.uint8), (1600, 900))
    (tmp_path / "x").mkdir()
    cv2.imwrite(str(tmp_path / "x" / "a.png"), prepared.images()["wide"][..., ::-1])
    cv2.imwrite(str(tmp_path / "x" / "a.bmp"), large)
    flags = [f"--overlay={tmp_path / 'out'}", "--json"]
    assert run(model, tmp_path / "x" / "a.png", tmp_path / "x" / "a.bmp", *flags) == 0
    best = json.loads(capsys.readouterr().out)[0]["predictions"][0]
    names = sorted(p.name for p in (tmp_path / "out").glob("*"))
    assert names == ["x_a-2.png", "x_a.png"]
    picture = cv2.imread(str(tmp_path / "out" / "x_a.png"))
    assert picture is not None and picture.shape[1] == 2 * 92
    np.testing.assert_array_equal(
        picture[:61, :92], prepared.images()["wide"][..., ::-1]
    )
    # Outside of the central crop, 28 of 32 pixels, is no heat.
    height, width = 61, 92
    dark = prepared.images()["wide"][..., ::-1] // 4
    margin = (width - height * 28 / 32) / 2
    heated = (picture[:height, width:] != dark).any(axis=(0, 2))
    columns = np.flatnonzero(heated)
    assert abs(columns[0] - margin) < 2 and abs(width - 1 - columns[-1] - margin) < 2
    expected = visualize.with_caption(
        picture[:height], f"{best['name']} {best['probability']:.1%}"
    )
    np.testing.assert_array_equal(picture, expected)
    assert (picture[height:] == 0).any()
    other = cv2.imread(str(tmp_path / "out" / "x_a-2.png"))
    assert other is not None and other.shape[1] == 2 * 1024


def test_another_image_size(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), prepared.images()["tall"])
    seen = []
    for flags in ([], ["--image_size=28"], ["--image_size=56,42"]):
        assert run(model, tmp_path, "--json", *flags) == 0
        (found,) = json.loads(capsys.readouterr().out)
        seen.append([p["probability"] for p in found["predictions"]])
    assert seen[0] == seen[1] != seen[2]
    for bad, expected in (
        ("30", "nearest height 28 or 35"),
        ("-7", "invalid"),
        ("a", "invalid"),
    ):
        assert run(model, tmp_path, f"--image_size={bad}") == 2
        assert expected in capsys.readouterr().err


def test_a_head_of_zeros_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in the files of the paper that were pre-trained on ImageNet-21k."""
    record = drawn.fixture("npz-vit")
    arrays = drawn.draw_all(record["shapes"])
    arrays["head/kernel"] *= 0
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    cv2.imwrite(str(tmp_path / "a.png"), prepared.images()["tall"])
    assert run(tmp_path / "a.npz", tmp_path / "a.png") == 0
    assert "is all zeros" in capsys.readouterr().err


LIBTPU = """
import jax
from vit_jax import convert, host_memory, predict
assert host_memory.cpu_alone()
for main in (
    lambda: predict.main(["", "--checkpoint=none", "tests/cli.py"]),
    lambda: convert.main(["", "none"]),
):
    jax.config.update("jax_platforms", None)
    assert main() == 2
    print(jax.config.values["jax_platforms"])
"""


@pytest.mark.skipif(not host_memory.cpu_alone(), reason="there is an accelerator")
def test_libtpu_is_left_alone() -> None:
    """It complains, in six lines, where it is installed for planning alone."""
    env = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
    done = subprocess.run(
        [sys.executable, "-c", LIBTPU], env=env, capture_output=True, text=True
    )
    assert done.stdout.split() == ["cpu", "cpu"], done.stderr


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "\udcff", "line\nbreak"])
def test_names_that_no_file_has(name: str) -> None:
    with pytest.raises(vit_jax.errors.UserError, match="there is no image"):
        list(predict.find_images([Path(name)]))
