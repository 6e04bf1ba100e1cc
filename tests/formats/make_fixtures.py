"""Writes fixtures/: what timm and transformers compute from weights of `drawn.draw`.

Nothing of vit_jax is used. It needs the extra [crosscheck]:

    python -m tests.formats.make_fixtures
"""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import timm  # pyright: ignore[reportMissingImports]
import torch  # pyright: ignore[reportMissingImports]
import transformers  # pyright: ignore[reportMissingImports]
from timm.models import mlp_mixer, resnetv2, vision_transformer  # pyright: ignore[reportMissingImports]
from timm.models.vision_transformer_hybrid import HybridEmbed  # pyright: ignore[reportMissingImports]

from tests.formats import drawn

TINY: dict[str, Any] = {
    "img_size": 28,
    "patch_size": 7,
    "embed_dim": 64,
    "depth": 2,
    "num_heads": 1,
    "mlp_ratio": 1.5,
    "num_classes": 5,
}
HF: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 28,
    "patch_size": 7,
}
DINO: dict[str, Any] = {k: v for k, v in HF.items() if k != "intermediate_size"}
DINO |= {"mlp_ratio": 2}


def vit(**fields: Any) -> Any:
    return vision_transformer.VisionTransformer(**{**TINY, **fields})


def hybrid(layers: tuple[int, ...], size: int, patch: int) -> Any:
    """As timm's `vit_*_r*`: a ResNet with TensorFlow's padding, then patches."""

    def embed(*, img_size: int, patch_size: int, **rest: Any) -> Any:
        conv = lambda *a, **k: timm.layers.StdConv2dSame(*a, **k, eps=1e-8)  # noqa: E731
        if layers:
            backbone = resnetv2.ResNetV2(
                layers=layers,
                channels=(256, 512, 1024, 2048)[: len(layers)],
                num_classes=0,
                global_pool="",
                preact=False,
                stem_type="same",
                conv_layer=conv,
            )
        else:
            backbone = resnetv2.create_resnetv2_stem(
                in_chs=3, stem_type="same", preact=False, conv_layer=conv
            )
        return HybridEmbed(backbone, img_size, patch_size, **rest)

    return vit(embed_layer=embed, img_size=size, patch_size=patch, depth=1)


def timm_models() -> dict[str, tuple[Any, int]]:
    """Models by the fixture's name, and the side of their images."""
    bit = resnetv2.ResNetV2(
        layers=(1, 1),
        channels=(256, 512),
        num_classes=5,
        stem_type="fixed",
        conv_layer=lambda *a, **k: timm.layers.StdConv2d(*a, **k, eps=1e-8),
    )
    mixer = mlp_mixer.MlpMixer(
        num_classes=5, img_size=28, patch_size=7, num_blocks=2, embed_dim=16
    )
    siglip = {"class_token": False, "global_pool": "map", "num_classes": 0}
    registers = {"class_token": False, "no_embed_class": True, "global_pool": "avg"}
    dino = {"no_embed_class": True, "init_values": 1e-5, "num_classes": 0}
    swiglu = timm.layers.SwiGLUPacked
    return {
        "timm-vit": (vit(), 28),
        "timm-vit-gap": (vit(class_token=False, global_pool="avg"), 28),
        "timm-registers": (vit(**registers, reg_tokens=4), 28),
        "timm-dinov2": (vit(**dino, reg_tokens=4), 28),
        "timm-dinov2-swiglu": (
            vit(
                init_values=1e-5,
                mlp_layer=swiglu,
                act_layer=torch.nn.SiLU,
                num_classes=0,
            ),
            28,
        ),
        "timm-siglip": (vit(**siglip), 28),
        "timm-deit": (timm.models.deit.VisionTransformerDistilled(**TINY), 28),
        "timm-hybrid": (hybrid((1, 1), 32, 1), 32),
        "timm-hybrid-root": (hybrid((), 32, 2), 32),
        "timm-bit": (bit, 32),
        "timm-mixer": (mixer, 28),
        "timm-class-gap": (vit(global_pool="avg"), 28),
        "timm-no-qkv-bias": (vit(qkv_bias=False), 28),
    }


def timm_directories() -> dict[str, Any]:
    """Models that `save_for_hf` writes, whose tensors do not tell what they are."""
    tiny = {**TINY, "num_heads": 4, "global_pool": "avg", "fc_norm": False}
    wide = {"img_size": (14, 56), "act_layer": "gelu_tanh"}
    return {"timm-config": timm.create_model("vit_tiny_patch16_224", **tiny | wide)}


def transformers_models() -> dict[str, Any]:
    t = transformers
    swiglu = t.Dinov2Config(**DINO, use_swiglu_ffn=True)
    registers = t.Dinov2WithRegistersConfig(**DINO, num_register_tokens=3)
    return {
        "hf-vit": t.ViTForImageClassification(t.ViTConfig(**HF, num_labels=5)),
        "hf-deit": t.DeiTForImageClassificationWithTeacher(
            t.DeiTConfig(**HF, num_labels=5)
        ),
        "hf-dinov2": t.Dinov2Model(t.Dinov2Config(**DINO)),
        "hf-dinov2-swiglu": t.Dinov2Model(swiglu),
        "hf-dinov2_with_registers": t.Dinov2WithRegistersModel(registers),
        "hf-siglip": t.SiglipVisionModel(t.SiglipVisionConfig(**HF)),
        "hf-vit_msn": t.ViTMSNForImageClassification(
            t.ViTMSNConfig(**HF, num_labels=5)
        ),
        "hf-ijepa": t.IJepaForImageClassification(
            t.IJepaConfig(**HF, num_labels=5, qkv_bias=False)
        ),
        "hf-siglip-classifier": t.SiglipForImageClassification(
            t.SiglipConfig(
                vision_config={**HF, "vision_use_head": False},
                num_labels=5,
            )
        ),
    }


def torch_images(size: tuple[int, int]) -> torch.Tensor:
    return torch.tensor(drawn.images(size)).permute(0, 3, 1, 2).double()


def save(name: str, record: dict[str, Any], outputs: torch.Tensor) -> None:
    record["outputs"] = outputs.numpy().tolist()
    path = drawn.FIXTURES / f"{name}.json"
    path.write_text(json.dumps(record) + "\n")
    print(f"{path.name}: {path.stat().st_size:,} bytes, std {outputs.std():.3f}")


def make_timm() -> None:
    for name, (model, side) in timm_models().items():
        shapes = {k: tuple(v.shape) for k, v in model.state_dict().items()}
        weights = {k: torch.tensor(v) for k, v in drawn.draw_all(shapes).items()}
        model.load_state_dict(weights)
        outputs = model.eval().double()(torch_images((side, side)))
        save(name, {"shapes": shapes, "image_size": [side, side]}, outputs)
    for name, model in timm_directories().items():
        shapes = {k: tuple(v.shape) for k, v in model.state_dict().items()}
        weights = {k: torch.tensor(v) for k, v in drawn.draw_all(shapes).items()}
        model.load_state_dict(weights)
        with tempfile.TemporaryDirectory() as folder:
            labels = {"label_names": ["a", "b", "c", "d", "e"]}
            timm.models.save_for_hf(model, folder, model_config=labels)
            config = json.loads(Path(folder, "config.json").read_text())
        size = model.patch_embed.img_size
        record = {"shapes": shapes, "image_size": list(size), "config": config}
        save(name, record, model.eval().double()(torch_images(size)))


def make_transformers() -> None:
    from safetensors.torch import (  # pyright: ignore[reportMissingImports]
        load_file,
        save_file,
    )

    for name, model in transformers_models().items():
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            file = Path(folder, "model.safetensors")
            shapes = {k: tuple(v.shape) for k, v in load_file(file).items()}
            weights = drawn.draw_all(shapes)
            tensors = {k: torch.tensor(v) for k, v in weights.items()}
            save_file(tensors, file, metadata={"format": "pt"})
            read = type(model).from_pretrained(folder).eval().double()
            config = json.loads(Path(folder, "config.json").read_text())
        found = read(torch_images((28, 28)))
        outputs = found.logits if hasattr(found, "logits") else found.pooler_output
        record = {"shapes": shapes, "image_size": [28, 28], "config": config}
        save(name, record, outputs)


def layer_norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}/{leaf}": (width,) for leaf in ("scale", "bias")}


def published_vit(grid: int) -> dict[str, tuple[int, ...]]:
    """The arrays of a file as the paper's authors published them, of `TINY`'s size."""
    width, hidden = 64, 96
    shapes: dict[str, tuple[int, ...]] = {
        "cls": (1, 1, width),
        "embedding/kernel": (7, 7, 3, width),
        "embedding/bias": (width,),
        "Transformer/posembed_input/pos_embedding": (1, grid**2 + 1, width),
        **layer_norm("Transformer/encoder_norm", width),
        "head/kernel": (width, 5),
        "head/bias": (5,),
    }
    for i in range(2):
        block = f"Transformer/encoderblock_{i}"
        shapes |= layer_norm(f"{block}/LayerNorm_0", width)
        shapes |= layer_norm(f"{block}/LayerNorm_2", width)
        attention = f"{block}/MultiHeadDotProductAttention_1"
        for part in ("query", "key", "value"):
            shapes[f"{attention}/{part}/kernel"] = (width, 1, width)
            shapes[f"{attention}/{part}/bias"] = (1, width)
        shapes[f"{attention}/out/kernel"] = (1, width, width)
        shapes[f"{attention}/out/bias"] = (width,)
        mlp = f"{block}/MlpBlock_3"
        shapes[f"{mlp}/Dense_0/kernel"] = (width, hidden)
        shapes[f"{mlp}/Dense_0/bias"] = (hidden,)
        shapes[f"{mlp}/Dense_1/kernel"] = (hidden, width)
        shapes[f"{mlp}/Dense_1/bias"] = (width,)
    return shapes


def unit_kernels(inputs: int, width: int) -> dict[str, tuple[int, ...]]:
    return {
        "conv1": (1, 1, inputs, width),
        "conv2": (3, 3, width, width),
        "conv3": (1, 1, width, 4 * width),
    }


def published_hybrid() -> dict[str, tuple[int, ...]]:
    """The same with a ResNet of two units below it; GroupNorm's have four axes."""
    shapes = published_vit(grid=4)
    shapes = {k: v for k, v in shapes.items() if "encoderblock_1" not in k}
    shapes["embedding/kernel"] = (1, 1, 512, 64)
    shapes["conv_root/kernel"] = (7, 7, 3, 64)
    norms = {"gn_root": 64}
    for block, inputs, width in (("block1", 64, 64), ("block2", 256, 128)):
        unit = f"{block}/unit1"
        for name, shape in unit_kernels(inputs, width).items():
            shapes[f"{unit}/{name}/kernel"] = shape
        shapes[f"{unit}/conv_proj/kernel"] = (1, 1, inputs, 4 * width)
        norms |= {f"{unit}/gn1": width, f"{unit}/gn2": width}
        norms |= {f"{unit}/gn3": 4 * width, f"{unit}/gn_proj": 4 * width}
    for name, width in norms.items():
        shapes |= {f"{name}/{leaf}": (1, 1, 1, width) for leaf in ("scale", "bias")}
    return shapes


def published_bit() -> dict[str, tuple[int, ...]]:
    """BiT's own names, of two units."""
    shapes: dict[str, tuple[int, ...]] = {
        "resnet/root_block/standardized_conv2d/kernel": (7, 7, 3, 64),
        "resnet/group_norm/gamma": (512,),
        "resnet/group_norm/beta": (512,),
        "resnet/head/conv2d/kernel": (1, 1, 512, 5),
        "resnet/head/conv2d/bias": (5,),
    }
    for block, inputs, width in (("block1", 64, 64), ("block2", 256, 128)):
        unit = f"resnet/{block}/unit01"
        kernels = unit_kernels(inputs, width)
        for part, name in zip("abc", kernels, strict=True):
            shapes[f"{unit}/{part}/standardized_conv2d/kernel"] = kernels[name]
            channels = {"a": inputs, "b": width, "c": width}[part]
            for leaf in ("gamma", "beta"):
                shapes[f"{unit}/{part}/group_norm/{leaf}"] = (channels,)
        proj = f"{unit}/a/proj/standardized_conv2d/kernel"
        shapes[proj] = (1, 1, inputs, 4 * width)
    return shapes


def make_published() -> None:
    """timm reads such files itself, into models with its own GELU and epsilons."""
    resnets = {"standardization": "var+1e-8", "group_norm_epsilon": 1e-5}
    for name, shapes, side, model in (
        ("npz-vit", published_vit(grid=4), 28, {"gelu": "erf"}),
        ("npz-hybrid", published_hybrid(), 32, {"gelu": "erf", **resnets}),
        ("npz-bit", published_bit(), 32, resnets),
    ):
        reader = {"npz-hybrid": "timm-hybrid", "npz-bit": "timm-bit"}.get(name)
        torch_model = timm_models()[reader or "timm-vit"][0]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "weights.npz")
            np.savez(path, **drawn.draw_all(shapes))  # pyright: ignore[reportArgumentType]
            if name == "npz-bit":
                resnetv2._load_weights(torch_model, str(path), prefix="resnet/")
            else:
                torch_model.load_pretrained(str(path))
        outputs = torch_model.eval().double()(torch_images((side, side)))
        record = {"shapes": shapes, "image_size": [side, side], "model": model}
        save(name, record, outputs)


# Of timm's architectures that are not read here one of a kind, and what names it.
FAMILIES = {
    "aimv2_large_patch14_224": "AIMv2",
    "beit3_base_patch16_224": "BEiT-3",
    "beit_base_patch16_224": "BEiT",
    "cait_xxs24_224": "CaiT",
    "convit_tiny": "ConViT",
    "eva02_tiny_patch14_224": "EVA",
    "naflexvit_base_patch16_gap": "NaFlexViT",
    "resnetv2_50": "ResNet v2",
    "samvit_base_patch16": "SAM",
    "swin_tiny_patch4_window7_224": "Swin Transformer",
    "vit_base_patch16_18x2_224": "parallel ViT",
    "vit_base_patch16_clip_224": "CLIP",
    "vit_base_patch16_rope_ape_224": "rotary position embeddings",
    "vit_base_patch16_rpn_224": "rpn",
    "vit_base_resnet26d_224": "BatchNorm",
    "vit_base_patch16_radio_v3": "RADIO",
    "vit_relpos_small_patch16_224": "relative positions",
    "vit_small_patch16_dinov3": "DINOv3",
    "xcit_tiny_12_p8_224": "XCiT",
}


def make_families() -> None:
    """The tensors of each family's first layers, by which it is known."""
    found = {}
    for name, family in FAMILIES.items():
        shapes = {
            k: list(v.shape) for k, v in timm.create_model(name).state_dict().items()
        }
        first = {k: s for k, s in shapes.items() if not re.search(r"\.[1-9]\d*\.", k)}
        found[name] = family, first
    path = drawn.FIXTURES.parent / "families.json"
    path.write_text(json.dumps(found) + "\n")


@torch.no_grad()
def main() -> None:
    make_families()
    make_timm()
    make_transformers()
    make_published()


if __name__ == "__main__":
    main()
