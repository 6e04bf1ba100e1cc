"""Images as people keep them, into a dataset that TFDS and `vit_jax.data` read.

sources  where images lie: folders, tar files (`tars`), CSV and Parquet (`tables`)
items    one row for each image: where its bytes are, and its classes
shards   writes the files of records, in parallel
reports  what was found: what cannot be decoded, duplicates
finish   the description of the dataset, in TFDS's own words
run      all of it, in order; `python -m vit_jax.data.prepare` calls it
"""

from vit_jax.data.prepare.run import Options, prepare

__all__ = ["Options", "prepare"]
