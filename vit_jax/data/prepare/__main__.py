"""python -m vit_jax.data.prepare SOURCE... --data_dir=DIR --name=NAME

Writes DIR/NAME/1.0.0, a dataset that TFDS and vit_jax read. A SOURCE is

  FOLDER           SPLIT/CLASS/IMAGE
  SPLIT=FOLDER     CLASS/IMAGE; or CLASS.tar, as ImageNet-21k's release
  SPLIT=FILE.tar   (or .tar.gz, .tar.bz2, .tar.xz) CLASS/IMAGE; or a tar of CLASS.tar,
                   as ILSVRC2012_img_train.tar; or images alone, with --labels
  [SPLIT=]FILE.csv     paths and labels, separated by commas, semicolons or tabs; .tsv
                       and .csv.gz too
  [SPLIT=]FILE.parquet, or a folder of them, as Hugging Face writes: images in the file

  --data_dir=DIR         where datasets are, as config.data.data_dir
  --name=NAME            of the new one, as config.data.name
  --labels=FILE          of images in no class folder: a class on each line, in the
                         order of the names; or IMAGE CLASS; or the development kit of
                         ILSVRC-2012, ILSVRC2012_devkit_t12.tar.gz
  --classes=FILE         names of the classes, one a line, in their order; else sorted
  --path_column=path --label_column=label --split_column=split    of CSV; several
                         label columns (a,b,c) are classes whose cells are 1 or 0
  --image_root=FOLDER    what the paths of a CSV are relative to; else its own folder
  --image_column=image   of Parquet, with --label_column
  --label_separator="|"  between several classes in one cell of a CSV
  --on_bad=error         or skip: leaves images out that do not decode
  --max_pixels=N         of an image (178,956,970, as Pillow): a larger one is refused
  --drop_duplicates      leaves out all but the first of images with the same bytes
  --file_format=array_record   or tfrecord
  --num_shards=N         files a split; else one for each 256 MiB
  --num_workers=N        processes; else one a core
  --version=1.0.0        of the dataset

Killed, it goes on where it was when the same command is given again. What it found is
listed beside the records: undecodable.jsonl, duplicates.jsonl, reencoded.jsonl.
"""

import sys
from collections.abc import Sequence

from vit_jax import errors, flags, limits
from vit_jax.data import pipeline
from vit_jax.data.prepare.run import Options, prepare
from vit_jax.data.prepare.tables import Columns

FORMATS = ("array_record", "tfrecord")
ON_BAD = ("error", "skip")


def parse(argv: Sequence[str]) -> Options:
    """The options that the flags mean.

    Raises:
      UserError: for what is no flag, and what is missing.
    """
    parser = flags.Parser()
    parser.add_argument("sources", nargs="*")
    parser.add_argument("--data_dir")
    parser.add_argument("--name")
    parser.add_argument("--version", default="1.0.0")
    parser.add_argument("--file_format", default="array_record", choices=FORMATS)
    parser.add_argument("--num_shards", type=int)
    parser.add_argument("--num_workers", type=int, default=pipeline.num_cores())
    parser.add_argument("--on_bad", default="error", choices=ON_BAD)
    parser.add_argument("--drop_duplicates", action="store_true")
    parser.add_argument("--max_pixels", type=int, default=limits.IMAGE_PIXELS)
    parser.add_argument("--labels")
    parser.add_argument("--classes")
    parser.add_argument("--image_root")
    parser.add_argument("--path_column", default="path")
    parser.add_argument("--image_column", default="image")
    parser.add_argument("--label_column", default="label")
    parser.add_argument("--label_separator", default="|")
    parser.add_argument("--split_column", default="split")
    args = parser.parse(argv)
    if not args.sources or args.data_dir is None or args.name is None:
        raise errors.UserError(
            f"SOURCE, --data_dir and --name are needed:\n\n{__doc__}"
        )
    return Options(
        sources=tuple(args.sources),
        data_dir=args.data_dir,
        name=args.name,
        version=args.version,
        file_format=args.file_format,
        num_shards=args.num_shards,
        num_workers=args.num_workers,
        on_bad=args.on_bad,
        drop_duplicates=args.drop_duplicates,
        max_pixels=args.max_pixels,
        labels=args.labels,
        classes=args.classes,
        columns=Columns(
            path=args.path_column,
            root=args.image_root,
            image=args.image_column,
            label=tuple(args.label_column.split(",")),
            separator=args.label_separator,
            split=args.split_column,
        ),
    )


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns its exit code, see `vit_jax.errors`."""
    return flags.run(__doc__, argv[1:], lambda: prepare(parse(argv[1:])))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
