"""python -m vit_jax.predict --checkpoint=WORKDIR_OR_FILE IMAGES...

  --checkpoint=PATH  a workdir of ours, or a checkpoint of another library
  --step=N           of a workdir: another step than the best, or else newest
  --weights=KEY      of a training checkpoint with several: which, such as state_dict;
                     default: an average, such as state_dict_ema, else the weights
  --top=N            so many classes of each image (5)
  --json             prints JSON
  --batch_size=N     images at a time (32)
  --overlay=DIR      writes pictures: each image beside what attention makes of it

IMAGES are files (JPEG, PNG, WebP, BMP) and folders, which are searched to the bottom.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax import errors, flags

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


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
    from vit_jax import loading

    model = loading.load(args.checkpoint, step=args.step, weights=args.weights)
    if not model.module.num_classes:
        raise errors.UserError(
            f"{args.checkpoint} has no head, so that it knows no classes: fine-tune it"
        )
    if args.overlay is not None:
        check_attention(model)
        args.overlay.mkdir(parents=True, exist_ok=True)
    broken, found = 0, []
    for start in range(0, len(files), args.batch_size):
        batch = []
        for path in files[start : start + args.batch_size]:
            try:
                batch.append((path, read(model, path)))
            except errors.UserError as error:
                broken += 1
                print(f"error: {error}", file=sys.stderr)
        if not batch:
            continue
        images = np.stack([image for _, image in batch])
        # The last batch is filled up: one shape is compiled.
        padding = (min(args.batch_size, len(files)) - len(images), 0, 0, 0)
        padded = np.pad(images, [(0, max(n, 0)) for n in padding])
        chances = np.asarray(model.probabilities(model(padded)))[: len(images)]
        for (path, _), row in zip(batch, chances, strict=True):
            found.append(prediction(path, row, model.label_names, args.top))
            if not args.json:
                print(as_text(found[-1]), flush=True)
        if args.overlay is not None:
            write_overlays(model, args.overlay, batch)
        if len(files) > args.batch_size and not sys.stderr.closed:
            done = min(start + args.batch_size, len(files))
            print(f"{done:,} of {len(files):,} images", file=sys.stderr)
    if args.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    return 2 if broken else 0


def find_images(paths: Sequence[Path]) -> Iterator[Path]:
    """The files that are named, and those in the folders that are, sorted.

    Raises:
      UserError: if one is not there, or a folder holds no image.
    """
    for path in paths:
        if not path.is_dir():
            if not path.exists():
                raise errors.UserError(f"there is no image {path}")
            yield path
            continue
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
        if not inside:
            raise errors.UserError(
                f"the folder {path} has no image ({', '.join(SUFFIXES)})"
            )
        yield from inside


def read(model: Any, path: Path) -> np.ndarray:
    """An image file as the model takes it."""
    from vit_jax.data.decode import decode

    try:
        return model.preprocess(decode(path.read_bytes(), where=str(path)))
    except OSError as error:
        raise errors.UserError(f"{path}: {error.strerror or error}") from error


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
                "name": names[i] if names is not None else str(i),
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


def write_overlays(
    model: Any, folder: Path, batch: Sequence[tuple[Path, np.ndarray]]
) -> None:
    """A PNG for each image, under its name."""
    import cv2

    from vit_jax import visualize

    images = np.stack([image for _, image in batch])
    names = attention_names(model)
    found = model.features(images, names)
    by_name = {name: np.asarray(weights) for name, weights in found.items()}
    layers = [by_name[n] for n in names if n.startswith("encoderblock")]
    for i, (path, image) in enumerate(batch):
        reach = visualize.rollout([layer[i] for layer in layers])
        heat = seen_by_head(model, reach, by_name, i)
        picture = visualize.overlay(image, heat)
        target = folder / f"{'_'.join(path.with_suffix('').parts[-2:])}.png"
        done, png = cv2.imencode(".png", picture[..., ::-1])
        assert done
        target.write_bytes(png.tobytes())
        print(f"written to {target}", file=sys.stderr)


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
