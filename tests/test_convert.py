"""What we write, others read; through their names, and back, bit for bit."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import vit_jax
from tests.formats import drawn, files
from vit_jax import convert
from vit_jax.checkpoints.formats import augreg
from vit_jax.checkpoints.formats.state_dicts import open_state_dict
from vit_jax.errors import UserError


def converted(source: Path, target: Path, to: str, *flags: str) -> Path:
    arguments = ["convert", str(source), str(target), f"--to={to}", *flags]
    assert convert.main(arguments) == 0
    return target


def read(path: Path) -> dict[str, np.ndarray]:
    found = open_state_dict([path], named=False)
    return {name: tensor.read() for name, tensor in found.tensors.items()}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].tobytes() == array.tobytes(), name


TANH = "--model.gelu=tanh"


def test_there_and_back_again(tmp_path: Path) -> None:
    """npz -> ours -> timm -> ours -> Hugging Face -> ours -> npz."""
    source = files.of_fixture("npz-vit", tmp_path)
    timm = converted(source, tmp_path / "a.safetensors", "timm", "--allow=gelu")
    hf = converted(timm, tmp_path / "hf", "huggingface", TANH)
    end = converted(hf, tmp_path / "b.npz", "npz")
    assert_same(read(end), read(source))
    # The files between are as those libraries write them: names, and bits.
    of_timm = drawn.fixture("timm-vit")["shapes"]
    assert {k: list(v.shape) for k, v in read(timm).items()} == of_timm
    config = json.loads((hf / "config.json").read_text())
    assert config["hidden_act"] == "gelu_pytorch_tanh"
    assert config["architectures"] == ["ViTForImageClassification"]
    names = set(read(hf / "model.safetensors"))
    assert names == set(drawn.fixture("hf-vit")["shapes"])
    stacked = converted(end, tmp_path / "c.npz", "big_vision")
    assert "params/pos_embedding" in read(stacked)
    again = converted(stacked, tmp_path / "d.npz", "npz")
    assert_same(read(again), read(source))


# The files of a library, written again for the same library: nothing is lost.
SAME = [
    *(("timm", f"timm-{n}") for n in ("vit-gap", "registers", "deit", "siglip", "bit")),
    *(
        ("timm", f"timm-{n}")
        for n in ("dinov2-swiglu", "hybrid", "hybrid-root", "mixer")
    ),
    *(
        ("huggingface", f"hf-{n}")
        for n in ("deit", "dinov2", "dinov2-swiglu", "siglip", "siglip-classifier")
    ),
    ("huggingface", "hf-dinov2_with_registers"),
    *(("npz", f"npz-{n}") for n in ("hybrid", "bit")),
]


@pytest.mark.parametrize("to, name", SAME)
def test_what_a_library_wrote_comes_back(to: str, name: str, tmp_path: Path) -> None:
    source = files.of_fixture(name, tmp_path)
    target = tmp_path / {"huggingface": "out", "npz": "out.npz"}.get(
        to, "o.safetensors"
    )
    allow = ["--allow=layer_norm_epsilon"] if to == "npz" else []
    converted(source, target, to, *allow)
    if to == "huggingface":
        was = json.loads((source / "config.json").read_text())
        now = json.loads((target / "config.json").read_text())
        assert {k: v for k, v in now.items() if k not in was} in (
            {},
            {"dtype": "float32"},
        )
        vision = was.get("vision_config", {})
        vision |= {"dtype": "float32"}
        assert now.get("vision_config", {}).items() <= vision.items()
        for key in now.keys() & was.keys() - {"vision_config"}:
            assert was[key] == now[key], key
        source, target = source / "model.safetensors", target / "model.safetensors"
    expected = read(source)
    for ignored in ("embeddings.mask_token",):
        expected.pop(ignored, None)
    if name == "npz-hybrid":  # whose GroupNorms had four axes
        expected = {k: v.reshape(-1) if "gn" in k else v for k, v in expected.items()}
    assert_same(read(target), expected)


def refused(capsys: Any, *arguments: str) -> str:
    assert convert.main(["convert", *arguments]) == 2
    return capsys.readouterr().err


def test_what_a_format_cannot_say(tmp_path: Path, capsys: Any) -> None:
    source = str(files.of_fixture("timm-deit", tmp_path))
    other = str(tmp_path / "a.npz")
    assert "cannot say model.gelu=erf" in refused(capsys, source, other, "--to=npz")
    scaled = str(files.of_fixture("timm-hybrid", tmp_path))
    hf = str(tmp_path / "hf")
    assert "no model of Hugging Face" in refused(capsys, scaled, hf, "--to=huggingface")
    shapes = drawn.fixture("npz-vit")["shapes"] | {
        "pre_logits/kernel": (64, 64),
        "pre_logits/bias": (64,),
    }
    np.savez(tmp_path / "p.npz", **drawn.draw_all(shapes))  # type: ignore[arg-type]
    source, timm = str(tmp_path / "p.npz"), str(tmp_path / "a.safetensors")
    flags = ("--to=timm", "--allow=gelu")
    assert "no place for pre_logits" in refused(capsys, source, timm, *flags)
    assert "no model of Hugging Face" in refused(capsys, source, hf, "--to=huggingface")
    assert not list(tmp_path.glob(".*")) and not Path(hf).exists()
    taken = str(tmp_path / "p.npz")
    assert "exists" in refused(capsys, source, taken, "--to=npz")
    assert "ends in .npz" in refused(capsys, source, timm, "--to=npz")


@pytest.mark.parametrize("to", ["npz", "timm", "huggingface"])
@pytest.mark.parametrize("token", [True, False])
def test_fixed_position_embeddings_become_a_table(
    to: str, token: bool, tmp_path: Path
) -> None:
    shapes = drawn.fixture("npz-vit")["shapes"]
    del shapes["Transformer/posembed_input/pos_embedding"]
    if not token:
        del shapes["cls"]
    source = tmp_path / "fixed.npz"
    np.savez(source, **drawn.draw_all(shapes))  # type: ignore[arg-type]
    target = tmp_path / f"a{ {'timm': '.safetensors', 'npz': '.npz'}.get(to, '') }"
    pool = "token" if token else "gap"
    size = (28, 28)
    fixed = vit_jax.load(str(source), image_size=size, pool=pool)
    assert fixed.config["posemb"] == "sincos2d"
    flags = [f"--model.pool={pool}", "--allow=gelu", "--image_size=28,28"]
    converted(source, target, to, *flags)
    table = vit_jax.load(str(target), gelu="tanh")
    assert table.config.get("posemb", "learn") == "learn"
    images = drawn.images(size)
    np.testing.assert_allclose(table(images), fixed(images), rtol=0, atol=2e-6)
    assert np.abs(np.asarray(fixed(images))).max() > 0.1


def test_a_classifier_of_siglip_has_the_mean_whatever_else_there_is(
    tmp_path: Path,
) -> None:
    """As transformers saves one that began as SigLIP, with its unused map head."""
    record = drawn.fixture("hf-siglip-classifier")
    folder = files.of_fixture("hf-siglip-classifier", tmp_path)
    del record["config"]["vision_config"]["vision_use_head"]
    (folder / "config.json").write_text(json.dumps(record["config"]))
    unused = {"vision_model.head.probe": (1, 1, 32)}
    arrays = drawn.draw_all({**record["shapes"], **unused})
    files.safetensors(folder / "model.safetensors", arrays)
    found = vit_jax.load(str(folder))(drawn.images((28, 28)))
    np.testing.assert_allclose(found, record["outputs"], atol=1e-5)


def test_flags(tmp_path: Path, capsys: Any) -> None:
    source = str(files.of_fixture("timm-vit", tmp_path))
    assert "did you mean" in refused(capsys, source, "--too=npz")
    assert "did you mean" in refused(capsys, source, "b.npz", "--to=nzp")
    assert "are needed" in refused(capsys, source, "b.npz")
    assert convert.main(["convert", source]) == 0
    table = capsys.readouterr().out
    assert "head.weight" in table and "head/kernel" in table
    lacking = drawn.draw_all(drawn.fixture("timm-vit")["shapes"])
    del lacking["norm.bias"]
    files.safetensors(tmp_path / "l.safetensors", lacking)
    assert "lacks" in refused(capsys, str(tmp_path / "l.safetensors"))


def test_the_names_of_augreg(tmp_path: Path, capsys: Any) -> None:
    name = "B_16-i1k-300ep-lr_0.001-aug_strong2-wd_0.03-do_0.1-sd_0.1"
    tuned = f"{name}--imagenet2012-steps_20k-lr_0.01-res_384.npz"
    path = files.of_fixture("npz-vit", tmp_path).rename(tmp_path / tuned)
    assert convert.main(["convert", str(path)]) == 0
    assert (
        "By its name: B/16, pre-trained on ImageNet for 300 epochs (learning rate "
        "0.001, augmentation strong2, weight decay 0.03, dropout 0.1, stochastic depth "
        "0.1), fine-tuned on imagenet2012 at 384 px for 20,000 steps (learning rate "
        "0.01)." in capsys.readouterr().out
    )
    small = "R_Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0.npz"
    assert (augreg.describe(small) or "").startswith("R+ViT-Ti/16, pre-trained on Im")
    assert augreg.describe("B_16.npz") is None


def test_verify_needs_a_library_that_reads_it(tmp_path: Path, capsys: Any) -> None:
    source = str(files.of_fixture("hf-vit", tmp_path))
    image = tmp_path / "a.png"
    cv2.imwrite(str(image), np.zeros((28, 28, 3), np.uint8))
    if importlib.util.find_spec("torch") is None:
        found = refused(capsys, source, f"--verify={image}")
        assert "pip install torch transformers" in found
    assert "there is no image" in refused(capsys, source, "--verify=nowhere.png")
    file = str(files.of_fixture("timm-vit", tmp_path))
    assert "add --timm=NAME" in refused(capsys, file, f"--verify={image}")


def test_a_field_that_no_model_has(tmp_path: Path, capsys: Any) -> None:
    source = files.of_fixture("hf-vit", tmp_path)
    assert "witdh is unknown" in refused(capsys, str(source), "--model.witdh=3")
    with pytest.raises(UserError, match="witdh is unknown"):
        vit_jax.load(str(source), witdh=3)
