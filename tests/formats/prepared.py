"""Ways to prepare images, as timm and transformers write them down, and two images."""

from typing import Any

import numpy as np

from tests.formats import drawn

FILE = drawn.FIXTURES / "preprocessing.npz"

_SIZE = {"input_size": [3, 16, 16], "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]}
# `pretrained_cfg` of config.json.
TIMM: dict[str, dict[str, Any]] = {
    "center": {**_SIZE, "crop_pct": 0.9, "interpolation": "bicubic"},
    "center-bilinear": {**_SIZE, "crop_pct": 0.875, "interpolation": "bilinear"},
    "whole": {**_SIZE, "crop_pct": 1.0, "crop_mode": "center"},
    "squash": {**_SIZE, "crop_pct": 1.0, "crop_mode": "squash"},
    "squash-and-crop": {**_SIZE, "crop_pct": 0.9, "crop_mode": "squash"},
    "border": {**_SIZE, "crop_pct": 1.0, "crop_mode": "border"},
    "border-and-crop": {**_SIZE, "crop_pct": 0.8, "crop_mode": "border"},
    "lanczos": {**_SIZE, "interpolation": "lanczos"},
    "box": {**_SIZE, "interpolation": "box"},
    "hamming": {**_SIZE, "interpolation": "hamming"},
    "nearest": {**_SIZE, "interpolation": "nearest"},
    "wide": {**_SIZE, "input_size": [3, 10, 24], "crop_pct": 0.9},
    "padded": {**_SIZE, "crop_pct": 1.3},
    "defaults": {"input_size": [3, 16, 16], "mean": None},
}

_SQUARE = {"height": 16, "width": 16}
# (model_type, preprocessor_config.json).
TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit", {"image_processor_type": "ViTImageProcessor", "size": _SQUARE}),
    "vit-fast": (
        "vit",
        {"image_processor_type": "ViTImageProcessorFast", "size": [16, 16]},
    ),
    "vit-of-2021": (
        "vit",
        {
            "feature_extractor_type": "ViTFeatureExtractor",
            "size": 16,
            "resample": 3,
            "image_mean": [0.4, 0.5, 0.6],
            "image_std": [0.2, 0.3, 0.25],
        },
    ),
    "no-class": ("vit", {"size": _SQUARE, "resample": 0}),
    "lanczos": ("vit", {"size": _SQUARE, "resample": 1}),
    "not-normalized": ("vit", {"size": _SQUARE, "do_normalize": False}),
    "not-rescaled": (
        "vit",
        {
            "size": _SQUARE,
            "do_rescale": False,
            "image_mean": [100, 110, 120],
            "image_std": [50, 60, 70],
        },
    ),
    "neither": (
        "vit",
        {"size": _SQUARE, "do_rescale": False, "do_normalize": False},
    ),
    "other-factor": ("vit", {"size": _SQUARE, "rescale_factor": 1 / 127.5}),
    "vit-cropped": (
        "vit",
        {"size": {"height": 20, "width": 22}, "do_center_crop": True, "crop_size": 16},
    ),
    "deit": ("deit", {"size": {"height": 18, "width": 18}, "crop_size": 16}),
    "deit-without-crop": ("deit", {"size": 16, "do_center_crop": False}),
    "siglip": (
        "siglip_vision_model",
        {"image_processor_type": "SiglipImageProcessor", "size": _SQUARE},
    ),
    "dinov2": (
        "dinov2",
        {
            "image_processor_type": "BitImageProcessor",
            "size": {"shortest_edge": 18},
            "crop_size": _SQUARE,
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225],
            "resample": 3,
            "rescale_factor": 0.00392156862745098,
        },
    ),
    "bit-defaults": ("dinov2", {"size": 17, "crop_size": 16}),
    "clip": (
        "vit",
        {"image_processor_type": "CLIPImageProcessor", "size": 16, "crop_size": 16},
    ),
    "padded": ("dinov2", {"size": {"shortest_edge": 13}, "crop_size": 16}),
    "not-resized": ("dinov2", {"do_resize": False, "crop_size": 16}),
}


def images() -> dict[str, np.ndarray]:
    """A wide and a tall picture, uint8, smooth with some noise."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:61, :92]
    waves = [np.sin(rows / (5 + i)) + np.cos(columns / (9 - i)) for i in range(3)]
    image = 128 + 50 * np.stack(waves, axis=-1) + rng.normal(0, 9, (61, 92, 3))
    wide = image.round().clip(0, 255).astype(np.uint8)
    return {"wide": wide, "tall": np.ascontiguousarray(wide.swapaxes(0, 1))}
