"""python -m vit_jax.data.augment_sheet IMAGE --output=sheet.png

  --output=FILE    the picture to write (sheet.png)
  --augment=NAME   policies to show, as in config.data.train.augment; all by default
  --seed=N         of the examples

Draws a sheet of one photograph: every operation at several magnitudes, and below them
what the policies, colour jitter, random erasing, mixup and CutMix make of it.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np

from vit_jax import errors, flags, lettering
from vit_jax.data import augment, decode, image_file
from vit_jax.data.augmentation import Augment
from vit_jax.data.transforms import TrainTransform, central_crop, resize

COLUMNS = 8
SIDE, GAP, LABEL = 128, 4, 128
_TEXT = 9  # height of capital letters, pixels
Row = tuple[str, list[tuple[str, np.ndarray]]]  # its name; captions and pictures

_FACTORS = (0.0, 0.1, 0.5, 0.73, 1.0, 1.27, 1.5, 1.9)
MAGNITUDES: dict[str, Sequence[float]] = {
    "identity": (0,),
    "shear_x": (-0.99, -0.3, -0.09, 0, 0.09, 0.3, 0.5, 0.99),
    "shear_y": (-0.99, -0.3, -0.09, 0, 0.09, 0.3, 0.5, 0.99),
    "translate_x": (-58, -32, -10, 0, 10, 32, 58, 100),
    "translate_y": (-58, -32, -10, 0, 10, 32, 58, 100),
    "rotate": (-135, -30, -9, 0, 9, 30, 90, 135),
    "brightness": _FACTORS,
    "color": _FACTORS,
    "contrast": _FACTORS,
    "sharpness": (*_FACTORS[:-1], 10.0),
    "posterize": (1, 2, 3, 4, 5, 6, 7, 8),
    "solarize": (0, 43, 85, 128, 170, 213, 230, 256),
    "solarize_add": (0, 11, 33, 55, 77, 99, 110, 128),
    "autocontrast": (0,),
    "equalize": (0,),
    "invert": (0,),
    "grayscale": (0,),
    "gaussian_blur": (0.1, 0.3, 0.5, 0.8, 1.0, 1.4, 1.7, 2.0),
    "hue": (-0.5, -0.25, -0.1, 0, 0.05, 0.1, 0.25, 0.4),
}


def operation_rows(image: np.ndarray) -> list[Row]:
    """Every operation of `augment.OPERATIONS`."""
    rows = []
    for name, operation in augment.OPERATIONS.items():
        pictures = [
            (f"{m:g}" if len(MAGNITUDES[name]) > 1 else "", operation(image, m, _GREY))
            for m in MAGNITUDES[name]
        ]
        rows.append((name, pictures))
    return rows


_GREY = (128, 128, 128)


def transform_rows(image: np.ndarray, names: Sequence[Augment], seed: int) -> list[Row]:
    """What `TrainTransform` makes of the whole image, for eight examples."""
    kinds: dict[str, dict[str, Any]] = {
        "inception crop": {"crop": "inception", "flip": True},
        **{name: {"augment": name} for name in names},
        "color_jitter": {"color_jitter": (0.4, 0.4, 0.4, 0.1)},
        **{
            f"erasing {mode}": {"erasing": 1.0, "erasing_mode": mode}
            for mode in ("pixel", "color", "const")
        },
    }
    rows = []
    for name, keys in kinds.items():
        transform = TrainTransform(**{"crop": "none", "flip": False} | keys)
        draws = transform.draw(seed, np.arange(COLUMNS))
        size = image.shape[0], image.shape[1]
        pictures = [transform(image, size, draws.row(i)) for i in range(COLUMNS)]
        rows.append((name, [("", picture) for picture in pictures]))
    return rows


def mixing_rows(image: np.ndarray, seed: int) -> list[Row]:
    """Mixup and CutMix of the image and of the same upside down and inverted."""
    import jax
    import jax.numpy as jnp

    from vit_jax import devices
    from vit_jax.objectives import Mixing

    devices.find()
    pair = jnp.stack([255 - image[::-1], image])
    rows = []
    for name, mix in (
        ("mixup 0.8", Mixing(mixup=0.8)),
        ("cutmix 1.0", Mixing(mixup=0.0, cutmix=1.0)),
    ):
        pictures = []
        for key in jax.random.split(jax.random.key(seed), COLUMNS):
            images, targets = jax.jit(mix)(key, pair, jnp.eye(2), jnp.ones(2, bool))
            pixels = np.asarray(images[1]).round().astype(np.uint8)
            pictures.append((f"{float(targets[1, 1]):.2f}", pixels))
        rows.append((name, pictures))
    return rows


def draw(rows: Sequence[Row]) -> np.ndarray:
    """The sheet, uint8 RGB: a row's name on the left, captions in the pictures."""
    step = SIDE + GAP
    sheet = np.full((step * len(rows), LABEL + step * COLUMNS, 3), 255, np.uint8)
    for i, (name, pictures) in enumerate(rows):
        top = i * step
        _write(sheet, name, (4, top + SIDE // 2), (0, 0, 0))
        for j, (caption, picture) in enumerate(pictures):
            left = LABEL + j * step
            sheet[top : top + SIDE, left : left + SIDE] = picture
            if caption:
                room = lettering.width(caption, _TEXT) + 4
                sheet[top : top + 14, left : left + room] = 255
                _write(sheet, caption, (left + 2, top + 11), (200, 0, 0))
    return sheet


def _write(sheet: np.ndarray, text: str, place: tuple[int, int], color: Any) -> None:
    lettering.write(sheet, text, place, _TEXT, color)


def square(image: np.ndarray) -> np.ndarray:
    """The central square, resized to the pictures of a sheet."""
    side = min(image.shape[:2])
    return resize(np.ascontiguousarray(central_crop(image, (side, side))), (SIDE, SIDE))


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit code."""
    return flags.run(__doc__, argv[1:], lambda: print(write(parse(argv[1:]))))


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags.

    Raises:
        UserError: for what is no flag, and what is missing.
    """
    parser = flags.Parser()
    parser.add_argument("image", type=Path, nargs="?")
    parser.add_argument("--output", type=Path, default=Path("sheet.png"))
    parser.add_argument("--augment", choices=get_args(Augment)[1:])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse(argv)
    if args.image is None:
        raise errors.UserError(f"IMAGE, a picture, is needed:\n\n{__doc__}")
    if not 0 <= args.seed < 2**63:
        raise errors.UserError(f"--seed={args.seed}: expected 0 or more, below 2**63.")
    if not args.output.name:
        raise errors.UserError(f"--output={args.output}: expected a file, as sheet.png")
    return args


def write(args: argparse.Namespace) -> str:
    """Draws and writes the sheet; returns what to tell."""
    try:
        data = image_file.read(args.image)
    except OSError as e:
        raise errors.UserError(f"{args.image}: {e.strerror}; name a picture.") from e
    image = square(decode.decode(data, where=str(args.image)))
    names = [args.augment] if args.augment else get_args(Augment)[1:]
    rows = operation_rows(image) + transform_rows(image, names, args.seed)
    rows += mixing_rows(image, args.seed)
    written, png = cv2.imencode(".png", cv2.cvtColor(draw(rows), cv2.COLOR_RGB2BGR))
    assert written
    part = args.output.with_name(f"{args.output.name}.part")
    try:
        part.write_bytes(png.tobytes())
        os.replace(part, args.output)
    except OSError as e:
        raise errors.UserError(f"--output={args.output}: {e.strerror}.") from e
    return f"{len(rows)} rows written to {args.output}"


if __name__ == "__main__":
    sys.exit(main(sys.argv))
