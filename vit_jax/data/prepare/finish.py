"""Describes a dataset in TFDS's own words: dataset_info.json and features.json."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from vit_jax.data.prepare.shards import write_text


def describe(
    folder: str,
    *,
    name: str,
    version: str,
    file_format: str,
    label_key: str,
    classes: Sequence[str],
    shards: Mapping[str, Sequence[Mapping[str, Any]]],
    description: str,
) -> None:
    """Writes the description of the files of `shards`, dataset_info.json last."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import dataset_info
    from tensorflow_datasets.core import splits as splits_lib

    label = tfds.features.ClassLabel(names=list(classes))
    if label_key == "labels":
        label = tfds.features.Sequence(label)
    features = {
        "image": tfds.features.Image(),
        "file_name": tfds.features.Text(),
        label_key: label,
    }
    identity = dataset_info.DatasetIdentity(
        name=name, version=tfds.core.Version(version), data_dir=folder, module_name=""
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        description=description,
        features=tfds.features.FeaturesDict(features),
        supervised_keys=("image", label_key),
    )
    info.set_file_format(file_format)
    splits = []
    for split, parts in shards.items():
        template = tfds.core.ShardedFileTemplate(
            data_dir=epath.Path(folder),
            dataset_name=name,
            split=split,
            filetype_suffix=file_format,
        )
        splits.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[part["records"] for part in parts],
                num_bytes=sum(part["bytes"] for part in parts),
                filename_template=template,
            )
        )
    info.set_splits(splits_lib.SplitDict(splits))
    features_only = info.features
    assert features_only is not None
    features_only.save_config(folder)
    write_text(os.path.join(folder, "dataset_info.json"), info.as_json + "\n")
