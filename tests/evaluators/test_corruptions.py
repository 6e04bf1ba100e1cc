"""The mean corruption error, from files as ImageNet-C's authors pack them."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.evaluators import told
from vit_jax.errors import UserError
from vit_jax.evaluators import corruptions

K, N = 6, 12  # classes, and images of each dataset

# AlexNet's errors by severity, as others measured and published them.
ALEXNET = {
    "gaussian_noise": (0.69528, 0.82542, 0.93554, 0.98138, 0.99452),
    "shot_noise": (0.71224, 0.85108, 0.93574, 0.98182, 0.99146),
    "impulse_noise": (0.78374, 0.89808, 0.94870, 0.98720, 0.99548),
    "defocus_blur": (0.65624, 0.73202, 0.85036, 0.91364, 0.94714),
    "glass_blur": (0.64308, 0.75054, 0.88806, 0.91622, 0.93344),
    "motion_blur": (0.58430, 0.70048, 0.82108, 0.89750, 0.92638),
    "zoom_blur": (0.70008, 0.76992, 0.80784, 0.84198, 0.87198),
    "snow": (0.71726, 0.88392, 0.86468, 0.91870, 0.94952),
    "frost": (0.61390, 0.79734, 0.88790, 0.89942, 0.93430),
    "fog": (0.67474, 0.76050, 0.84378, 0.87260, 0.94500),
    "brightness": (0.45140, 0.48502, 0.54048, 0.62166, 0.72440),
    "contrast": (0.64548, 0.76150, 0.88874, 0.97760, 0.99270),
    "elastic_transform": (0.52596, 0.70116, 0.55686, 0.64076, 0.80554),
    "pixelate": (0.52218, 0.54620, 0.73728, 0.87092, 0.91262),
    "jpeg_compression": (0.51002, 0.54718, 0.57294, 0.65458, 0.74778),
}


def test_alexnet_is_the_mean_over_the_severities() -> None:
    assert list(corruptions.ALEXNET) == list(ALEXNET)
    for name, errors in ALEXNET.items():
        assert abs(corruptions.ALEXNET[name] - sum(errors) / 5) < 1e-9, name


@pytest.fixture(scope="module")
def imagenet_c(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DIR/CORRUPTION/SEVERITY/CLASS/*.png; all of them hold the same images."""
    root = tmp_path_factory.mktemp("imagenet_c")
    images = told.images(N)
    for corruption in ALEXNET:
        for severity in range(1, 6):
            for i, image in enumerate(images):
                # In the order of classes, then of names: that of their numbers.
                folder = root / corruption / str(severity) / f"class{i * K // N}"
                folder.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(folder / f"{i:02}.png"), image[..., ::-1])
    return root


def data(root: Path) -> dict[str, Any]:
    section = told.data(root / "{corruption}")
    return section | {"name": "folder"}


def logits_for(right: int) -> np.ndarray:
    """Of a model that is right about the first so many images."""
    logits = np.zeros((N, K), np.float32)
    labels = np.arange(N) * K // N
    logits[np.arange(N), (labels + (np.arange(N) >= right)) % K] = 1
    return logits


def test_mean_corruption_error(imagenet_c: Path, monkeypatch: Any) -> None:
    """A model whose errors differ between the datasets, by the number of a call."""
    run = corruptions.Corruptions._totals
    right = iter(np.random.default_rng(0).integers(0, N + 1, 75).tolist())
    said: list[int] = []

    def of_this_dataset(self: Any, examples: Any, params: Any, check: Any) -> Any:
        said.append(next(right))
        told_so = {"table": params["table"] * 0 + logits_for(said[-1])}
        return run(self, examples, told_so, check)

    monkeypatch.setattr(corruptions.Corruptions, "_totals", of_this_dataset)
    result = told.evaluate(
        data(imagenet_c),
        logits_for(0),
        told.mesh(8, 1, 1),
        type="corruptions",
        split="{severity}",
        data={"name": "folder"},
    )
    errors = 1 - np.array(said).reshape(15, 5) / N  # in the order of ALEXNET
    assert list(result.record["errors"]) == list(ALEXNET)
    np.testing.assert_allclose(list(result.record["errors"].values()), errors)
    relative = errors.sum(1) / np.sum(list(ALEXNET.values()), axis=1)
    found = result.scalars["it/mean_corruption_error"]
    assert abs(found - relative.mean()) < 1e-6
    assert abs(result.scalars["it/mean_error"] - errors.mean()) < 1e-6
    assert abs(result.scalars["it/accuracy"] + errors.mean() - 1) < 1e-6
    assert result.scalars["it/examples"] == 75 * N


def test_a_few_without_alexnet(imagenet_c: Path) -> None:
    result = told.evaluate(
        data(imagenet_c),
        logits_for(9),
        told.mesh(1, 1, 1),
        type="corruptions",
        split="{severity}",
        data={"name": "folder"},
        corruptions=("fog", "snow"),
        severities=(2, 5),
        relative_to_alexnet=False,
    )
    assert result.scalars == {
        "it/accuracy": 0.75,
        "it/mean_error": 0.25,
        "it/examples": 4 * N,
    }
    assert result.record["errors"] == {"fog": [0.25, 0.25], "snow": [0.25, 0.25]}


def test_what_cannot_be_evaluated(imagenet_c: Path, tmp_path: Path) -> None:
    def refused(message: str, section: dict[str, Any], **keys: Any) -> None:
        keys = {"split": "{severity}", "data": {"name": "folder"}} | keys
        with pytest.raises(UserError, match=message):
            told.evaluate(
                section, logits_for(1), told.mesh(1, 1, 1), type="corruptions", **keys
            )

    section = data(imagenet_c)
    refused("with others set .*relative_to_alexnet=false", section, severities=(1, 2))
    refused("expected some, once", section, corruptions=())
    refused("where {severity} is to be filled in", section, split="test")
    few = tmp_path / "few"
    for corruption in ALEXNET:
        if corruption != "fog":
            (few / corruption).parent.mkdir(exist_ok=True)
            (few / corruption).symlink_to(imagenet_c / corruption)
    message = (
        r"5 of 75 datasets cannot be opened \(fog 1, .*fog 5\). The first: .*few/fog"
    )
    refused(message, data(few))
    # TFDS's names are the default, in its usual place.
    message = "75 of 75 .*imagenet2012_corrupted/gaussian_noise_1"
    refused(message, told.data(tmp_path), split="validation", data={})
