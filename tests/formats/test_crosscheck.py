"""timm and transformers themselves, at full size, on photos: `make test-crosscheck`."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vit_jax
from tests.formats import drawn, files
from vit_jax import convert
from vit_jax.checkpoints import position_embeddings

pytestmark = pytest.mark.crosscheck


def photos(size: tuple[int, int]) -> np.ndarray:
    """Two photos, normalised [2, height, width, 3]."""
    from jax.image import resize

    datasets: Any = importlib.import_module("sklearn.datasets")
    found = [x[:427, :427] / 127.5 - 1 for x in datasets.load_sample_images().images]
    return np.asarray(resize(np.float32(found), (2, *size, 3), "linear"))  # type: ignore[arg-type]


def channels_first(images: np.ndarray) -> Any:
    torch: Any = importlib.import_module("torch")
    return torch.tensor(images).permute(0, 3, 1, 2)


# Those with a ResNet are compared with timm in float64, whose own float32 is off by
# more than 1e-5 of the largest logit.
MODELS = (
    "vit_tiny_patch16_224",
    "vit_small_patch16_224",
    "vit_base_patch16_224",
    "vit_large_patch16_224",
    "vit_base_patch32_224",
    "vit_huge_patch14_224",
    "vit_tiny_r_s16_p8_224",
    "vit_small_r26_s32_224",
    "vit_base_r50_s16_224",
    "vit_medium_patch16_reg4_gap_256",
    "vit_small_patch14_reg4_dinov2",
    "vit_small_patch14_dinov2",
    "vit_base_patch16_siglip_224",
    "deit_tiny_distilled_patch16_224",
    "resnetv2_50x1_bit",
    "mixer_b16_224",
)


@pytest.mark.parametrize("name", MODELS)
def test_timm(name: str, tmp_path: Path) -> None:
    torch: Any = importlib.import_module("torch")
    timm: Any = importlib.import_module("timm")
    save: Any = importlib.import_module("safetensors.torch").save_file
    torch.manual_seed(0)
    theirs = timm.create_model(name).eval()
    with torch.no_grad():
        for path, parameter in theirs.named_parameters():
            around = float("norm" in path and path.endswith("weight"))
            around += 0.5 * path.endswith("gamma")
            parameter.copy_(torch.randn(parameter.shape) * 0.02 + around)
    file = tmp_path / "model.safetensors"
    save({k: v.contiguous() for k, v in theirs.state_dict().items()}, file)
    ours = vit_jax.load(str(file))
    images = photos(ours.image_size)
    found = np.asarray(ours(images))
    with torch.no_grad():
        pixels = channels_first(images)
        if "bit" in name or "_r" in name:
            theirs, pixels = theirs.double(), pixels.double()
        expected = theirs(pixels).numpy()
    largest, off = np.abs(expected).max(), np.abs(found - expected).max()
    print(f"{name}: largest {largest:.3f}, off by {off:.1e}")
    assert expected.std() > 0.01
    assert off < 1e-4 and off < 1e-5 * largest


HF = [n for n in drawn.fixture_names() if n.startswith("hf-")]


@pytest.mark.parametrize("name", HF)
def test_transformers_loads_what_we_write(name: str, tmp_path: Path) -> None:
    transformers: Any = importlib.import_module("transformers")
    source, target = files.of_fixture(name, tmp_path), tmp_path / "out"
    assert convert.main(["", str(source), str(target), "--to=huggingface"]) == 0
    config = json.loads((target / "config.json").read_text())
    cls = getattr(transformers, config["architectures"][0])
    found = cls.from_pretrained(target).eval()(channels_first(drawn.images((28, 28))))
    found = found.logits if hasattr(found, "logits") else found.pooler_output
    expected = drawn.fixture(name)["outputs"]
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("to", ["npz", "big_vision", "timm"])
def test_timm_loads_what_we_write(to: str, tmp_path: Path) -> None:
    torch: Any = importlib.import_module("torch")
    make: Any = importlib.import_module("tests.formats.make_fixtures")
    load: Any = importlib.import_module("safetensors.torch").load_file
    source = files.of_fixture("npz-vit", tmp_path)
    target = tmp_path / ("a.safetensors" if to == "timm" else "a.npz")
    flags = [f"--to={to}", "--allow=gelu"]
    assert convert.main(["", str(source), str(target), *flags]) == 0
    model = make.vit()
    if to == "timm":
        model.load_state_dict(load(target))
    else:
        model.load_pretrained(str(target))
    with torch.no_grad():
        found = model.eval()(channels_first(drawn.images((28, 28)))).numpy()
    expected = drawn.fixture("npz-vit")["outputs"]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two photos as files."""
    image: Any = importlib.import_module("PIL.Image")
    datasets: Any = importlib.import_module("sklearn.datasets")
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, photo in enumerate(datasets.load_sample_images().images):
        image.fromarray(photo).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize("name", HF)
def test_verify_with_transformers(
    name: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "hf"
    folder.mkdir()
    source, target = files.of_fixture(name, folder), tmp_path / "out"
    flags = [f"--verify={pictures}", "--to=huggingface"]
    assert convert.main(["", str(source), str(target), *flags]) == 0
    found = capsys.readouterr().out
    assert found.count("gives the same on 2 images") == 2
    flags = [f"--verify={pictures}", "--model.layer_norm_epsilon=0.1"]
    assert convert.main(["", str(source), *flags]) == 2
    assert "computes something else" in capsys.readouterr().err


def test_verify_with_timm(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    timm: Any = importlib.import_module("timm")
    save: Any = importlib.import_module("safetensors.torch").save_file
    name = "vit_tiny_patch16_224"
    source, target = tmp_path / "a.safetensors", tmp_path / "a.npz"
    save(timm.create_model(name, num_classes=7).state_dict(), source)
    flags = [f"--verify={pictures}", "--to=npz", "--allow=gelu"]
    assert convert.main(["", str(source), *flags[:1]]) == 2
    assert "add --timm=NAME" in capsys.readouterr().err
    assert convert.main(["", str(source), str(target), *flags, f"--timm={name}"]) == 0
    assert capsys.readouterr().out.count("gives the same on 2 images") == 2
    assert convert.main(["", str(source), *flags[:1], "--timm=vit_tny"]) == 2
    assert 'timm has no model "vit_tny"' in capsys.readouterr().err


def test_verify_without_a_head_and_with_a_stranger_s_class(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers: Any = importlib.import_module("transformers")
    folder = files.of_fixture("hf-vit", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    small = transformers.ViTConfig(**config)
    transformers.ViTModel(small).save_pretrained(tmp_path / "headless")
    flag = f"--verify={pictures}"
    assert convert.main(["", str(tmp_path / "headless"), flag]) == 0
    assert "gives the same on 2 images" in capsys.readouterr().out
    config["architectures"] = ["AutoModel"]
    (folder / "config.json").write_text(json.dumps(config))
    assert convert.main(["", str(folder), flag]) == 2
    assert 'no architecture "AutoModel"' in capsys.readouterr().err


@pytest.mark.parametrize(
    "old, new", [((7, 7), (24, 24)), ((14, 14), (16, 32)), ((37, 37), (16, 16))]
)
def test_position_embeddings_as_pytorch_resamples_them(
    old: tuple[int, int], new: tuple[int, int]
) -> None:
    """Antialiased bicubic, as timm asks for it."""
    torch: Any = importlib.import_module("torch")
    grid = np.random.default_rng(0).normal(size=(*old, 5)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.tensor(grid).permute(2, 0, 1)[None],
        size=new,
        mode="bicubic",
        antialias=True,
        align_corners=False,
    )[0].permute(1, 2, 0)
    found = position_embeddings.resample(grid, new, method="cubic")
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_onnx_through_pytorch(tmp_path: Path) -> None:
    """The way that docs/checkpoints.md shows, for any number of images."""
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")
    runtime: Any = importlib.import_module("onnxruntime")
    source, target = files.of_fixture("hf-vit", tmp_path), tmp_path / "out"
    assert convert.main(["", str(source), str(target), "--to=huggingface"]) == 0
    model = transformers.AutoModelForImageClassification.from_pretrained(target).eval()
    images = channels_first(drawn.images((28, 28)))
    path = str(tmp_path / "model.onnx")
    batch = torch.export.Dim("batch")
    torch.onnx.export(
        model, (images,), path, input_names=["images"], dynamic_shapes=({0: batch},)
    )
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    expected = np.array(drawn.fixture("hf-vit")["outputs"])
    for count in (1, 2):
        found = session.run(None, {"images": images[:count].numpy()})[0]
        np.testing.assert_allclose(found, expected[:count], atol=1e-5)


LOCAL = [
    *(f"timm-{n}" for n in ("vit", "vit-gap", "class-gap", "registers", "dinov2")),
    *(f"timm-{n}" for n in ("dinov2-swiglu", "siglip", "deit", "hybrid-root")),
    *("timm-config", "hf-vit", "hf-siglip-classifier", "npz-vit"),
]


@pytest.mark.parametrize("name", LOCAL)
def test_timm_loads_the_directory_that_we_write(name: str, tmp_path: Path) -> None:
    """`create_model` alone, which builds the model from config.json."""
    timm: Any = importlib.import_module("timm")
    torch: Any = importlib.import_module("torch")
    source, target = files.of_fixture(name, tmp_path), tmp_path / "out"
    record = drawn.fixture(name)
    flags = [f"--model.{k}={v}" for k, v in record.get("model", {}).items()]
    flags += ["--to=timm", "--allow=layer_norm_epsilon"]
    assert convert.main(["", str(source), str(target), *flags]) == 0
    model = timm.create_model(f"local-dir:{target}", pretrained=True).eval()
    with torch.no_grad():
        found = model(channels_first(drawn.images(tuple(record["image_size"])))).numpy()
    np.testing.assert_allclose(found, record["outputs"], atol=2e-5)
