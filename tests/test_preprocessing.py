"""Images are prepared as the library does it that a checkpoint is of."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from tests.formats import prepared
from vit_jax.checkpoints.formats import processors
from vit_jax.data import EvalTransform
from vit_jax.errors import UserError
from vit_jax.loading import as_preprocessing
from vit_jax.preprocessing import Preprocessing

EXPECTED = np.load(prepared.FILE)
IMAGES = prepared.images()


def assert_same(about: Preprocessing, name: str, most: float = 1.0) -> None:
    """Equal to what the library made, up to `most` of 255."""
    for shape, image in IMAGES.items():
        pixels = (about(image) / 255 - about.mean) / about.std
        expected = EXPECTED[f"{name}/{shape}"]
        assert pixels.shape == expected.shape, shape
        off = np.abs(pixels - expected) * about.std * 255
        assert off.max() <= most + 1e-3, (shape, off.max())


@pytest.mark.parametrize("name", prepared.TIMM)
def test_timm(name: str) -> None:
    about = processors.of_timm({"pretrained_cfg": prepared.TIMM[name]}, "config.json")
    assert_same(about, f"timm/{name}", most=0.0)
    flat = {"architecture": "vit_tiny_patch16_224", **prepared.TIMM[name]}
    assert processors.of_timm(flat, "config.json") == about


@pytest.mark.parametrize("name", prepared.TRANSFORMERS)
def test_transformers(name: str) -> None:
    model_type, config = prepared.TRANSFORMERS[name]
    about = processors.of_transformers(config, model_type, (16, 16), "p.json")
    # PyTorch's own filters of 8 bits round in another place than Pillow's.
    assert_same(about, f"transformers/{name}")


def test_images_at_another_size() -> None:
    cfg = {**prepared.TIMM["center"], "input_size": [3, 224, 224], "crop_pct": 0.9}
    about = processors.of_timm({"pretrained_cfg": cfg}, "config.json")
    assert about.resize == (248, 248)
    assert about.at((448, 448)).resize == (497, 497)  # floor(448 / 0.9), as timm
    assert about.at((448, 448))(IMAGES["wide"]).shape == (448, 448, 3)
    _, config = prepared.TRANSFORMERS["dinov2"]
    about = processors.of_transformers(config, "dinov2", (16, 16), "p.json")
    assert about.at((32, 48)).resize == (36, 54)
    config = {"size": {"shortest_edge": 20}}
    about = processors.of_transformers(config, "vit", (16, 16), "p.json")
    assert about.size is None
    assert about.at((16, 16))(IMAGES["tall"]).shape == (16, 16, 3)


def test_timm_evaluates_random_interpolation_as_bilinear() -> None:
    cfg = {"input_size": [3, 16, 16], "interpolation": "random"}
    assert processors.of_timm(cfg, "c.json").interpolation == "bilinear"


def test_the_real_defaults() -> None:
    about = processors.of_timm({"pretrained_cfg": {}}, "config.json")
    assert (about.crop, about.resize) == ((224, 224), (256, 256))
    assert about.mean == (0.485, 0.456, 0.406)
    for model_type, size, crop in (
        ("vit", (224, 224), None),
        ("deit", (256, 256), (224, 224)),
        ("dinov2", (224, 224), (224, 224)),
        ("siglip", (224, 224), None),
    ):
        about = processors.of_transformers({}, model_type, (8, 8), "p.json")
        assert (about.resize, about.crop) == (size, crop)


@pytest.mark.parametrize(
    "config, expected",
    [
        ({"size": {"longest_edge": 3}}, "size is"),
        ({"size": {"height": 16, "width": "a"}}, "size is"),
        ({"size": -1}, "size is"),
        ({"crop_size": [1, 2, 3], "do_center_crop": True}, "crop_size is"),
        ({"image_mean": [0.5, 0.5]}, "image_mean is"),
        ({"image_std": [0.5, 0.5, 0]}, "image_std is"),
        ({"image_mean": [0.5, float("nan"), 0.5]}, "image_mean is"),
        ({"resample": 9}, "resample is"),
        ({"resample": "bicubic"}, "resample is"),
        ({"rescale_factor": 0}, "rescale_factor is"),
        ({"rescale_factor": 1e30}, "rescale_factor is"),
        ({"rescale_factor": 10**400}, "rescale_factor is"),
        ({"image_mean": [0.5, 0.5, 10**400]}, "image_mean is"),
        ({"image_std": [1e-300, 1, 1]}, "image_std is"),
        ({"image_std": 1e30}, "image_std is"),
        ({"image_processor_type": "VitImageProcessor"}, "did you mean"),
        ({"image_processor_type": ["ViT"]}, "not known here"),
    ],
)
def test_odd_values_of_transformers(config: Any, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        processors.of_transformers(config, "vit", (16, 16), "p.json")


@pytest.mark.parametrize(
    "config, expected",
    [
        ({"input_size": [16, 16]}, "input_size is"),
        ({"input_size": [3, 1e9, 16]}, "input_size is"),
        ({"input_size": "224"}, "input_size is"),
        ({"crop_pct": "0.9"}, "crop_pct is"),
        ({"crop_pct": -1}, "crop_pct is"),
        ({"crop_mode": "middle"}, "crop_mode is"),
        ({"interpolation": "cubic"}, "interpolation is"),
        ({"interpolation": ["bicubic"]}, "interpolation is"),
        ({"mean": [1, 2]}, "mean is"),
        ({"std": [0, 0, 0]}, "std is"),
    ],
)
def test_odd_values_of_timm(config: Any, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        processors.of_timm({"pretrained_cfg": config}, "config.json")


def test_what_is_not_resized_must_fit() -> None:
    config = {"do_resize": False}
    about = processors.of_transformers(config, "vit", (61, 92), "p.json")
    np.testing.assert_array_equal(about(IMAGES["wide"]), IMAGES["wide"])
    with pytest.raises(UserError, match=r"92 x 61.*expected 61 x 92"):
        about(IMAGES["tall"])


@pytest.mark.parametrize("name", prepared.TRANSFORMERS)
def test_written_for_transformers_it_reads_the_same(name: str) -> None:
    model_type, config = prepared.TRANSFORMERS[name]
    about = processors.of_transformers(config, model_type, (16, 16), "p.json")
    text, unlike = processors.to_transformers(about)
    again = json.loads(json.dumps(text))
    found = processors.of_transformers(again, model_type, (16, 16), "p.json")
    for image in IMAGES.values():
        np.testing.assert_array_equal(found(image), about(image))
    np.testing.assert_allclose(found.mean + found.std, about.mean + about.std)
    assert not unlike


@pytest.mark.parametrize("name", prepared.TIMM)
def test_written_for_timm_it_reads_the_same(name: str) -> None:
    about = processors.of_timm({"pretrained_cfg": prepared.TIMM[name]}, "config.json")
    text, unlike = processors.to_timm(about, (16, 16))
    assert processors.of_timm({"pretrained_cfg": text}, "config.json") == about
    assert not unlike


@pytest.mark.parametrize("name", ["dinov2", "deit", "siglip", "vit-cropped"])
def test_of_transformers_written_for_timm(name: str) -> None:
    """The sizes are the same; that a crop of odd margins may not be is said."""
    model_type, config = prepared.TRANSFORMERS[name]
    about = processors.of_transformers(config, model_type, (16, 16), "p.json")
    text, unlike = processors.to_timm(about, (16, 16))
    again = processors.of_timm({"pretrained_cfg": text}, "config.json")
    assert again.crop == (16, 16) and again.fit == about.fit
    assert again.resize[0] == about.resize[0]
    assert [line for line in unlike if "margins" in line] == unlike[: name != "siglip"]


@pytest.mark.parametrize("name", prepared.TIMM)
def test_of_timm_written_for_transformers(name: str) -> None:
    """Nearly the same, or it is said what is not."""
    about = processors.of_timm({"pretrained_cfg": prepared.TIMM[name]}, "config.json")
    text, unlike = processors.to_transformers(about)
    found = processors.of_transformers(text, "vit", (16, 16), "p.json")
    assert found.size == about.size and found.mean == about.mean
    if about.fit == "squash" and about.crop == about.resize:
        assert not unlike
    elif about.fit == "inside" or about.resize[0] != about.resize[1]:
        assert any("will distort" in line for line in unlike)
    else:
        assert len(unlike) == 1 and "pixel further up or left" in unlike[0]


@pytest.mark.parametrize(
    "transform, size",
    [
        ({}, (16, 16)),
        ({"resize": 20}, (16, 16)),
        ({"resize": 100}, (90, 90)),
        ({}, (12, 30)),
        ({"crop": "none"}, (12, 30)),
    ],
)
def test_our_own_evaluation_is_described(transform: Any, size: tuple[int, int]) -> None:
    evaluated = EvalTransform(**transform)
    about = as_preprocessing(evaluated, size, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    again = processors.of_json(json.loads(json.dumps(dataclasses.asdict(about))))
    assert again == about
    for image in IMAGES.values():
        np.testing.assert_array_equal(again(image), evaluated(image, size))
    for _, unlike in (
        processors.to_timm(about, size),
        processors.to_transformers(about),
    ):
        assert "averaging over areas" in unlike[0]
