"""What timm and transformers make of two photos themselves: `make test-crosscheck`."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest

import vit_jax
import vit_jax.loading
import vit_jax.preprocessing
from tests.formats import files
from vit_jax import convert

pytestmark = pytest.mark.crosscheck

# Since 13 Pillow begins with the side that shrinks more, as timm's pixels show there.
NEW = int(PIL.__version__.split(".")[0]) >= 13


def photos() -> list[np.ndarray]:
    """Of 427 x 640 and of 640 x 427 pixels."""
    datasets: Any = importlib.import_module("sklearn.datasets")
    wide = datasets.load_sample_images().images
    return [*wide, *(np.ascontiguousarray(x.swapaxes(0, 1)) for x in wide)]


def picture(image: np.ndarray) -> Any:
    pil: Any = importlib.import_module("PIL.Image")
    return pil.fromarray(image)


def normalised(model: vit_jax.loading.Model, image: np.ndarray) -> np.ndarray:
    """float32 [3, h, w]."""
    pixels = (model.preprocess(image) / 255 - model.mean) / model.std
    return pixels.transpose(2, 0, 1).astype(np.float32)


def off_by(model: vit_jax.loading.Model, image: np.ndarray, theirs: Any) -> float:
    """The largest difference, of 255."""
    ours = normalised(model, image)
    assert ours.shape == theirs.shape
    scale = np.asarray(model.std)[:, None, None] * 255
    return float(np.abs((ours - np.asarray(theirs)) * scale).max())


def drawn(model: Any) -> Any:
    """A PyTorch model with weights that make attention and biases matter."""
    torch: Any = importlib.import_module("torch")
    torch.manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            scale = 1.3 / p[0].numel() ** 0.5 if p.ndim > 1 else 0.3
            around = float("norm" in name and name.endswith("weight"))
            p.copy_(torch.randn(p.shape) * scale + around)
    return model.eval()


TIMM: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "center": ("vit_tiny_patch16_224", {"depth": 1}, {}),
    "lanczos": (
        "vit_tiny_patch16_224",
        {"depth": 1},
        {"crop_mode": "squash", "crop_pct": 1.0, "interpolation": "lanczos"},
    ),
    "border": ("vit_tiny_patch16_224", {"depth": 1}, {"crop_mode": "border"}),
    "wide": ("vit_tiny_patch16_224", {"depth": 1, "img_size": (128, 512)}, {}),
    "bit": ("resnetv2_50x1_bit", {}, {"input_size": (3, 160, 160), "crop_pct": 1.0}),
}


def timm_folder(name: str, path: Path) -> Any:
    """What timm's own saving code writes; returns the model and its transform."""
    timm: Any = importlib.import_module("timm")
    architecture, keys, cfg = TIMM[name]
    model = drawn(timm.create_model(architecture, **keys))
    model.pretrained_cfg = {**model.pretrained_cfg, **cfg}
    timm.models.save_for_hf(model, path, safe_serialization=True)
    written = json.loads((path / "config.json").read_text())["pretrained_cfg"]
    about = timm.data.resolve_data_config(pretrained_cfg=written)
    return model, timm.data.create_transform(**about)


@pytest.mark.parametrize("name", TIMM)
def test_timm_s_folder(name: str, tmp_path: Path) -> None:
    torch: Any = importlib.import_module("torch")
    theirs, transform = timm_folder(name, tmp_path)
    model = vit_jax.load(str(tmp_path))
    for image in photos():
        pixels = transform(picture(image))
        assert off_by(model, image, pixels) <= (1e-3 if NEW else 11)
    image = photos()[0]
    found = np.asarray(model(model.preprocess(image)[None]))
    with torch.no_grad():
        expected = theirs(transform(picture(image))[None]).numpy()
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_timm_at_another_size(tmp_path: Path) -> None:
    """As timm resamples for `create_model(.., img_size=288)` and prepares images."""
    torch: Any = importlib.import_module("torch")
    timm: Any = importlib.import_module("timm")
    vits: Any = importlib.import_module("timm.models.vision_transformer")
    small, _ = timm_folder("center", tmp_path)
    large = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=288).eval()
    weights = vits.checkpoint_filter_fn(small.state_dict(), large)
    large.load_state_dict(weights)
    about = timm.data.resolve_data_config({"img_size": 288}, small.pretrained_cfg)
    transform = timm.data.create_transform(**about)
    model = vit_jax.load(str(tmp_path), image_size=288)
    for image in photos():
        pixels = transform(picture(image))
        assert off_by(model, image, pixels) <= (1e-3 if NEW else 11)
        with torch.no_grad():
            expected = large(pixels[None]).numpy()
        found = np.asarray(model(pixels[None].permute(0, 2, 3, 1).numpy()))
        assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
SMALL |= {"patch_size": 14}
# Class of the model, its image size, class of the processor and its keys.
HF: dict[str, tuple[str, int, str, dict[str, Any]]] = {
    "vit": ("ViT", 98, "ViT", {"size": 98}),
    "vit-cubic": ("ViT", 98, "ViT", {"size": 98, "resample": 3}),
    "vit-larger": ("ViT", 70, "ViT", {"size": {"height": 98, "width": 98}}),
    "deit": ("DeiT", 224, "DeiT", {}),
    "dinov2": (
        "Dinov2",
        518,
        "Bit",
        {"size": {"shortest_edge": 256}, "crop_size": 224},
    ),
    "dinov2-registers": (
        "Dinov2WithRegisters",
        518,
        "Bit",
        {"size": {"shortest_edge": 256}, "crop_size": 224},
    ),
    "siglip": ("SiglipVision", 70, "Siglip", {"size": {"height": 70, "width": 70}}),
    "clip-style": ("ViT", 224, "CLIP", {}),
}


@pytest.mark.parametrize("name", HF)
def test_transformers_folder(name: str, tmp_path: Path) -> None:
    """PyTorch's filters on tensors, the default there, and Pillow's on images."""
    t: Any = importlib.import_module("transformers")
    torch: Any = importlib.import_module("torch")
    kind, size, processor, keys = HF[name]
    config = getattr(t, f"{kind}Config")(**SMALL, image_size=size)
    theirs = drawn(getattr(t, f"{kind}Model")(config))
    theirs.save_pretrained(tmp_path)
    getattr(t, f"{processor}ImageProcessor")(**keys).save_pretrained(tmp_path)
    model = vit_jax.load(str(tmp_path))
    found: list[Any] = []
    for backend, most in (("torchvision", 1.001), ("pil", 6)):
        prepare = t.AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
        for image in photos():
            pixels = prepare(picture(image), return_tensors="pt")["pixel_values"]
            assert off_by(model, image, pixels[0]) <= most, backend
            found.append(pixels)
    images = torch.cat(found[:2])
    extra = {} if "dino" in name else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        outputs = theirs(images, **extra)
    expected = outputs.pooler_output if "siglip" in name else outputs[0][:, 0]
    ours = np.asarray(model(images.permute(0, 2, 3, 1).numpy()))
    off = np.abs(ours - expected.numpy()).max()
    assert off < 1e-4 * np.abs(expected.numpy()).max()


@pytest.mark.parametrize("name", ["center", "lanczos"])
def test_transformers_sees_what_is_written_of_timm_s(name: str, tmp_path: Path) -> None:
    """The same pixels as we do from what was written, and nearly those of timm."""
    t: Any = importlib.import_module("transformers")
    _, transform = timm_folder(name, tmp_path / "timm")
    out = tmp_path / "hf"
    assert convert.main(["", str(tmp_path / "timm"), str(out), "--to=huggingface"]) == 0
    model = vit_jax.load(str(out))
    prepare = t.AutoImageProcessor.from_pretrained(out)
    for image in photos():
        pixels = prepare(picture(image), return_tensors="pt")["pixel_values"][0]
        assert off_by(model, image, pixels) <= 1.001
        theirs = transform(picture(image))
        # In "center" a margin of 147 pixels is 73 and 74, or 74 and 73.
        shifted = theirs.roll((name == "center") * (image.shape[1] > 427), 2)
        shifted = shifted.roll((name == "center") * (image.shape[1] == 427), 1)
        inside = np.abs((pixels - shifted).numpy())[:, 1:, 1:]
        assert inside.max() * max(model.std) * 255 <= 11


def test_transformers_sees_what_is_written_of_ours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    t: Any = importlib.import_module("transformers")
    source = files.of_fixture("hf-vit", tmp_path)
    own = vit_jax.preprocessing.Preprocessing(
        fit="cover",
        resize=(32, 32),
        crop=(28, 28),
        interpolation="area",
        library="vit_jax",
    )
    loaded = vit_jax.load(str(source))
    writing: Any = importlib.import_module("vit_jax.checkpoints.formats.writing")
    out = tmp_path / "out"
    writing.write_checkpoint(
        out,
        "huggingface",
        model=loaded.config,
        params=loaded.arrays(),
        image_size=(28, 28),
        preprocessing=own,
        loss="sigmoid_xent",
    )
    config = t.AutoConfig.from_pretrained(out)
    assert config.problem_type == "multi_label_classification"
    prepare = t.AutoImageProcessor.from_pretrained(out)
    model = vit_jax.load(str(out))
    for image in photos():
        pixels = prepare(picture(image), return_tensors="pt")["pixel_values"][0]
        assert off_by(model, image, pixels) <= 1.001
        assert np.abs(model.preprocess(image).astype(int) - own(image)).mean() < 12
    pipe = t.pipeline("image-classification", str(out), image_processor=prepare)
    scores = {x["label"]: x["score"] for x in pipe(picture(photos()[0]), top_k=None)}
    chances = model.probabilities(model(model.preprocess(photos()[0])[None]))[0]
    for label, chance in zip(model.label_names or (), chances, strict=True):
        assert scores[label] == pytest.approx(float(chance), abs=5e-3)
