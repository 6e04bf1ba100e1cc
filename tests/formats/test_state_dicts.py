"""Which dict of a file is taken, what is stripped of its names, and what is left."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vit_jax.checkpoints.formats import state_dicts
from vit_jax.checkpoints.formats.state_dicts import StateDict
from vit_jax.checkpoints.formats.tensors import Tensor
from vit_jax.errors import UserError

FIRST = "blocks.0.attn.qkv.weight"
NAMES: tuple[str, ...] = (FIRST, "head.weight")


def opened(
    monkeypatch: pytest.MonkeyPatch,
    groups: dict[str, list[str]],
    weights: str | None = None,
    *,
    named: bool = True,
) -> StateDict:
    """Of a file with such dicts of tensors; each tensor reads as its place."""

    def tensor(label: str, name: str) -> Tensor:
        where = np.array([f"{label}:{name}"])
        return Tensor((1,), where.dtype, lambda: where)

    dicts = {k: {n: tensor(k, n) for n in names} for k, names in groups.items()}
    monkeypatch.setattr(state_dicts, "open_dicts", lambda _: dicts)
    return state_dicts.open_state_dict([Path("a.pth")], weights=weights, named=named)


def taken(*args: Any, **kwargs: Any) -> str:
    """Where the first tensor comes from."""
    return str(opened(*args, **kwargs).tensors[FIRST].read()[0])


def of(prefix: str) -> list[str]:
    return [prefix + name for name in NAMES]


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "module.",
        "model.",
        "backbone.",
        "encoder.",
        "visual.trunk.",
        "module.backbone.",
        "model.net.encoder.",
        "_orig_mod.",
        "_orig_mod.module.",
        "module._orig_mod.",
        "model._orig_mod.backbone.",
        "_fsdp_wrapped_module.",
    ],
)
def test_prefixes_are_stripped(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = opened(monkeypatch, {"": of(prefix)})
    assert found.tensors.keys() == set(NAMES) and not found.beside
    assert bool(found.said) == bool(prefix)


def test_wrappers_within_the_names(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["blocks.0._checkpoint_wrapped_module.attn.qkv.weight"]
    assert opened(monkeypatch, {"": names}).tensors.keys() == {FIRST}
    both = [FIRST, f"_orig_mod.{FIRST}"]
    with pytest.raises(UserError, match="two tensors of one name"):
        opened(monkeypatch, {"": both})


def test_what_is_not_timm_s_keeps_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """ "encoder." is a part of torchvision's and of transformers' own names."""
    for name in ("encoder.layers.encoder_layer_0.ln_1.weight", "vit.encoder.layer.0.x"):
        assert opened(monkeypatch, {"": [name]}).tensors.keys() == {name}
    # A layer of Swin is a list of blocks, and no network.
    swin = [f"layers.{i}.{FIRST}" for i in range(2)]
    assert opened(monkeypatch, {"": swin}).tensors.keys() == set(swin)
    hybrid = [FIRST, "patch_embed.backbone.stages.0.blocks.0.conv1.weight"]
    assert opened(monkeypatch, {"": hybrid}).tensors.keys() == set(hybrid)
    wrapped = ["module.vit.a", "module.vit.b"]  # as transformers names them
    found = opened(monkeypatch, {"": wrapped}, named=False)
    assert found.tensors.keys() == {"vit.a", "vit.b"}


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["state_dict", "state_dict_ema"], "state_dict_ema"),
        (["model_ema", "model"], "model_ema"),
        (["model", "ema"], "ema"),
        (["net", "ema_model"], "ema_model"),
        (["student", "teacher"], "teacher"),
        (["encoder", "target_encoder"], "target_encoder"),
        (["model", "state_dict"], "state_dict"),
        (["current_model_state", "state_dict"], "state_dict"),
        (["checkpoint.model", "checkpoint.model_ema"], "checkpoint.model_ema"),
        (["whatever"], "whatever"),
        (["schema", "model"], "model"),  # no average, for all its letters
    ],
)
def test_what_is_taken(
    labels: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for order in (labels, labels[::-1]):
        groups = {label: list(NAMES) for label in order}
        # What else holds tensors is no network.
        groups |= {"": ["loss"], "dino_loss": ["center"], "optimizer.state": ["step"]}
        assert taken(monkeypatch, groups) == f"{expected}:{FIRST}"
        for label in labels:
            assert taken(monkeypatch, groups, label) == f"{label}:{FIRST}"


def test_teachers_and_students_in_one_dict(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = {"state_dict": [*of("student.backbone."), *of("teacher.backbone.")]}
    groups["state_dict"] += ["student.head.mlp.0.weight", "student.other.weight"]
    assert taken(monkeypatch, groups) == f"state_dict:teacher.backbone.{FIRST}"
    found = opened(monkeypatch, groups, "student")
    assert found.tensors.keys() == set(NAMES)
    assert set(found.beside) - set(found.ignored) == {"student.other.weight"}
    found = opened(monkeypatch, groups)
    assert set(found.beside) == set(found.ignored)  # all of the student


def test_several_networks_are_not_chosen_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    groups = {"": [*of("a."), *of("b.")]}
    with pytest.raises(UserError, match=r"several networks: a, b; .* weights=a "):
        opened(monkeypatch, groups)
    assert taken(monkeypatch, groups, "b") == f":b.{FIRST}"
    with pytest.raises(UserError, match='no weights "c"; it has a, b'):
        opened(monkeypatch, groups, "c")
    averages: dict[str, list[str]] = {
        "ema_0.999": list(NAMES),
        "ema_0.9999": list(NAMES),
    }
    with pytest.raises(UserError, match=r"several networks: ema_0.999, ema_0.9999"):
        opened(monkeypatch, averages)
    assert taken(monkeypatch, averages, "ema_0.9999") == f"ema_0.9999:{FIRST}"


def test_a_head_beside_the_network_is_not_its_head(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    groups = {"": [f"backbone.{FIRST}", "head.weight", "fc.weight", "loss.weight"]}
    found = opened(monkeypatch, groups)
    assert found.tensors.keys() == {FIRST}
    assert set(found.beside) - set(found.ignored) == {"head.weight", "fc.weight"}
    groups[""].append("backbone.head.weight")
    found = opened(monkeypatch, groups)
    assert found.tensors["head.weight"].read() == [":backbone.head.weight"]
    assert "head.weight (beside)" in found.beside


def test_an_image_tower(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the text's tower nothing is needed; a projection of the image is."""
    beside = ["text.a", "transformer.resblocks.0.b", "logit_scale", "ln_final.weight"]
    names = [*of("visual.trunk."), *beside, "visual.head.proj.weight"]
    found = opened(monkeypatch, {"state_dict": names})
    assert set(found.ignored) == set(beside)
    assert set(found.beside) - set(beside) == {"visual.head.proj.weight"}
    found = opened(monkeypatch, {"": [*of("net."), "text.a"]})
    assert not found.ignored
