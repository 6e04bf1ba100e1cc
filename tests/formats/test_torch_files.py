"""Files of `torch.save`, written by PyTorch, timm, Lightning and training scripts."""

import importlib
import json
import warnings
from pathlib import Path
from typing import Any

import cv2
import jax.numpy as jnp
import numpy as np
import pytest

import vit_jax
from tests import cli
from tests.formats import drawn
from vit_jax import convert, predict
from vit_jax.checkpoints.formats.opened import Opened
from vit_jax.checkpoints.formats.opening import open_checkpoint
from vit_jax.checkpoints.formats.state_dicts import open_state_dict
from vit_jax.checkpoints.formats.tensors import Tensors
from vit_jax.errors import UserError

FIXTURES = drawn.FIXTURES / "torch"
RECORD = json.loads((FIXTURES / "outputs.json").read_text())
# Files of timm's names do not tell the number of heads.
MODEL: dict[str, Any] = {"num_heads": 1}


def open_it(path: Path, weights: str | None = None) -> Opened:
    opened = open_checkpoint(path, weights=weights, model=MODEL)
    opened.check_complete()
    return opened


def assert_agrees(path: Path, outputs: dict[str, Any]) -> None:
    """That each of a file's models computes what PyTorch did."""
    for weights, expected in outputs.items():
        model = vit_jax.load(str(path), weights=weights or None, **MODEL)
        found = model(drawn.images(model.image_size))
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert len(outputs) < 2 or not np.allclose(*outputs.values(), atol=1e-3)


@pytest.mark.parametrize("name", RECORD["outputs"])
def test_the_outputs_are_those_of_pytorch(name: str) -> None:
    assert_agrees(FIXTURES / name, RECORD["outputs"][name])


@pytest.mark.crosscheck
@pytest.mark.parametrize("name", RECORD["outputs"])
def test_what_they_write_today(name: str, tmp_path: Path) -> None:
    make: Any = importlib.import_module("tests.formats.make_torch_fixtures")
    assert_agrees(tmp_path / name, make.write(name, tmp_path))


SAID = {
    "plain.pth": (),
    "old.pth": (),
    "timm-hub": (),
    "hugging-face": (),
    "half.bin": (),
    "compiled.pt": ("names of wrappers, as _orig_mod, are stripped",),
    "timm-saver.pth.tar": (
        "of the weights in it, state_dict_ema, the average is taken; beside it: "
        "state_dict (weights=state_dict takes that)",
    ),
    "deit.pth": (
        "of the weights in it, model_ema, the average is taken; beside it: model "
        "(weights=model takes that)",
    ),
    "averaged.pt": (
        "of the weights in it, ema_state_dict.module, the average is taken; beside it: "
        "model_state_dict (weights=model_state_dict takes that)",
        '"module." before its names is stripped',
        "left out: 1 tensors beside the network, as n_averaged",
    ),
    "mae.pth": (
        "left out: 19 tensors beside the network, as decoder_pos_embed",
    ),
    "dino.pth": (
        "of the weights in it, teacher.backbone is taken; beside it: "
        "student.module.backbone (weights=student takes that)",
        '"backbone." before its names is stripped',
        "left out: 6 tensors beside the network, as head.mlp.0.weight",
    ),
    "lightning.ckpt": (
        '"model." before its names is stripped',
        "left out: 1 tensors beside the network, as criterion.weight",
    ),
    "image-tower.pt": (
        '"visual.trunk." before its names is stripped',
        "left out: 2 tensors beside the network, as logit_scale",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RECORD["outputs"])
def test_what_is_taken_is_said(name: str) -> None:
    assert open_it(FIXTURES / name).said == SAID[name]


def test_each_command_says_and_chooses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(FIXTURES / "deit.pth")
    vit_jax.load(file, **MODEL)
    assert "model_ema, the average is taken" in capsys.readouterr().err
    found = []
    for i, flags in enumerate(([], ["--weights=model"])):
        target = str(tmp_path / f"{i}.safetensors")
        flags = [*flags, "--model.num_heads=1", "--to=timm"]
        assert convert.main(["", file, target, *flags]) == 0
        said = "".join(capsys.readouterr())
        assert said.count("model_ema, the average is taken") == (not i)
        found.append(vit_jax.load(target, **MODEL).params["head"]["bias"])
    assert np.abs(found[0] - found[1]).max() > 0.1
    assert convert.main(["", file, "--model.num_heads=1"]) == 0
    assert "model_ema, the average is taken" in capsys.readouterr().out
    with pytest.raises(UserError, match=r'no weights "modl"; it has model, model_ema'):
        vit_jax.load(file, weights="modl", **MODEL)
    picture = tmp_path / "a.png"
    assert cv2.imwrite(str(picture), np.zeros((4, 4, 3), np.uint8))
    args = [f"--checkpoint={file}", "--weights=modl", str(picture)]
    assert predict.main(["", *args]) == 2
    assert 'no weights "modl"' in capsys.readouterr().err


def test_a_run_says_and_chooses(tmp_path: Path) -> None:
    """config.init_from, and a teacher."""
    recipe = [f"--config={cli.EVERYTHING}", "--config.total_steps=8"]
    file = FIXTURES / "deit.pth"
    for key in ("init_weights", "distill.teacher_weights"):
        start = "distill.teacher" if "teacher" in key else "init_from"
        output = cli.run(
            *recipe,
            f"--workdir={tmp_path}/{key}",
            f"--config.{start}={file}",
            f"--config.{key}=modl",
            expect=2,
        )
        assert 'no weights "modl"; it has model, model_ema' in output


# --- Tensors


def arrays(path: Path) -> dict[str, np.ndarray]:
    found: Tensors = open_state_dict([path]).tensors
    return {name: tensor.read() for name, tensor in found.items()}


def test_views_of_shared_storages() -> None:
    found = arrays(FIXTURES / "tensors.pth")
    assert found.keys() == RECORD["tensors"].keys()
    for name, values in RECORD["tensors"].items():
        assert found[name].astype(np.float32).tolist() == values, name
    assert found["brain"].dtype == jnp.bfloat16 and found["half"].dtype == np.float16


@pytest.mark.crosscheck
@pytest.mark.parametrize("zipped", [True, False])
def test_every_kind_of_tensor(zipped: bool, tmp_path: Path) -> None:
    torch: Any = importlib.import_module("torch")
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tied = torch.nn.Linear(6, 6)
    tensors = {
        "view": base[1:, ::2].T,
        "row": base[2],
        "parameter": torch.nn.Parameter(base),
        "tied": tied.weight,
        "tied_too": tied.weight,
        "transposed": tied.weight.T,
        "number": torch.tensor(3),
        "empty": torch.zeros(0, 3),
        "channels_last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "split": torch.rand(6, 4).chunk(3, dim=1)[1],
    }
    for dtype in ("half", "bfloat16", "double", "int", "short", "char", "byte", "bool"):
        tensors[dtype] = getattr(base, dtype)()
    if zipped:
        tensors["uint16"] = base.to(torch.uint16)
    file = tmp_path / "a.pth"
    torch.save(tensors, file, _use_new_zipfile_serialization=zipped)
    found = arrays(file)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        expected = tensor.detach().double().numpy()
        as_double = np.asarray(jnp.asarray(found[name]).astype(jnp.float32), np.float64)
        np.testing.assert_array_equal(as_double, expected, name)


@pytest.mark.crosscheck
def test_tensors_that_are_refused_by_name(tmp_path: Path) -> None:
    torch: Any = importlib.import_module("torch")
    x, file = torch.ones(4, 4), tmp_path / "a.pth"
    with warnings.catch_warnings(action="ignore"):
        quantised = torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)
    for tensor, why in (
        (quantised, "is a quantised tensor"),
        ((quantised, None), "holds a quantised tensor"),
        (x.to_sparse(), "is a sparse tensor"),
        (x.to(torch.float8_e4m3fn), "is of float8_e4m3fn, which is not read"),
        (x.to(torch.complex64), "is of ComplexFloatStorage, which is not read"),
        (torch._neg_view(x), "is a negated or conjugated view"),
        (torch.ones(1).expand(10**6), "repeats its storage"),
        (torch.ones(2, device="meta"), "is a meta or foreign device's tensor"),
    ):
        torch.save({"a": x, "head": tensor}, file)
        with pytest.raises(UserError, match=f"a.pth: head .*{why}"):
            arrays(file)
        # Beside the weights it is of no concern.
        torch.save({"model": {"a": x}, "state": {"head": tensor}}, file)
        assert arrays(file).keys() == {"a"}


@pytest.mark.crosscheck
def test_objects_without_weights(tmp_path: Path) -> None:
    torch: Any = importlib.import_module("torch")
    file = tmp_path / "a.pth"
    layer = torch.nn.Linear(2, 2)
    for saved, message in (
        (
            layer,
            r"an object of torch\.nn\.modules\.linear\.Linear; save `model.state_d",
        ),
        ({"net": layer, "epoch": 3}, r"'net' is of torch\.nn\.modules\.linear\.Linear"),
        ({}, "it is empty"),
        (3, "type int"),
    ):
        torch.save(saved, file)
        with pytest.raises(UserError, match=message):
            arrays(file)
    with warnings.catch_warnings(action="ignore"):
        torch.jit.save(torch.jit.trace(layer, torch.ones(1, 2)), str(file))
    with pytest.raises(UserError, match="is a TorchScript program"):
        arrays(file)


@pytest.mark.crosscheck
def test_a_head_without_biases(tmp_path: Path) -> None:
    torch: Any = importlib.import_module("torch")
    make: Any = importlib.import_module("tests.formats.make_torch_fixtures")
    model = make.vit().eval()
    model.head = torch.nn.Linear(4, 3, bias=False)
    torch.save(model.state_dict(), tmp_path / "a.pth")
    with pytest.raises(UserError, match="if it was trained without these biases"):
        vit_jax.load(str(tmp_path / "a.pth"), **MODEL)
    ours = vit_jax.load(str(tmp_path / "a.pth"), allow=[".*/bias"], **MODEL)
    images = drawn.images(make.SIZE)
    with torch.no_grad():
        expected = model(torch.tensor(images).permute(0, 3, 1, 2))
    np.testing.assert_allclose(ours(images), expected.numpy(), atol=1e-5)
