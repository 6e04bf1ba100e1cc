"""python -m vit_jax.data.check --config=configs/NAME.py[:ARG]

  --config.KEY=VALUE   overrides a key of the config, as for vit_jax.main
  --sample=1024        records that are read of each split; all for every one
  --output=data_check  folder for contact_sheet.png: what the model will see
  --verify_checksums   of the files of datasets that vit_jax.data.prepare wrote

Checks all that training and the evaluations of a config will read: the splits, their
sizes against the published ones, labels, whether images decode, their sizes, and
whether training sees what is evaluated. No accelerator is touched. The exit code is 0
if all is well, else 2 with a list of what was found.
"""

import argparse
import dataclasses
import itertools
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from vit_jax import config as configs
from vit_jax import data as datasets
from vit_jax import errors, flags, progress
from vit_jax.data import Dataset, contact_sheet, examine, remarks, sections, splits
from vit_jax.data.prepare import reports, shards
from vit_jax.data.prepare.run import MANIFEST
from vit_jax.limits import is_number
from vit_jax.planning import data_shapes

_SHOWN = 24  # images of each split in the picture
_LISTED = 5  # records, or classes, that one finding names
TRAIN = "data"  # where the config says what training reads
Plain = dict[str, Any]


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
    """The flags, and the overrides of the config.

    Raises:
      UserError: for what is no flag, and what is missing.
    """
    parser = flags.Parser()
    parser.add_argument("--config")
    parser.add_argument("--sample", default="1024")
    parser.add_argument("--output", default="data_check")
    parser.add_argument("--verify_checksums", action="store_true")
    rest, overrides = flags.split_overrides(argv)
    args = parser.parse(rest)
    if args.config is None:
        raise errors.UserError(f"--config is needed:\n\n{__doc__}")
    if args.sample == "all":
        args.sample = None
    elif is_number(args.sample) and int(args.sample):
        args.sample = int(args.sample)
    else:
        raise errors.UserError(
            f'--sample={args.sample[:30]}: expected 1 or more, or "all"'
        )
    return args, overrides


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns its exit code, see `vit_jax.errors`."""
    return flags.run(__doc__, argv[1:], lambda: run(argv[1:]))


def run(argv: Sequence[str]) -> int:
    """Checks, and tells what was found; returns the exit code."""
    args, overrides = parse(argv)
    findings = check(configs.load(args.config, overrides).to_dict(), args)
    if findings:
        listed = "".join(f"\n  {finding}" for finding in findings)
        plural = "" if len(findings) == 1 else "s"
        print(f"error: {len(findings)} finding{plural}:{listed}", file=sys.stderr)
        return errors.UserError.exit_code
    print("All is well.")
    return 0


def check(config: Plain, args: argparse.Namespace) -> list[str]:
    """Checks and draws everything; returns what is wrong."""
    read, head = sections_of(config), config["model"]["num_classes"]
    findings, strips = [], []
    opened: dict[str, Dataset] = {}
    for where, section in read.items():
        print(f"config.{where}: {section['name']}, {section['split']}")
        try:
            dataset = datasets.make(**section)
            opened[where] = dataset = dataclasses.replace(dataset, num_workers=0)
            for note in dataset.source.notes:
                print(f"  {note}")
            head = head or dataset.num_classes
            if head is None:
                raise errors.UserError("set config.model.num_classes: no data says it")
            found = check_split(where, dataset, section, head, args.sample)
            findings += [f"config.{where}: {finding}" for finding in found]
            strips.append(make_strip(where, dataset, config))
        except errors.UserError as error:
            if not any(str(error) in finding for finding in findings):
                findings.append(f"config.{where}: {error}")
    findings += check_overlap(read, opened)
    findings += check_classes(opened)
    for folder in sorted({dataset.source.name for dataset in opened.values()}):
        findings += check_manifest(folder, verify=args.verify_checksums)
    if strips:
        write_picture(args.output, contact_sheet.draw(strips))
    return findings


def sections_of(config: Plain) -> dict[str, Plain]:
    """{where: keyword arguments of `data.make`}: of training, of each evaluation.

    An evaluation has those of training but for what it says. It may name several
    splits, in keys that end in "split".
    """
    data = sections.with_holdout(config["data"], config["evals"])
    found = {TRAIN: data}
    for name, entry in config["evals"].items():
        own = entry["data"] if "data" in entry else {}
        for key in [k for k in entry if k.endswith("split") and entry[k] is not None]:
            where = f"evals.{name}" if key == "split" else f"evals.{name}.{key}"
            found[where] = sections.of_evaluation(data, own, entry[key])
    return found


def check_split(
    where: str, dataset: Dataset, section: Plain, head: int, sample: int | None
) -> list[str]:
    """Says what a split is like; returns what is wrong with it."""
    findings = list(check_counts(dataset, section, head))
    read = examine.examine(dataset, head, sample)
    looked_at = len(read.sizes) + len(read.bad)
    for bad, what in (
        (read.bad, f"of {looked_at:,} records that were read do not decode"),
        (read.out_of_range, f"labels are out of range 0..{head - 1}"),
    ):
        if bad:
            more = f"; and {len(bad) - _LISTED:,} more" if len(bad) > _LISTED else ""
            findings.append(f"{len(bad):,} {what}: {'; '.join(bad[:_LISTED])}{more}")
    names = dataset.label_names
    if len(read.sizes):
        print(f"  {examine.describe_sizes(read.sizes)}")
        print(f"  {examine.describe_pixels(read, dataset.mean, dataset.std)}")
    print(f"  {examine.describe_labels(read, names)}")
    if (never := read.never()) and read.all_labels:
        said = f"{len(never):,} classes never occur: {examine.named(never, names)}"
        print(f"  {said}")
        if where == TRAIN:
            findings.append(said)
    return findings


def check_counts(dataset: Dataset, section: Plain, head: int) -> Iterator[str]:
    """Compares with what is published, where that is known."""
    published = data_shapes.of_config(section)
    n, k = dataset.num_examples, dataset.num_classes
    known = published.num_examples is not None
    print(
        f"  {n:,} records{', as published' if n == published.num_examples else ''}; "
        f"{'unknown' if k is None else f'{k:,}'} classes"
    )
    if known and n != published.num_examples:
        yield (
            f"{n:,} records in split {section['split']}, but {section['name']} is "
            f"published with {published.num_examples:,}"
        )
    if k is not None and published.num_classes not in (None, k):
        yield (
            f"{k:,} classes, but {section['name']} is published with "
            f"{published.num_classes:,}"
        )
    if k is not None and (k != head if dataset.source.multi_hot else k > head):
        yield f"{k:,} classes, but the model's head has {head:,}"


def check_classes(opened: Mapping[str, Dataset]) -> Iterator[str]:
    """Classes that cannot be learned, and yet are evaluated."""
    if TRAIN not in opened:
        return
    yield from remarks.one_class(opened[TRAIN])
    for where, dataset in opened.items():
        if where != TRAIN:
            yield from remarks.of_evaluation(where, dataset, opened[TRAIN])


def check_overlap(
    read: Mapping[str, Plain], opened: Mapping[str, Dataset]
) -> Iterator[str]:
    """Records that both training and an evaluation read."""
    if TRAIN not in opened:
        return
    for where in [w for w in opened if w != TRAIN]:
        train, other = read[TRAIN], read[where]
        if any(train[key] != other[key] for key in ("name", "data_dir")):
            continue
        pairs = itertools.product(_ranges(train), _ranges(other))
        shared = sum(
            max(0, min(a.stop, b.stop) - max(a.start, b.start))
            for a, b in pairs
            if a.name == b.name
        )
        if shared:
            yield (
                f"config.{where}: {shared:,} of its {opened[where].num_examples:,} "
                f"records, split {other['split']}, are in the split of training too, "
                f"{train['split']}"
            )


def _ranges(section: Plain) -> list[splits.Range]:
    names = splits.split_names(section["split"])
    sizes = {n: datasets.make(**{**section, "split": n}).num_examples for n in names}
    return splits.resolve(section["split"], sizes, where=section["name"])


def check_manifest(folder: str, *, verify: bool) -> Iterator[str]:
    """What `vit_jax.data.prepare` has found, and whether its files are still so."""
    path = os.path.join(folder, MANIFEST)
    if not os.path.isfile(path):
        if verify:
            yield f"{folder} has no checksums: vit_jax.data.prepare did not write it"
        return
    try:
        with open(path, encoding="utf-8") as file:
            manifest = json.load(file)
        with open(os.path.join(folder, "duplicates.jsonl"), encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]
        dropped, digests = bool(manifest["dropped"]), dict(manifest["sha256"])
        said = reports.summary_of_duplicates(lines, dropped=dropped)
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        yield (
            f"{folder}: what vit_jax.data.prepare says of it cannot be read "
            f"({type(error).__name__}: {error}): prepare or copy the dataset again"
        )
        return
    for line in said:
        if lines and not dropped:
            yield f"{folder}: {line}"
        else:
            print(f"{folder}: {line}")
    if not verify:
        return
    with progress.of_items(len(digests), "Checksums", "files") as done:
        for name, digest in digests.items():
            file = os.path.join(folder, name)
            if not os.path.isfile(file):
                yield f"{file} is missing"
            elif shards.file_digest(file) != digest:
                yield f"{file} has another checksum than when it was prepared"
            done(1)


def make_strip(where: str, dataset: Dataset, config: Plain) -> contact_sheet.Strip:
    """What the model sees of a split."""
    title = f"config.{where}: {dataset.source.name}"
    if where != TRAIN:
        return contact_sheet.of_evaluation(title, dataset, count=_SHOWN)
    return contact_sheet.of_training(
        f"{title}, step 0 of seed {config['seed']}",
        dataset,
        batch_size=config["batch_size"],
        seed=config["seed"],
        count=_SHOWN,
    )


def write_picture(folder: str, picture: np.ndarray) -> None:
    """Writes contact_sheet.png into a folder."""
    path = os.path.join(folder, "contact_sheet.png")
    good, encoded = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    assert good
    try:
        os.makedirs(folder, exist_ok=True)
        with open(f"{path}.tmp", "wb") as file:
            file.write(encoded.tobytes())
        os.replace(f"{path}.tmp", path)
    except OSError as e:
        raise errors.UserError(f"--output={folder}: {e.strerror}.") from e
    print(f"{path}: {_SHOWN} images of each split as the model will see them")


if __name__ == "__main__":
    sys.exit(main(sys.argv))
