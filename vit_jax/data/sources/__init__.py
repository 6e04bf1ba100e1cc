"""Where images come from: `open_source` gives random access to the records of a split.

One module for each way images are stored. TFDS datasets are read by their published
file formats alone, so neither TensorFlow nor tensorflow_datasets is imported.
"""

from vit_jax.data.sources.base import Source, open_source

__all__ = ["Source", "open_source"]
