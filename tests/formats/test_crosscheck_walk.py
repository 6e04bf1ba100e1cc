"""Every Vision Transformer of timm and transformers is right, or refused by name.

All names of their lists, none chosen: `make test-crosscheck`. What is read computes
what the library computes, to 1e-4 of the largest output; what is not is refused with
the name of its family, never with a tensor that is missing or left over.
"""

import collections
import importlib
import json
import re
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import vit_jax
from tests.formats import files
from vit_jax.checkpoints.formats import huggingface
from vit_jax.checkpoints.formats.opening import open_checkpoint
from vit_jax.errors import UserError

pytestmark = pytest.mark.crosscheck

# timm's files of models with attention over patches, or that are read here.
MODULES = (
    *("vision_transformer", "vision_transformer_hybrid", "vision_transformer_relpos"),
    *("vision_transformer_sam", "deit", "eva", "beit", "cait", "xcit", "volo", "tnt"),
    *("naflexvit", "mlp_mixer", "resnetv2", "swin_transformer", "swin_transformer_v2"),
    *("swin_transformer_v2_cr", "hiera", "hieradet_sam2", "mvitv2", "pit", "convit"),
    *("crossvit", "coat", "davit", "twins", "pvt_v2", "nest", "levit", "vitamin"),
    *("qwen3_vit", "gemma4_vit", "deepseek_vit", "visformer"),
)
# Two of timm's architectures with the same tensors: the message names both.
ASKED = {"vit_base_patch16_gap_224"}
NOT_BY_NAME = r"lacks Tr|no place for|did you mean|cannot tell|KeyError"


def draw(model: Any) -> Any:
    """Weights with which attention and biases matter."""
    torch: Any = importlib.import_module("torch")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.3
            if parameter.ndim > 1:
                spread = 1.3 / max(parameter[0].numel(), 1) ** 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
    return model.eval()


def of_timm() -> list[str]:
    timm: Any = importlib.import_module("timm")
    registry: Any = importlib.import_module("timm.models._registry")
    module_of = registry._model_to_module
    return [name for name in timm.list_models() if module_of[name] in MODULES]


def full_size(name: str) -> Any:
    """A model without memory for its weights, where timm can make one."""
    timm: Any = importlib.import_module("timm")
    torch: Any = importlib.import_module("torch")
    for device in ("meta", "cpu"):
        for more in ({"weight_init": "skip"}, {}):
            try:
                with torch.device(device):
                    return timm.create_model(name, **more)
            except (TypeError, RuntimeError, NotImplementedError, AssertionError):
                continue
    raise AssertionError(f"timm cannot make {name}")


def shallow(name: str, full: Any) -> Any:
    """The same with one layer, or one unit of each stage."""
    timm: Any = importlib.import_module("timm")
    if name.endswith("_bit"):
        make: Any = importlib.import_module("timm.models.resnetv2")
        factor = int(name.split("x")[1][0])
        return make._create_resnetv2_bit(name, layers=[1] * 4, width_factor=factor)
    if name.startswith("mixer"):
        make = importlib.import_module("timm.models.mlp_mixer")
        width, _, patch, _ = full.stem.proj.weight.shape
        return make._create_mixer(name, patch_size=patch, embed_dim=width, num_blocks=1)
    return timm.create_model(name, depth=1)


def heads_of(model: Any) -> int | None:
    found = (m.num_heads for m in model.modules() if hasattr(m, "num_heads"))
    return next(found, None)


def check_settings(opened: Any, model: Any) -> None:
    """What weights do not tell, and numbers may not show: GELU and epsilons."""
    kinds = {"GELU": "erf", "GELUTanh": "tanh"}
    for module in model.modules():
        kind = type(module).__name__
        if kind == "Mlp":
            assert kinds[type(module.act).__name__] == opened.model["gelu"]
        if kind == "LayerNorm":
            assert module.eps == 1e-6


def off(ours: Any, theirs: Any) -> float:
    """The largest difference of an output, as a part of the largest output."""
    torch: Any = importlib.import_module("torch")
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, *ours.image_size, 3)).astype(np.float32)
    pixels = images
    if hasattr(theirs, "patch_embed"):  # whose last pixels no patch may have
        size = theirs.patch_embed.img_size
        rest = [(0, a - b) for a, b in zip(size, ours.image_size, strict=True)]
        pixels = np.pad(images, [(0, 0), *rest, (0, 0)])
    with torch.no_grad():
        expected = theirs(torch.tensor(pixels).permute(0, 3, 1, 2)).numpy()
    found = np.asarray(ours(images))
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def refusal(path: Path, name: str) -> str | None:
    """Why it is refused; None if it is read."""
    why = None
    try:
        open_checkpoint(path).check_complete()
    except UserError as error:
        why = str(error)
    assert why is None or not re.search(NOT_BY_NAME, why), f"{name}: {why}"
    return why


def walk(name: str, folder: Path) -> str:
    """Of one name: "right" or "refused", for a bare file and for a directory."""
    timm: Any = importlib.import_module("timm")
    hub: Any = importlib.import_module("timm.models._hub")
    model = full_size(name)
    shapes = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    file = files.index(folder / "model.safetensors", shapes)
    why = refusal(file, name)
    assert (why is None) or "support" in why or name in ASKED, f"{name}: {why}"
    hub.save_config_for_hf(model, folder / "config.json")
    if why is not None and name not in ASKED:
        assert refusal(folder, name) is not None
        return "refused"
    for path in [folder] if name in ASKED else [file, folder]:
        opened = open_checkpoint(path)
        check_settings(opened, model)
        assert not opened.said, f"{name}: {opened.said}"
        if (heads := heads_of(model)) is not None:
            assert opened.model["num_heads"] == heads, name
    theirs = draw(shallow(name, model))
    timm.models.save_for_hf(theirs, folder, safe_serialization=True)
    size: dict[str, Any] = {"image_size": 64} if name.endswith("_bit") else {}
    ours = vit_jax.load(str(folder), **size)
    assert off(ours, theirs) < 1e-4, name
    if name not in ASKED and open_checkpoint(file).model != ours.config:
        assert off(vit_jax.load(str(file), **size), theirs) < 1e-4, f"{name}, bare"
    return "asked" if name in ASKED else "right"


def test_every_name_of_timm(tmp_path: Path) -> None:
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(1)
    counts: collections.Counter[str] = collections.Counter()
    wrong = []
    for number, name in enumerate(of_timm()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # timm's own
            try:
                counts[walk(name, tmp_path)] += 1
            except AssertionError as error:
                wrong.append(f"{name}: {error}")
        if number % 20 == 0:
            jax.clear_caches()
    print(f"{dict(counts)}, wrong = {len(wrong)}")
    assert not wrong, "\n".join(wrong)
    assert counts["right"] > 120 and counts["refused"] > 300


# Of transformers' classes, what makes them small, where their configs have it.
TINY: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 28,
    "patch_size": 7,
    "mlp_ratio": 2,
    "embed_dim": 32,
    "depths": [1, 1],
    "num_heads": [2, 2],
    "num_labels": 5,
}
READ = {
    *("DeiTForImageClassificationWithTeacher", "DeiTModel", "ViTModel", "IJepaModel"),
    *("ViTForImageClassification", "IJepaForImageClassification", "ViTMSNModel"),
    *("ViTMSNForImageClassification", "Dinov2Model", "Dinov2WithRegistersModel"),
    *("SiglipVisionModel", "SiglipForImageClassification", "SiglipModel"),
}


def of_transformers() -> list[tuple[str, str]]:
    """Model types with pictures, and each one's classes."""
    auto: Any = importlib.import_module("transformers.models.auto.modeling_auto")
    configs: Any = importlib.import_module("transformers").CONFIG_MAPPING
    mappings = [
        auto.MODEL_MAPPING_NAMES,
        auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        auto.MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING_NAMES,
        auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES,
    ]
    found = []
    for kind in auto.MODEL_MAPPING_NAMES:
        classes: dict[str, None] = {}
        for mapping in mappings:
            names = mapping.get(kind, ())
            classes |= dict.fromkeys([names] if isinstance(names, str) else names)
        has_patches = hasattr(configs[kind], "patch_size")
        is_vision = kind in auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
        if has_patches or is_vision or hasattr(configs[kind](), "patch_size"):
            found += [(kind, name) for name in classes]
    return found


def outcome(kind: str, name: str, folder: Path) -> str:
    """Of one class: "right", "refused", or "not made", where it cannot be small."""
    transformers: Any = importlib.import_module("transformers")
    torch: Any = importlib.import_module("torch")
    own = TINY
    if kind == "siglip":
        text = {
            k: v for k, v in TINY.items() if k.endswith(("size", "layers", "heads"))
        }
        own = {**TINY, "vision_config": TINY, "text_config": {**text, "vocab_size": 9}}
    for given in (own, {}):
        try:
            config = transformers.CONFIG_MAPPING[kind](**given)
            config.architectures = [name]
            with torch.device("meta"):
                empty = getattr(transformers, name)(config)
            break
        except Exception:  # whatever it is, there is no model to read
            continue
    else:
        return "not made"
    if given and sum(p.numel() for p in empty.parameters()) < 2e6:
        theirs = draw(getattr(transformers, name)(config))
        theirs.save_pretrained(folder)
    else:  # a part of it has no small form
        theirs = None
        config.save_pretrained(folder)
        shapes = {k: tuple(v.shape) for k, v in empty.state_dict().items()}
        files.index(folder / "model.safetensors", shapes)
    why = refusal(folder, name)
    if why is not None:
        assert "is not supported" in why and name not in READ, f"{name}: {why}"
        return "refused"
    assert theirs is not None, f"{name} is read, and too large to compare"
    ours = vit_jax.load(str(folder))
    images = np.random.default_rng(0).normal(size=(2, 28, 28, 3)).astype(np.float32)
    with torch.no_grad():
        run = theirs.vision_model if name == "SiglipModel" else theirs
        found = run(torch.tensor(images).permute(0, 3, 1, 2))
    if hasattr(found, "logits"):
        expected = found.logits
    elif ours.module.pool == "map":
        expected = found.pooler_output
    else:
        tokens = found.last_hidden_state
        expected = tokens[:, 0] if ours.module.pool == "token" else tokens.mean(1)
    difference = np.abs(np.asarray(ours(images)) - expected.numpy()).max()
    assert difference < 1e-4 * np.abs(expected.numpy()).max(), name
    return "right"


def test_every_class_of_transformers_with_patches(tmp_path: Path) -> None:
    transformers: Any = importlib.import_module("transformers")
    transformers.logging.set_verbosity_error()
    found: dict[str, list[str]] = collections.defaultdict(list)
    for number, (kind, name) in enumerate(of_transformers()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # transformers' own
            try:
                found[outcome(kind, name, tmp_path / str(number))].append(name)
            except AssertionError as error:
                found["wrong"].append(str(error))
    print({k: len(v) for k, v in found.items()}, "not made:", found["not made"])
    assert not found["wrong"], found["wrong"]
    assert set(found["right"]) == READ
    assert len(found["refused"]) > 40


def test_every_model_type_of_transformers_is_named(tmp_path: Path) -> None:
    """Text models too: whatever a folder is of, its name is in the message."""
    transformers: Any = importlib.import_module("transformers")
    files.safetensors(tmp_path / "model.safetensors", {"x": np.ones(3, "f4")})
    for kind in transformers.CONFIG_MAPPING:
        if kind in huggingface.PREFIXES:
            continue
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        why = refusal(tmp_path, kind)
        assert why is not None and f'model_type "{kind}"' in why
        assert "is not supported" in why
