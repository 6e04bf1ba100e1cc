"""ImageNet's other test sets as TFDS writes them, by the protocols of their papers."""

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.evaluators import told
from vit_jax.errors import UserError

K, N = 1000, 21


def write(name: str, root: Path, split: str, features: Any, labels: list[Any]) -> None:
    """A dataset of the real builder's features; images hold their numbers, as PNG."""
    dataset, _, config = name.partition("/")
    keys: dict[str, Any] = {"config": config} if config else {}
    if "real" in name:
        told_apart = {"original_label": 0}
        key = "real_label"
    else:
        told_apart, key = {}, "label"
    images = [cv2.imencode(".png", x[..., ::-1])[1].tobytes() for x in told.images(N)]
    records = [
        {"image": io.BytesIO(image), key: label, "file_name": "x.JPEG", **told_apart}
        for image, label in zip(images, labels, strict=True)
    ]
    tfds.dataset_builders.store_as_tfds_dataset(
        name=dataset,
        version="1.0.0",
        features=features,
        split_datasets={split: list(enumerate(records))},
        data_dir=root,
        file_format="array_record",
        **keys,
    )


def features_of(name: str) -> Any:
    with tfds.testing.mock_data():
        builder: Any = tfds.builder(name)
    return builder.info.features


def make_logits() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(N, K)).astype(np.float32)


def evaluate(name: str, root: Path, split: str, **keys: Any) -> Any:
    section = told.data(root) | {"name": name}
    return told.evaluate(
        section, make_logits(), told.mesh(8, 1, 1), split=split, **keys
    )


# The first and the last of each list, by WordNet id, and one that is in neither.
SOME = {
    "imagenet_a": ("n01498041", "n12267677", "n12144580"),
    "imagenet_r": ("n01443537", "n12267677", "n07753275"),
}
NEITHER = "n01440764"


@pytest.mark.parametrize("name", SOME)
def test_two_hundred_classes(name: str, tmp_path: Path) -> None:
    features = features_of(name)
    number = {wnid: i for i, wnid in enumerate(features["label"].names)}
    logits = make_logits()
    labels = [number[SOME[name][i % 3]] for i in range(N)]
    write(name, tmp_path, "test", features, labels)
    result = evaluate(name, tmp_path, "test")
    chosen = result.record["protocol"]["classes"]
    assert len(chosen) == len(set(chosen)) == 200
    assert number[NEITHER] not in chosen
    best = np.array(chosen)[np.argsort(-logits[:, chosen])]
    right = best[:, 0] == labels
    in_top = (best[:, :5] == np.array(labels)[:, None]).any(-1)
    assert result.scalars["it/accuracy"] == right.mean()
    assert result.scalars["it/top5_accuracy"] == in_top.mean()
    exponents = np.exp(logits[:, chosen].astype(float))
    positions = [list(chosen).index(label) for label in labels]
    loss = -np.log(exponents[np.arange(N), positions] / exponents.sum(-1)).mean()
    assert abs(result.scalars["it/loss"] - loss) < 1e-6
    picture = result.pictures["confusion"]("a title")
    assert picture is not None and picture.shape[2] == 3
    # The protocol is a default: among all classes on request.
    everything = evaluate(name, tmp_path, "test", classes=tuple(range(K)))
    assert everything.scalars["it/accuracy"] == (logits.argmax(-1) == labels).mean()


def test_a_label_that_is_none_of_the_two_hundred(tmp_path: Path) -> None:
    features = features_of("imagenet_a")
    write("imagenet_a", tmp_path, "test", features, [NEITHER] * N)
    with pytest.raises(UserError, match=f"{N} of {N} labels are none of the 200"):
        evaluate("imagenet_a", tmp_path, "test")


def test_real_labels(tmp_path: Path) -> None:
    """Beyer et al.: right is who names one of the labels; who has none is left out."""
    random = np.random.default_rng(2)
    logits = make_logits()
    best = np.argsort(-logits)
    sets = [random.choice(K, i % 4, replace=False).tolist() for i in range(N)]
    for i in (3, 7, 10):
        sets[i][0] = int(best[i, 0])
    sets[2][1] = int(best[2, 3])
    name = "imagenet2012_real"
    write(name, tmp_path, "validation", features_of(name), sets)
    result = evaluate(name, tmp_path, "validation")
    real = [best[i, 0] in labels for i, labels in enumerate(sets) if labels]
    in_top = [bool({*best[i, :5]} & {*x}) for i, x in enumerate(sets) if x]
    assert len(real) < N and sum(real) == 3 < sum(in_top)
    assert result.scalars["it/accuracy"] == np.mean(real)
    assert result.scalars["it/top5_accuracy"] == np.mean(in_top)
    assert result.scalars["it/examples"] == len(real)
    assert result.record["left_out"] == N - len(real)


def test_corruptions_under_tfds_names(tmp_path: Path) -> None:
    logits = make_logits()
    labels = logits.argmax(-1)
    labels[:7] = (labels[:7] + 1) % K
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(num_classes=K),
            "file_name": tfds.features.Text(),
        }
    )
    for severity in (1, 4):
        name = f"imagenet2012_corrupted/glass_blur_{severity}"
        write(name, tmp_path, "validation", features, labels.tolist())
    result = evaluate(
        "imagenet2012",  # of training
        tmp_path,
        "validation",
        type="corruptions",
        corruptions=("glass_blur",),
        severities=(1, 4),
        relative_to_alexnet=False,
    )
    np.testing.assert_allclose(result.record["errors"]["glass_blur"], [7 / N, 7 / N])
    assert result.scalars["it/examples"] == 2 * N
