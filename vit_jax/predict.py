"""python -m vit_jax.predict --checkpoint=WORKDIR_OR_FILE IMAGES...

  --checkpoint=PATH  a workdir of ours, or a checkpoint of another library
  --step=N           of a workdir: another step than the best, or else newest
  --weights=KEY      of a training checkpoint with several: which, such as state_dict;
                     default: an average, such as state_dict_ema, else the weights
  --top=N            so many classes of each image (5)
  --json             prints JSON
  --batch_size=N     images at a time (32)
  --image_size=N     or HEIGHT,WIDTH: of images as the model sees them; position
                     embeddings are resampled for another size than it was trained for
  --overlay=DIR      writes pictures: each image beside what attention makes of it, with
                     the likeliest class and its probability

IMAGES are files (JPEG, PNG, WebP, BMP, GIF, TIFF, JPEG 2000, AVIF, netpbm) and folders,
which are searched to the bottom. An image that cannot be read is said, the others are
done, and the exit code is 2.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vit_jax import errors, flags

LARGEST = 1024  # sides of a photo in an overlay, pixels


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags.

    Raises:
      UserError: for what is no flag, and what is missing.
    """
    parser = flags.Parser()
    parser.add_argument("--checkpoint")
    parser.add_argument("--step", type=int)
    parser.add_argument("--weights")
    parser.add_argument("--top", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--image_size", type=flags.image_size)
    parser.add_argument("--overlay", type=Path)
    parser.add_argument("images", nargs="*", type=Path)
    args = parser.parse(argv)
    if args.checkpoint is None or not args.images:
        raise errors.UserError(
            f"--checkpoint and images to look at are both needed:\n\n{__doc__}"
        )
    for flag in ("top", "batch_size"):
        if getattr(args, flag) < 1:
            raise errors.UserError(f"--{flag} must be at least 1")
    return args


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns its exit code, see `vit_jax.errors`."""
    try:
        return flags.run(__doc__, argv[1:], lambda: run(parse(argv[1:])))
    except KeyboardInterrupt:
        return 130


def run(args: argparse.Namespace) -> int:
    """Predicts; an image that cannot be read is told, and the others go on.

    Returns:
      0, or 2 if an image could not be read.
    """
    files = list(find_images(args.images))
    # Slow to import: after the flags are good.
    from vit_jax import devices, loading

    model = loading.load(
        args.checkpoint,
        step=args.step,
        weights=args.weights,
        image_size=args.image_size,
    )
    if not model.module.num_classes:
        raise errors.UserError(
            f"{args.checkpoint} has no head, so that it knows no classes: fine-tune it"
        )
    pictures = None
    if args.overlay is not None:
        check_attention(model)
        pictures = Overlays(args.overlay)
    found, broken = [], 0
    for start in range(0, len(files), args.batch_size):
        batch, bad = read_all(model, files[start : start + args.batch_size])
        broken += bad
        if batch:
            size = min(args.batch_size, len(files))
            with devices.enough_memory(f"Lower --batch_size ({args.batch_size})"):
                some = predict(model, batch, size=size, top=args.top)
            if not args.json:
                print("\n".join(map(as_text, some)), flush=True)
            if pictures is not None:
                pictures.write(model, batch, some)
            found += some
        if len(files) > args.batch_size and not sys.stderr.closed:
            done = min(start + args.batch_size, len(files))
            print(f"{done:,} of {len(files):,} images", file=sys.stderr)
    if args.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    if broken:
        print(
            f"error: {broken:,} of {len(files):,} images could not be read, see above",
            file=sys.stderr,
        )
    return 2 if broken else 0


class Image(NamedTuple):
    """An image of a batch.

    Attributes:
      path: of the file.
      pixels: as the model takes them, uint8 [height, width, 3].
      photo: as it is shown in an overlay, uint8 [h, w, 3].
      size: (height, width) of the whole image.
    """

    path: Path
    pixels: np.ndarray
    photo: np.ndarray
    size: tuple[int, int]


def find_images(paths: Sequence[Path]) -> Iterator[Path]:
    """The files that are named, and those in the folders that are, sorted.

    A folder gives the images that training with data.name=folder takes of one class.
    What else is in it is counted and said.

    Raises:
      UserError: if one is not there or no file, or a folder holds no image.
    """
    from vit_jax.data.decode import EXTENSIONS
    from vit_jax.data.sources import layout

    for path in paths:
        if not os.path.isdir(path):
            if not os.path.exists(path):
                raise errors.UserError(
                    f"there is no image {layout.printable(str(path))}"
                )
            if not os.path.isfile(path):
                raise errors.UserError(f"{path} is no file, but a device or a pipe")
            yield path
            continue
        inside, others = layout.images(str(path))
        left_out = layout.listed(others)
        if not inside:
            more = f"; it has {left_out}" if left_out else ""
            raise errors.UserError(
                f"the folder {path} has no image ({', '.join(EXTENSIONS)}){more}"
            )
        if left_out:
            print(
                f"{layout.printable(str(path))}: left out {left_out}", file=sys.stderr
            )
        yield from (path / name for name in inside)


def read_all(model: Any, paths: Sequence[Path]) -> tuple[list[Image], int]:
    """The images that can be read, and how many cannot; each of those is said."""
    images, broken = [], 0
    for path in paths:
        try:
            images.append(read_image(model, path))
        except errors.UserError as error:
            broken += 1
            print(f"error: {error}", file=sys.stderr)
    return images, broken


def read_image(model: Any, path: Path) -> Image:
    """An image file, as it is and as the model takes it.

    Raises:
      UserError: if it cannot be read.
    """
    from vit_jax import visualize
    from vit_jax.data import image_file
    from vit_jax.data.decode import decode
    from vit_jax.data.sources.layout import printable

    where = printable(str(path))
    try:
        whole = decode(image_file.read(path), where=where)
    except OSError as error:
        raise errors.UserError(f"{where}: {error.strerror or error}") from error
    photo = visualize.bounded(whole, LARGEST)
    try:
        pixels = model.preprocess(whole)
    except errors.UserError as error:
        raise errors.UserError(f"{where}: {error}") from error
    return Image(path, pixels, photo, (whole.shape[0], whole.shape[1]))


def read(model: Any, path: Path) -> np.ndarray:
    """An image file as the model takes it."""
    return read_image(model, path).pixels


def predict(
    model: Any, batch: Sequence[Image], *, size: int, top: int
) -> list[dict[str, Any]]:
    """The `top` classes of each image; a batch is filled up: one shape is compiled."""
    images = np.stack([image.pixels for image in batch])
    padded = np.pad(images, [(0, size - len(images)), (0, 0), (0, 0), (0, 0)])
    chances = np.asarray(model.probabilities(model(padded)))[: len(images)]
    return [
        prediction(image.path, row, model.label_names, top)
        for image, row in zip(batch, chances, strict=True)
    ]


def prediction(
    path: Path, chances: np.ndarray, names: Sequence[str] | None, top: int
) -> dict[str, Any]:
    """The `top` classes of an image, the likeliest first.

    >>> prediction(Path("a.png"), np.array([0.25, 0.75]), ["cat", "dog"], 1)
    {'file': 'a.png', 'predictions': [{'class': 1, 'name': 'dog', 'probability': 0.75}]}
    """
    order = np.argsort(-chances, kind="stable")[:top].tolist()
    return {
        "file": str(path),
        "predictions": [
            {
                "class": i,
                "name": str(i) if names is None or i >= len(names) else names[i],
                "probability": float(chances[i]),
            }
            for i in order
        ],
    }


def as_text(found: dict[str, Any]) -> str:
    """A prediction as lines: the file, then a class a line."""
    rows = [f"  {p['probability']:6.1%}  {p['name']}" for p in found["predictions"]]
    return "\n".join([found["file"], *rows])


def check_attention(model: Any) -> None:
    """Refuses a model without attention."""
    if not attention_names(model):
        raise errors.UserError("--overlay shows attention, and this model has none")


def attention_names(model: Any) -> list[str]:
    """The features that are attention weights, from the first layer to the last."""
    return [n for n in model.module.feature_names if n.endswith("/attention")]


class Overlays:
    """A folder of pictures, a PNG for each image, under its name."""

    def __init__(self, folder: Path) -> None:
        """Makes the folder.

        Raises:
          UserError: if it cannot be made.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise errors.UserError(f"--overlay={folder}: {error.strerror}") from error
        self.folder = folder
        self._taken: set[str] = set()

    def write(
        self, model: Any, batch: Sequence[Image], found: Sequence[dict[str, Any]]
    ) -> None:
        """Writes the pictures of a batch, with what was predicted."""
        import cv2

        from vit_jax import visualize

        names = attention_names(model)
        images = np.stack([image.pixels for image in batch])
        features = model.features(images, names)
        by_name = {name: np.asarray(weights) for name, weights in features.items()}
        layers = [by_name[n] for n in names if n.startswith("encoderblock")]
        for i, (image, told) in enumerate(zip(batch, found, strict=True)):
            reach = visualize.rollout([layer[i] for layer in layers])
            heat = seen_by_head(model, reach, by_name, i)
            scale = image.photo.shape[0] / image.size[0]
            region = model.preprocessing.region(image.size)
            top, left, bottom, right = (scale * place for place in region)
            picture = visualize.overlay(image.photo, heat, (top, left, bottom, right))
            best = told["predictions"][0]
            text = f"{best['name']} {best['probability']:.1%}"
            picture = visualize.with_caption(picture, text)
            target = self.folder / f"{self._name(image.path)}.png"
            done, png = cv2.imencode(".png", picture[..., ::-1])
            assert done
            target.write_bytes(png.tobytes())
            print(f"written to {target}", file=sys.stderr)

    def _name(self, path: Path) -> str:
        """The folder and the file, and a number where two are alike."""
        short = "_".join(path.with_suffix("").parts[-2:]).lstrip("/_")
        name, number = short, 2
        while name in self._taken:
            name, number = f"{short}-{number}", number + 1
        self._taken.add(name)
        return name


def seen_by_head(
    model: Any, reach: np.ndarray, weights: dict[str, np.ndarray], i: int
) -> np.ndarray:
    """Where in the image that comes from which the head sees: [rows, columns]."""
    module = model.module
    before = module.prefix_tokens
    if module.pool == "token":
        row = reach[0]
    elif module.pool == "map":
        row = weights["MAPHead_0/attention"][i].mean(axis=0)[0] @ reach
    else:
        row = reach[before:].mean(axis=0)
    patches = row[before:]
    height, width = model.image_size
    columns = round((len(patches) * width / height) ** 0.5)
    return patches.reshape(-1, columns)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
