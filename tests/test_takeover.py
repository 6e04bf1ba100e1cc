"""The flags that an error about `init_from` ends with make its model."""

import shlex
from pathlib import Path
from typing import Any

import pytest

import vit_jax
from tests import cli
from tests.formats import files
from vit_jax import config, errors, flags
from vit_jax.checkpoints import takeover
from vit_jax.checkpoints.adapt import Weights

SOURCES: dict[str, dict[str, Any]] = {
    "dinov2": {"variant": "S/14", "gelu": "erf", "layer_scale": 1.0},
    "hybrid": {"variant": "R50+ViT-B/16", "representation_size": 768},
    "registers": {"variant": "Ti/16", "registers": 4, "pool": "map", "qk_norm": True},
    "wide": {"variant": "B/16", "patch_size": (8, 16), "mlp": "swiglu"},
}
QUICKSTART = str(cli.ROOT / "configs" / "quickstart.py")


@pytest.mark.parametrize("name", SOURCES)
def test_given_the_flags_nothing_differs(name: str) -> None:
    source = Weights(
        arrays={},
        model={**SOURCES[name], "num_classes": 1000},
        image_size=(112, 112),
        normalization=((0.485, 0.456, 0.406), (0.25, 0.25, 0.25)),
    )
    model = config.load(QUICKSTART).to_dict()["model"] | {"num_classes": 10}
    found = takeover.model_flags(source, model)
    assert found
    text = " ".join(found + takeover.normalization_flags(source, ((0.5,), (0.5,))))
    _, pairs = flags.split_overrides(shlex.split(text))
    loaded = config.load(QUICKSTART, pairs).to_dict()
    model = loaded["model"] | {"num_classes": 10}
    assert takeover.model_flags(source, model) == []
    here = loaded["data"]["mean"], loaded["data"]["std"]
    assert takeover.normalization_flags(source, here) == []


def test_the_error_lists_all_of_them(tmp_path: Path) -> None:
    """Not the first that differs alone: the file's model is 64 wide, of 2 layers."""
    weights = files.of_fixture("npz-vit", tmp_path)
    with pytest.raises(errors.UserError) as caught:
        vit_jax.train(QUICKSTART, tmp_path / "w", {"init_from": str(weights)})
    said = str(caught.value).rpartition("is had with\n")[2].split()
    assert {"--config.model.width=64", "--config.model.depth=2"} <= set(said)
    assert not (tmp_path / "w").exists()
