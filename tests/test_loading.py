"""What was trained, or came from elsewhere, is loaded in one line and predicts."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from scipy import ndimage

import vit_jax
from tests import cli, once
from tests.formats import drawn, files
from vit_jax import convert, data, models, predict, visualize
from vit_jax.checkpoints.formats import opened
from vit_jax.data.decode import decode
from vit_jax.errors import UserError


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workdir whose best checkpoint is not its newest."""
    workdir = once.everything(tmp_path_factory)
    assert len(cli.saved_steps(workdir)) == 3
    return workdir


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 200 images that the recipe evaluates, as PNG files in folders of classes."""
    folder = tmp_path_factory.mktemp("pictures")
    dataset = data.make(
        name="fashion_mnist_mini", split="test[:10%]", image_size=28, train={}, eval={}
    )
    (batch,) = dataset.eval_batches(batch_size=200)
    for i, (image, label) in enumerate(
        zip(batch["image"], batch["label"], strict=True)
    ):
        (folder / f"{label}").mkdir(exist_ok=True)
        cv2.imwrite(str(folder / f"{label}" / f"{i:03}.png"), image[..., ::-1])
    return folder


def test_predictions_have_the_accuracy_that_training_reported(
    trained: Path, pictures: Path, capsys: pytest.CaptureFixture
) -> None:
    lines = {line["step"]: line for line in cli.metric_lines(trained)}
    found = {s: x["test/accuracy"] for s, x in lines.items() if "test/accuracy" in x}
    best = max(found, key=lambda step: lines[step][cli.BEST])
    assert found[best] != found[30]
    for step in (None, 30):
        flags = [] if step is None else [f"--step={step}"]
        args = [f"--checkpoint={trained}", "--json", str(pictures), *flags]
        assert predict.main(["predict", *args]) == 0
        found = json.loads(capsys.readouterr().out)
        assert len(found) == 200
        right = [Path(f["file"]).parent.name for f in found]
        likeliest = [str(f["predictions"][0]["class"]) for f in found]
        accuracy = np.mean([a == b for a, b in zip(right, likeliest, strict=True)])
        assert accuracy == pytest.approx(lines[step or best]["test/accuracy"])
    chances = [p["probability"] for p in found[0]["predictions"]]
    assert len(chances) == 5 and chances == sorted(chances, reverse=True)


def test_a_workdir_in_python(trained: Path) -> None:
    model = vit_jax.load(str(trained))
    images = np.random.default_rng(0).integers(0, 255, (3, 28, 28, 3), np.uint8)
    logits = np.asarray(model(images))
    assert logits.shape == (3, 10) and logits.dtype == np.float32
    normalised = (images.astype(np.float32) / 255 - 0.5) / 0.5
    np.testing.assert_allclose(model(normalised), logits, atol=1e-5)
    features = model.features(images)
    head = model.params["head"]
    np.testing.assert_allclose(
        features @ head["kernel"] + head["bias"], logits, atol=1e-5
    )
    named = model.features(images, ["encoderblock_0", "encoderblock_1/attention"])
    assert named["encoderblock_0"].shape == (3, 17, 32)
    assert named["encoderblock_1/attention"].shape == (3, 4, 17, 17)
    odds = np.exp(logits)
    np.testing.assert_allclose(
        model.probabilities(logits), odds / odds.sum(1, keepdims=True), rtol=1e-5
    )
    model.loss = "sigmoid_xent"
    np.testing.assert_allclose(
        model.probabilities(logits), odds / (1 + odds), rtol=1e-5
    )
    assert model.config["width"] == 32 and model.image_size == (28, 28)
    photo = np.random.default_rng(0).integers(0, 255, (61, 40, 3), np.uint8)
    np.testing.assert_array_equal(model.preprocess(photo), model.preprocessing(photo))
    assert model.label_names is not None and model.label_names[9] == "Ankle boot"
    # The averaged parameters, of the best step.
    saved = cli.saved_arrays(trained, 30)
    newest = vit_jax.load(str(trained), step=30).params["head"]["bias"]
    key = "ema_params['head']['bias']"
    np.testing.assert_array_equal(newest, saved[key])
    assert not np.array_equal(newest, head["bias"])
    half = vit_jax.load(str(trained / "checkpoints" / "30"), dtype="bfloat16")
    assert (
        np.abs(half(images) - vit_jax.load(str(trained), step=30)(images)).max() > 1e-6
    )


# The peak of this process alone: getrusage's begins with that of who started it.
MEASURE = """
import re, sys
import jax, vit_jax

def peak():
    text = open("/proc/self/status").read()
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", text).group(1))

jax.numpy.ones(3).block_until_ready()
before = peak()
vit_jax.load(sys.argv[1])
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_large_checkpoint_is_in_memory_once(suffix: str, tmp_path: Path) -> None:
    """ViT-L/16's 1.2 GB, with a bar."""
    path = tmp_path / f"large{suffix}"
    if suffix == ".npz":
        shapes = opened.shapes_of({"variant": "L/16", "num_classes": 1000}, (224, 224))
        zeros = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        np.savez(path, **zeros)  # type: ignore[arg-type]
    else:
        files.safetensors(path, timm_large())
    size = path.stat().st_size
    assert size > 1.2e9
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Reading large" in done.stderr and "100%" in done.stderr
    rise = int(done.stdout) / size
    print(f"{suffix}: peak memory rose by {rise:.2f} times the file's size")
    assert 1.0 < rise < 1.5


def timm_large() -> dict[str, np.ndarray]:
    """timm's vit_large_patch16_224, of zeros."""
    width = 1024
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 197, width),
        "patch_embed.proj.weight": (width, 3, 16, 16),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
        "head.weight": (1000, width),
        "head.bias": (1000,),
    }
    for i in range(24):
        for name, of in (
            ("attn.qkv", (3 * width, width)),
            ("attn.proj", (width, width)),
            ("mlp.fc1", (4 * width, width)),
            ("mlp.fc2", (width, 4 * width)),
            ("norm1", (width,)),
            ("norm2", (width,)),
        ):
            shapes[f"blocks.{i}.{name}.weight"] = of
            shapes[f"blocks.{i}.{name}.bias"] = of[:1]
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def test_other_libraries_in_python(tmp_path: Path) -> None:
    path = files.of_fixture("hf-vit", tmp_path)
    (path / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_mean": [0.4, 0.5, 0.6],
                "image_std": [0.2, 0.3, 0.4],
                "resample": 2,
                "size": {"height": 28, "width": 28},
            }
        )
    )
    seen = []
    model = vit_jax.load(str(path), progress=lambda *done: seen.append(done))
    assert seen[-1][0] == seen[-1][1] > 0
    assert (model.mean, model.std) == ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    expected = drawn.fixture("hf-vit")["outputs"]
    np.testing.assert_allclose(model(drawn.images((28, 28))), expected, atol=1e-4)
    assert model.label_names == ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3", "LABEL_4")
    timm = files.of_fixture("timm-deit", tmp_path)
    with pytest.raises(UserError, match=r"step=3: .* is no workdir"):
        vit_jax.load(str(timm / "model.safetensors" if timm.is_dir() else timm), step=3)


def test_preprocessing_agrees_with_pil(tmp_path: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    smooth = cv2.resize(rng.integers(0, 255, (9, 12, 3), np.uint8), (90, 60))
    path = files.of_fixture("hf-vit", tmp_path)
    for resample, filter_ in (
        (2, Image.Resampling.BILINEAR),
        (3, Image.Resampling.BICUBIC),
    ):
        config = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": resample}
        config["size"] = {"height": 28, "width": 28}
        (path / "preprocessor_config.json").write_text(json.dumps(config))
        model = vit_jax.load(str(path))
        expected = np.asarray(Image.fromarray(smooth).resize((28, 28), filter_), int)
        found = model.preprocess(Image.fromarray(smooth))
        assert found.dtype == np.uint8
        assert np.abs(found - expected).max() <= 1  # PIL rounds between two passes
        config["size"] = {"shortest_edge": 32}
        (path / "preprocessor_config.json").write_text(json.dumps(config))
        wide = Image.fromarray(smooth).resize((48, 32), filter_)
        expected = np.asarray(wide.crop((10, 2, 38, 30)), int)
        found = vit_jax.load(str(path)).preprocess(smooth)
        assert np.abs(found - expected).max() <= 1


def test_images_in_memory_are_treated_as_files_are() -> None:
    from PIL import Image

    colours = np.random.default_rng(0).integers(0, 255, (4, 6, 4), np.uint8)
    composed = data.to_rgb(colours)
    np.testing.assert_array_equal(data.to_rgb(Image.fromarray(colours)), composed)
    done, png = cv2.imencode(".png", cv2.cvtColor(colours, cv2.COLOR_RGBA2BGRA))
    assert done
    np.testing.assert_array_equal(decode(png.tobytes(), where="x"), composed)
    turned = Image.fromarray(colours[..., :3])
    exif = turned.getexif()
    exif[0x0112] = 6  # a quarter turn clockwise
    np.testing.assert_array_equal(data.to_rgb(turned), np.rot90(colours[..., :3], k=-1))
    for bad in (np.zeros((2, 2)), np.zeros((2, 2, 2), np.uint8), np.zeros(3, np.uint8)):
        with pytest.raises(UserError, match="expected an image of uint8 pixels"):
            data.to_rgb(bad)


def test_what_cannot_be_predicted(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def refused(*args: str) -> str:
        assert predict.main(["predict", *args]) == 2
        return capsys.readouterr().err

    checkpoint = f"--checkpoint={trained}"
    assert "did you mean" in refused(checkpoint, "--jsn", "a.png")
    assert "both needed" in refused(checkpoint)
    assert "there is no image" in refused(checkpoint, str(tmp_path / "a.png"))
    assert "has no image" in refused(checkpoint, str(tmp_path))
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    cv2.imwrite(str(good), np.zeros((30, 40, 3), np.uint8))
    bad.write_bytes(b"\x89PNG\r\n\x1a\nno")
    assert "is neither a workdir" in refused(f"--checkpoint={tmp_path}", str(good))
    # One that cannot be read does not cost the others.
    assert predict.main(["predict", checkpoint, str(bad), str(good)]) == 2
    shown = capsys.readouterr()
    assert f"error: {bad} cannot be decoded" in shown.err
    assert shown.out.startswith(f"{good}\n  ")
    model = vit_jax.load(str(trained))
    with pytest.raises(UserError, match="add an axis in front"):
        model(np.zeros((28, 28, 3), np.uint8))
    with pytest.raises(UserError, match="got int"):
        model(np.zeros((1, 28, 28, 3), np.int64))


def test_images_that_a_model_does_not_take(tmp_path: Path) -> None:
    from PIL import Image

    model = vit_jax.load(str(files.of_fixture("hf-vit", tmp_path)))
    image = Image.fromarray(np.zeros((28, 28, 3), np.uint8))
    for bad, expected in (
        ("x.png", "got str: model"),
        (Path("x.png"), r"got PosixPath: model\(model.preprocess\(image\)\[None\]\)"),
        (image, "got Image: model"),
        (["a.png"], "expected images"),
        ([np.zeros((28, 28, 3)), np.zeros((28, 14, 3))], "of the same size"),
        (
            np.zeros((1, 14, 56, 3), np.uint8),
            r"of 14 x 56 .* takes 28 x 28: .*image_size=",
        ),
        (np.full((1, 28, 28, 3), 255.0, np.float32), "values of up to 255: give"),
        (np.full((1, 28, 28, 3), np.nan, np.float32), "values of up to nan"),
    ):
        with pytest.raises(UserError, match=expected):
            model(bad)
    with pytest.raises(UserError, match="expected an image"):
        model.preprocess("x.png")


def test_a_model_is_printed_in_one_line(tmp_path: Path) -> None:
    model = vit_jax.load(str(files.of_fixture("hf-vit", tmp_path)))
    count = sum(np.size(leaf) for leaf in model.arrays().values())
    assert repr(model) == (
        "<vit_jax.Model name=vit, patch_size=7, width=32, depth=2, num_classes=5, "
        f"image_size=28x28, loss=softmax_xent, {count:,} parameters>"
    )


@pytest.mark.parametrize(
    "config, expected",
    [
        ({}, "softmax_xent"),
        ({"problem_type": "single_label_classification"}, "softmax_xent"),
        ({"problem_type": "multi_label_classification"}, "sigmoid_xent"),
    ],
)
def test_classes_that_do_not_exclude_each_other(
    config: dict[str, str], expected: str, tmp_path: Path
) -> None:
    path = files.of_fixture("hf-vit", tmp_path)
    about = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(about | config))
    model = vit_jax.load(str(path))
    assert model.loss == expected
    logits = np.array([[1.0, 2.0, 0.5, -1.0, 0.0]])
    odds = np.exp(logits)
    chances = odds / (1 + odds) if expected == "sigmoid_xent" else odds / odds.sum()
    np.testing.assert_allclose(model.probabilities(logits), chances, rtol=1e-5)
    # Whatever it is written as, it comes back.
    for to, name in (
        ("huggingface", "hf"),
        ("timm", "timm"),
        ("timm", "a.safetensors"),
        ("big_vision", "a.npz"),
    ):
        flags = [f"--to={to}", "--allow=layer_norm_epsilon", "--allow=gelu"]
        assert convert.main(["", str(path), str(tmp_path / name), *flags]) == 0
        assert vit_jax.load(str(tmp_path / name)).loss == expected
    written = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert written.get("problem_type") == (
        "multi_label_classification" if expected == "sigmoid_xent" else None
    )


@pytest.mark.parametrize("name", ["hf-dinov2", "hf-dinov2_with_registers", "hf-vit"])
def test_a_processor_s_size_is_the_default(name: str, tmp_path: Path) -> None:
    """What transformers computes of smaller images than the positions are of."""
    record = drawn.fixture(name)
    path = files.of_fixture(name, tmp_path)
    processor = {"size": {"height": 24, "width": 24}, "crop_size": 21}
    processor |= {"do_center_crop": True, "image_processor_type": "BitImageProcessor"}
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
    model = vit_jax.load(str(path))
    assert model.image_size == (21, 21)
    images = drawn.images((21, 21))
    np.testing.assert_allclose(model(images), record["outputs_at_21"], atol=1e-5)
    # Larger ones, and the size of the positions.
    larger = vit_jax.load(str(path), image_size=(35, 35))
    found = larger(drawn.images((35, 35)))
    np.testing.assert_allclose(found, record["outputs_at_35"], atol=1e-5)
    assert larger.preprocess(np.zeros((90, 50, 3), np.uint8)).shape == (35, 35, 3)
    whole = vit_jax.load(str(path), image_size=28)
    np.testing.assert_allclose(
        whole(drawn.images((28, 28))), record["outputs"], atol=1e-4
    )
    # Converting keeps the positions, and the processor, unless a size is asked for.
    out = tmp_path / "out"
    assert convert.main(["", str(path), str(out), "--to=huggingface"]) == 0
    again = vit_jax.load(str(out))
    assert again.image_size == (21, 21)
    np.testing.assert_array_equal(again(images), model(images))
    flags = ["--to=huggingface", "--image_size=35"]
    assert convert.main(["", str(path), str(tmp_path / "large"), *flags]) == 0
    text = json.loads((tmp_path / "large" / "config.json").read_text())
    assert text["image_size"] == 35
    again = vit_jax.load(str(tmp_path / "large"))
    np.testing.assert_array_equal(again(drawn.images((35, 35))), found)


def test_a_workdir_at_another_size(trained: Path, tmp_path: Path) -> None:
    model = vit_jax.load(str(trained), image_size=42)
    assert model.preprocess(np.zeros((90, 50, 3), np.uint8)).shape == (42, 42, 3)
    small = vit_jax.load(str(trained)).params
    table, resized = (
        np.asarray(p["Transformer"]["posembed_input"]["pos_embedding"])[0]
        for p in (small, model.params)
    )
    own = len(table) - 16
    old = table[own:].reshape(4, 4, -1)
    grid: Any = ndimage.zoom(old, (6 / 4, 6 / 4, 1), order=1)
    np.testing.assert_allclose(
        resized[own:], grid.reshape(36, -1), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(resized[:own], table[:own])
    assert model(np.zeros((1, 42, 42, 3), np.uint8)).shape == (1, 10)


def test_overlays(trained: Path, pictures: Path, tmp_path: Path, capsys) -> None:
    flags = [f"--checkpoint={trained}", f"--overlay={tmp_path}", "--batch_size=2"]
    images = sorted((pictures / "0").glob("*.png"))[:3]
    assert predict.main(["predict", *flags, *map(str, images)]) == 0
    written = sorted(tmp_path.glob("*.png"))
    assert [p.name for p in written] == [f"0_{p.name}" for p in images]
    picture = cv2.imread(str(written[0]))
    assert picture is not None and picture.shape[1] == 56
    original = cv2.imread(str(images[0]))
    np.testing.assert_array_equal(picture[:28, :28], original)


@pytest.mark.parametrize("pool", ["token", "gap", "map"])
def test_the_heat_map_follows_what_the_head_sees(pool: Any) -> None:
    """Computed a second way: by pushing one patch at a time through the layers."""
    model = models.create(
        patch_size=8, width=16, depth=3, mlp_dim=8, num_heads=2, pool=pool, registers=2
    )
    rng = np.random.default_rng(0)
    before = 2 + (pool == "token")
    tokens = before + 6
    layers = [rng.dirichlet(np.ones(tokens), (2, tokens)) for _ in range(3)]
    weights = {"MAPHead_0/attention": rng.dirichlet(np.ones(tokens), (1, 2, 1))}

    class Loaded:
        module, image_size = model, (16, 24)

    found = predict.seen_by_head(Loaded(), visualize.rollout(layers), weights, 0)
    assert found.shape == (2, 3)
    for patch in range(6):
        flow = np.zeros(tokens)
        flow[before + patch] = 1.0
        for layer in layers:
            flow = (flow + layer.mean(axis=0) @ flow) / 2
        expected = {
            "token": flow[0],
            "gap": flow[before:].mean(),
            "map": weights["MAPHead_0/attention"][0].mean(axis=0)[0] @ flow,
        }[pool]
        assert found.reshape(-1)[patch] == pytest.approx(expected)


def test_images_that_the_model_does_not_take(tmp_path: Path) -> None:
    """Of another shape with as many patches, or pixels that were not normalised."""
    model = vit_jax.load(str(files.of_fixture("timm-vit", tmp_path)))
    with pytest.raises(UserError, match=r"images of 14 x 56 .* takes 28 x 28"):
        model(np.zeros((1, 14, 56, 3), np.uint8))
    pixels = np.full((1, 28, 28, 3), 200.0, np.float32)
    with pytest.raises(UserError, match=r"values of up to 200: give those in 0"):
        model(pixels)
    found = model((pixels / 255 - 0.5) / 0.5)
    np.testing.assert_allclose(found, model(pixels.astype(np.uint8)), atol=1e-5)


def test_a_head_of_zeros_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = drawn.draw_all(drawn.fixture("timm-vit")["shapes"])
    arrays |= {
        name: np.zeros_like(arrays[name]) for name in ("head.weight", "head.bias")
    }
    vit_jax.load(str(files.safetensors(tmp_path / "m.safetensors", arrays)))
    assert "its head is all zeros" in capsys.readouterr().err


def test_a_guess_of_heads_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(files.of_fixture("timm-vit", tmp_path))
    vit_jax.load(path)
    assert "guessed 1 heads of 64 channels" in capsys.readouterr().err
    vit_jax.load(path, num_heads=1)
    assert "guessed" not in capsys.readouterr().err
