"""python -m vit_jax.convert SRC [DST --to=FORMAT]

  SRC              a workdir of ours, or a checkpoint of another library
  DST              without it the table alone is printed. For npz and big_vision a new
                   file that ends in .npz; for timm a directory that
                   timm.create_model("local-dir:DST", pretrained=True) loads, or, if it
                   ends in .safetensors, the weights alone; else a new directory
  --to=FORMAT      npz (as the paper's authors publish), big_vision, timm, huggingface,
                   or stablehlo: a program that needs jax alone, see vit_jax/export.py
  --step=N         of a workdir: another step than the best, or else newest
  --weights=KEY    of a training checkpoint with several: which, such as state_dict;
                   default: an average, such as state_dict_ema, else the weights
  --allow=NAME     a tensor of SRC (or a pattern of them) that may be left over, a bias
                   that may be missing, or a field, such as gelu, that FORMAT cannot
                   say; repeatable
  --image_size=N   or HEIGHT,WIDTH: position embeddings are resampled for images of
                   another size; also, where they are of no square and SRC does not say
                   it, the size that they are of
  --verify=IMAGES  compares what timm or transformers, if they are installed, compute of
                   SRC and of DST with what we do: a file, or a folder of images
  --timm=NAME      what timm calls the model, which its files do not say
  --model.KEY=V    a field of the model that SRC does not tell, such as num_heads

Prints what maps to what. What is written is read back and compared, bit for bit.
"""

import argparse
import ast
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vit_jax import errors, flags
from vit_jax.checkpoints.formats import processors
from vit_jax.preprocessing import Preprocessing

FORMATS = ("npz", "big_vision", "timm", "huggingface", "stablehlo")


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The flags, and the fields of the model.

    Raises:
      UserError: for what is no flag, and what is missing.
    """
    parser = flags.Parser()
    parser.add_argument("source", nargs="?")
    parser.add_argument("target", nargs="?", type=Path)
    parser.add_argument("--to")
    parser.add_argument("--step", type=int)
    parser.add_argument("--weights")
    parser.add_argument("--image_size", type=flags.image_size)
    parser.add_argument("--verify", type=Path)
    parser.add_argument("--timm")
    parser.add_argument("--allow", action="append", default=[])
    fields = [a for a in argv if a.startswith("--model.")]
    args = parser.parse([a for a in argv if a not in fields])
    if args.source is None or (args.target is None) != (args.to is None):
        raise errors.UserError(f"SRC, or SRC DST and --to, are needed:\n\n{__doc__}")
    if args.to is not None and args.to not in FORMATS:
        hint = errors.did_you_mean(args.to, FORMATS)
        raise errors.UserError(f"--to={args.to} is no format; {hint}")
    pairs = [a.removeprefix("--model.").partition("=") for a in fields]
    return args, {key: value(text) for key, _, text in pairs}


def value(text: str) -> Any:
    """A number, a tuple or a word.

    >>> value("12"), value("3,4,9"), value("erf")
    (12, (3, 4, 9), 'erf')
    """
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns its exit code, see `vit_jax.errors`."""
    return flags.run(__doc__, argv[1:], lambda: run(*parse(argv[1:])))


def run(args: argparse.Namespace, model: dict[str, Any]) -> None:
    """Prints the table; writes, if there is a target."""
    from vit_jax import checkpoints, devices, export, loading, workdirs
    from vit_jax.checkpoints.formats import augreg, opening, writing

    devices.find()
    source, size = workdirs.absolute(args.source), args.image_size
    is_run = checkpoints.is_run(source)
    places = to_verify(args, Path(source), is_run) if args.verify is not None else []
    if not source.exists():
        raise errors.UserError(f"{args.source}: there is no such file or directory")
    found = None
    if not is_run:
        found = opening.open_checkpoint(
            workdirs.local(source), resolution=size, model=model, weights=args.weights
        )
        # What is written has the positions of SRC unless another size is asked for.
        size = found.image_size if size is None else size
        print(f"{args.source} is of {found.format}.")
        if args.target is None and args.verify is None:  # else loading says it
            for line in found.said:
                print(f"  {line}")
        if (said := augreg.describe(Path(source).name)) is not None:
            print(f"By its name: {said}.")
        print_table(found.table())
        found.check_complete(args.allow)
    if args.target is None and args.verify is None:
        return
    loaded = loading.load(
        args.source,
        step=args.step,
        weights=args.weights,
        image_size=size,
        allow=args.allow,
        **model,
    )
    if found is not None and loaded.image_size != found.image_size:
        # Other libraries would have to resample first; of DST they need not.
        places = [place for place in places if place != Path(source)]
    if Path(source) in places:
        print_verified(loaded, Path(source), args)
    if args.target is None:
        return
    if args.to == "stablehlo":
        export.export(loaded, args.target)
        print(f"\n{args.target} was read back: it computes the same logits.")
        return
    preprocessing = loaded.preprocessing
    if found is not None and args.image_size is None:
        preprocessing = found.preprocessing or preprocessing
    written = writing.write_checkpoint(
        args.target,
        args.to,
        model=loaded.config,
        params=loaded.arrays(),
        image_size=loaded.image_size,
        preprocessing=preprocessing,
        label_names=loaded.label_names,
        loss=loaded.loss,
        allow=args.allow,
    )
    print(f"\n{args.target} is of {written.format}.")
    print_table(written.table())
    print(f"\n{args.target} was read back: all bits are the same.")
    for line in unlike(args.to, preprocessing, loaded.image_size):
        print(f"note: {line}")
    if loaded.label_names is not None and written.label_names is None:
        print(f"note: {args.target} has no room for the names of the classes")
    if args.to == "timm" and args.target.is_dir():
        name = f"local-dir:{args.target}"
        print(f'It is loaded by: timm.create_model("{name}", pretrained=True)')
    if args.target in places:
        print_verified(loaded, args.target, args)


def unlike(
    to: str, preprocessing: Preprocessing, image_size: tuple[int, int]
) -> list[str]:
    """How the images that another library makes differ from ours, as sentences."""
    if to == "huggingface":
        return processors.to_transformers(preprocessing)[1]
    if to == "timm":
        return processors.to_timm(preprocessing, image_size)[1]
    return []


def to_verify(args: argparse.Namespace, source: Path, is_run: bool) -> list[Path]:
    """Which of SRC and DST another library can read.

    Raises:
      UserError: if it can read neither.
    """
    named = args.timm is not None
    places = []
    if not is_run and (source.is_dir() or named):
        places.append(source)
    by_itself = args.to == "huggingface" or (
        args.to == "timm" and not args.target.suffix
    )
    if by_itself or (named and args.to not in (None, "stablehlo")):
        places.append(args.target)
    if not places:
        raise errors.UserError(
            "--verify: no other library reads a workdir or stablehlo, and the files of "
            "timm and the paper do not say which model of timm they are: add "
            "--timm=NAME, or --to=huggingface"
        )
    return places


def print_verified(model: Any, path: Path, args: argparse.Namespace) -> None:
    """Says how far another library is from a model of ours, on at most 8 images."""
    import numpy as np

    from vit_jax import predict, verify

    files = list(predict.find_images([args.verify]))[:8]
    images = np.stack([predict.read(model, file) for file in files])
    print(verify.verify(model, path, images, timm_name=args.timm))


def print_table(rows: Sequence[tuple[str, str, str]]) -> None:
    """Three columns, aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    for name, shape, ours in rows:
        print(f"  {name:{widths[0]}}  {shape:{widths[1]}}  {ours}")


if __name__ == "__main__":
    sys.exit(main(sys.argv))
