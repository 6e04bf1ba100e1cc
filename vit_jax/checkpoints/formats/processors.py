"""What timm and transformers write of how images are prepared, and how it is written.

timm: `pretrained_cfg` in config.json, resolved as `timm.data.resolve_data_config` does.
transformers: preprocessor_config.json, with the defaults of the class that it names.
"""

import math
from collections.abc import Mapping
from typing import Any

from vit_jax.errors import UserError, did_you_mean
from vit_jax.preprocessing import Fit, Preprocessing, Size
from vit_jax.resample import INTERPOLATIONS

Json = Mapping[str, Any]

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
_CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# Pillow's numbers.
_RESAMPLE = dict(enumerate(("nearest", "lanczos", "bilinear", "bicubic")))
_RESAMPLE |= {4: "box", 5: "hamming"}


_FITS: dict[str, Fit] = {"center": "cover", "squash": "squash", "border": "inside"}


def of_timm(config: Json, where: str) -> Preprocessing:
    """How timm prepares images for a model.

    Args:
      config: of config.json, of today or with all keys at the top as in 2021.
      where: names the file in errors.

    Raises:
      UserError: for values that timm would not take.
    """
    read = _Reader(config.get("pretrained_cfg") or config, where)
    _, *sides = read.numbers("input_size", (3, 224, 224), 3)
    height, width = (read.side("input_size", side) for side in sides)
    share = read.number("crop_pct", 0.875)
    mode = read.word("crop_mode", "center", ("center", "squash", "border"))
    # "random" is one of these two in training; timm evaluates it as the former.
    names = {**{name: name for name in INTERPOLATIONS}, "random": "bilinear"}
    mean = read.numbers("mean", _IMAGENET[0], 3)
    fill = tuple(round(255 * value) for value in mean)
    return Preprocessing(
        mean=mean,
        std=read.std("std", _IMAGENET[1]),
        fit=_FITS[mode],
        resize=(math.floor(height / share), math.floor(width / share)),
        crop=(height, width),
        interpolation=names[read.word("interpolation", "bicubic", tuple(names))],
        fill=(fill[0], fill[1], fill[2]) if mode == "border" else (0, 0, 0),
        crop_pct=share,
        library="timm",
    )


# What a class of transformers takes for granted: (mean and std), size, crop, filter,
# and whether a size that is one number is that of both sides.
_PROCESSORS: dict[str, tuple[Any, Json, int | None, int, bool]] = {
    "ViT": (_HALF, {"height": 224, "width": 224}, None, 2, True),
    "DeiT": (_HALF, {"height": 256, "width": 256}, 224, 3, True),
    "Siglip": (_HALF, {"height": 224, "width": 224}, None, 3, False),
    "Bit": (_CLIP, {"shortest_edge": 224}, 224, 3, False),
    "CLIP": (_CLIP, {"shortest_edge": 224}, 224, 3, False),
}
# Of a number; pixels are up to 255 or 65,535, and rescaled to 0..1.
_LEAST, _MOST = 1e-6, 1e6
# Of a file that names none, by the model's type.
_OF_MODEL = {
    "vit": "ViT",
    "deit": "DeiT",
    "dinov2": "Bit",
    "dinov2_with_registers": "Bit",
    "siglip": "Siglip",
    "siglip_vision_model": "Siglip",
}


def of_transformers(
    processor: Json, model_type: str, image_size: Size, where: str
) -> Preprocessing:
    """How transformers prepares images for a model.

    Args:
      processor: of preprocessor_config.json.
      model_type: of config.json.
      image_size: (height, width) of the model, of images that are not resized.
      where: names the file in errors.

    Raises:
      UserError: for a class that is not known here, and values that it would not take.
    """
    read = _Reader(processor, where)
    kind = _kind(processor, model_type, where)
    (mean, std), size, crop, filter_, square = _PROCESSORS[kind]
    fit, resize = _fit(read, size, square)
    if not read.flag("do_resize", True):
        fit, resize = "none", image_size
    crop_size = read.size("crop_size", crop)
    if not read.flag("do_center_crop", crop is not None):
        crop_size = None
    mean, std = read.numbers("image_mean", mean, 3), read.std("image_std", std)
    # Ours are of pixels in [0, 1]: (pixel / 255 - mean) / std.
    factor = read.number("rescale_factor", 1 / 255)
    if not read.flag("do_rescale", True):
        factor = 1.0
    if not read.flag("do_normalize", True):
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    scale = 255 * factor
    if not math.isclose(scale, 1.0, rel_tol=1e-4):  # some files round 1 / 255
        mean = tuple(value / scale for value in mean)
        std = tuple(value / scale for value in std)
    number = read.number("resample", filter_)
    if number not in _RESAMPLE:
        read.refuse("resample", f"one of {sorted(_RESAMPLE)}")
    return Preprocessing(
        mean=mean,
        std=std,
        fit=fit,
        resize=resize,
        crop=crop_size,
        interpolation=_RESAMPLE[int(number)],
    )


def _kind(processor: Json, model_type: str, where: str) -> str:
    """Which of `_PROCESSORS`: ViTFeatureExtractor and ViTImageProcessorFast are ViT."""
    name = processor.get("image_processor_type")
    name = processor.get("feature_extractor_type") if name is None else name
    if name is None:
        return _OF_MODEL.get(model_type, "ViT")
    short = str(name)
    for end in ("Fast", "Pil", "ImageProcessor", "FeatureExtractor"):
        short = short.removesuffix(end)
    if short not in _PROCESSORS:
        known = [f"{kind}ImageProcessor" for kind in _PROCESSORS]
        raise UserError(
            f'{where} has image_processor_type "{name}", which prepares images in a '
            f"way that is not known here; {did_you_mean(str(name), known)}"
        )
    return short


def _fit(read: "_Reader", default: Json, square: bool) -> tuple[Any, Size]:
    """How `size` is meant, and the size."""
    size = read.get("size", default)
    if isinstance(size, int) and not isinstance(size, bool):
        size = {"height": size, "width": size} if square else {"shortest_edge": size}
    if isinstance(size, Mapping) and set(size) == {"shortest_edge"}:
        side = read.side("size", size["shortest_edge"])
        return "cover", (side, side)
    found = read.size("size", None)
    assert found is not None or size is default
    return "squash", found or (default["height"], default["width"])


class _Reader:
    """Values of a JSON object, of the types that they should be."""

    def __init__(self, values: Any, where: str) -> None:
        self.where = where
        self.values: Json = values if isinstance(values, Mapping) else {}

    def refuse(self, key: str, expected: str) -> None:
        raise UserError(
            f"{self.where}: {key} is {str(self.values[key])[:60]}; expected {expected}"
        )

    def get(self, key: str, default: Any) -> Any:
        """As those libraries read it: null is as if it were not there."""
        value = self.values.get(key)
        return default if value is None else value

    def flag(self, key: str, default: bool) -> bool:
        return bool(self.get(key, default))

    def number(self, key: str, default: float) -> float:
        value = self.get(key, default)
        if not _is_number(value) or value < (0 if key == "resample" else _LEAST):
            self.refuse(key, f"a number above 0, at least {_LEAST:g}")
        return value

    def word(self, key: str, default: str, choices: tuple[str, ...]) -> str:
        value = self.get(key, default)
        if value not in choices:
            self.refuse(key, f"one of {', '.join(choices)}")
        return value

    def numbers(
        self, key: str, default: tuple[float, ...], count: int
    ) -> tuple[float, ...]:
        value = self.get(key, default)
        if _is_number(value):
            value = (value,) * count
        if (
            not isinstance(value, list | tuple)
            or len(value) != count
            or not all(_is_number(number) for number in value)
        ):
            self.refuse(key, f"{count} numbers")
        return tuple(value)

    def std(self, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
        value = self.numbers(key, default, 3)
        if min(value) < _LEAST:
            self.refuse(key, f"3 numbers above 0, at least {_LEAST:g}")
        return value

    def side(self, key: str, value: Any) -> int:
        if not isinstance(value, int) or not 0 < value < 2**16:
            self.refuse(key, "pixels, as a whole number")
        return value

    def size(self, key: str, default: int | None) -> Size | None:
        """A number for both sides, [height, width], or {"height": .., "width": ..}."""
        value = self.get(key, default)
        if value is None:
            return None
        if isinstance(value, Mapping) and set(value) == {"height", "width"}:
            value = (value["height"], value["width"])
        elif isinstance(value, int):
            value = (value, value)
        if not isinstance(value, list | tuple) or len(value) != 2:
            self.refuse(key, 'a number, {"shortest_edge"} or {"height", "width"}')
        return self.side(key, value[0]), self.side(key, value[1])


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) < _MOST  # an integer of JSON may be too large for a float
    )


# Where images shrink ours averages over areas. Pillow's box filter is nearest to that,
# but PyTorch has none for tensors, as transformers resizes them, and it makes blocks of
# what grows; bilinear is what ours does there, and 1 to 3 of 255 from it elsewhere.
_INSTEAD_OF_AREA = (
    "images are resized with Pillow's bilinear filter there, and by averaging over "
    "areas here"
)


def to_timm(about: Preprocessing, image_size: Size) -> tuple[dict[str, Any], list[str]]:
    """Keys of `pretrained_cfg`, and what timm does differently, as sentences.

    Args:
      about: of a model's images.
      image_size: (height, width) of the model.
    """
    unlike = [_INSTEAD_OF_AREA] if about.interpolation == "area" else []
    crop = about.size or image_size
    share = about.crop_pct
    if share is None:
        # So that timm finds the size again, which it cuts off to whole pixels.
        exact = min(a / b for a, b in zip(crop, about.resize, strict=True))
        found = math.floor(crop[0] / exact) == about.resize[0]
        share = exact if found else crop[0] / (about.resize[0] + 0.5)
    if about.fit == "none":
        unlike.append("timm resizes all images, and here they stay as they are")
        share = 1.0
    if about.library != "timm" and about.crop is not None:
        unlike.append(_margins("further down or right in timm"))
    modes = {fit: mode for mode, fit in _FITS.items()}
    area = about.interpolation == "area"
    return {
        "input_size": [3, *crop],
        "interpolation": "bilinear" if area else about.interpolation,
        "crop_pct": share,
        "crop_mode": modes[about.fit] if about.fit in modes else "center",
        "mean": list(about.mean),
        "std": list(about.std),
    }, unlike


def _margins(where: str) -> str:
    return f"where the margins of a crop cannot be equal, it may be a pixel {where}"


def to_transformers(about: Preprocessing) -> tuple[dict[str, Any], list[str]]:
    """preprocessor_config.json, and what transformers does differently, as sentences.

    `AutoImageProcessor` of transformers 4 and 5 reads it.

    Args:
      about: of a model's images.
    """
    kind, size, unlike = "ViT", _by_side(about.resize), list[str]()
    names = {name: i for i, name in _RESAMPLE.items()} | {"area": 2}
    if about.interpolation == "area":
        unlike.append(_INSTEAD_OF_AREA)
    whole = about.fit in ("squash", "inside") and about.crop == about.resize
    crop = None if whole else about.crop
    if about.fit == "cover" and about.resize[0] == about.resize[1]:
        kind, size = "Bit", {"shortest_edge": about.resize[0]}
    elif about.fit in ("cover", "inside"):
        kind = "DeiT" if crop is not None else "ViT"
        unlike.append(
            "transformers has no such way to resize: it will distort images to "
            f"{about.resize[0]} x {about.resize[1]}, where here their shape is kept"
        )
    elif crop is not None:
        kind = "DeiT"
    if crop is not None and about.library == "timm":
        unlike.append(_margins("further up or left in transformers"))
    found: dict[str, Any] = {
        "image_processor_type": f"{kind}ImageProcessor",
        "do_resize": about.fit != "none",
        "size": size,
        "resample": names[about.interpolation],
        "do_center_crop": crop is not None,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(about.mean),
        "image_std": list(about.std),
    }
    if crop is not None:
        found["crop_size"] = _by_side(crop)
    return found, unlike


def of_json(values: Json) -> Preprocessing:
    """From what `dataclasses.asdict` made, and JSON kept.

    Raises:
      KeyError, TypeError, ValueError: if it was something else.
    """
    read = _Reader(values, "preprocessing")
    fill = read.numbers("fill", (0, 0, 0), 3)
    share = values["crop_pct"]
    resize = read.size("resize", 224)
    assert resize is not None
    fits = ("cover", "squash", "inside", "none")
    found: Any = {
        "fit": read.word("fit", "squash", fits),
        "library": read.word("library", "timm", ("timm", "transformers", "vit_jax")),
    }
    return Preprocessing(
        mean=read.numbers("mean", _HALF[0], 3),
        std=read.std("std", _HALF[1]),
        resize=resize,
        crop=read.size("crop", None),
        interpolation=read.word("interpolation", "area", (*INTERPOLATIONS, "area")),
        fill=(int(fill[0]), int(fill[1]), int(fill[2])),
        crop_pct=None if share is None else read.number("crop_pct", 1.0),
        **found,
    )


def _by_side(size: Size) -> dict[str, int]:
    return {"height": size[0], "width": size[1]}
